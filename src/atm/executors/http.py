"""``http_request`` and ``webhook``: one HTTP request a task.

    executors:
      - use: atm.executors.http:HttpExecutor
        config: {allow: [10.0.0.0/8, internal.example]}

The payload is ``{"url": …}`` with, as needed, ``method``, ``headers``, ``json`` or ``body``, ``timeout``,
``expected_status``, ``redirects`` and ``idempotency_header``; the result ``{"status", "headers"}`` with the body
as ``json``, ``body`` or ``base64``. ``webhook`` is the same with POST as its method.

Only public addresses are connected to, and those that ``allow`` names. Proxies of the environment are not used.
Logs and errors tell a request's host, and neither its path, nor its query, headers or body: they may hold secrets.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Sequence
from typing import Any

import httpx
import trio

from atm.context import Context
from atm.errors import ConfigError, NonRetryable, RetryLater
from atm.executor import Executor, TaskResult
from atm.executors.addresses import Gate, Lookup, NotAllowed
from atm.executors.http_answer import MAX_RESPONSE, Collected, result_of, retry_after
from atm.executors.http_payload import REDIRECTS, Order, is_header, origin_of
from atm.executors.http_transport import Broken, Enough, PinnedTransport
from atm.task import Task

logger = logging.getLogger("atm.http")

TOO_MANY_REQUESTS = 429


class HttpExecutor(Executor):
    """Makes an HTTP request a task.

    Args:
        allow: networks, addresses and names of hosts that may be reached beside public ones.
        public: False: nothing but what ``allow`` names may be reached.
        tls_ca: PEM file of authorities that are trusted beside the system's.
        max_response: bytes of a response that are kept, decoded; 262,144 at the most.
        idempotency_header: carries the idempotency key; None: none does.
        keep_headers: headers of the response that become part of the result, beside the usual ones.
        lookup: finds the addresses of a name; for tests.
    Raises: ConfigError, naming the setting.
    """

    type = "http"
    supported_task_types = ("http_request", "webhook")

    def __init__(
        self,
        *,
        allow: Sequence[str] = (),
        public: bool = True,
        tls_ca: str | None = None,
        max_response: int = MAX_RESPONSE,
        idempotency_header: str | None = "Idempotency-Key",
        keep_headers: Sequence[str] = (),
        lookup: Lookup | None = None,
    ) -> None:
        for key, value in (("allow", allow), ("keep_headers", keep_headers)):
            if isinstance(value, str) or not all(isinstance(entry, str) for entry in value):
                raise ConfigError(key, "must be a list of texts")
        if not isinstance(public, bool):
            raise ConfigError("public", "must be true or false")
        if type(max_response) is not int or not 1 <= max_response <= MAX_RESPONSE:
            raise ConfigError("max_response", f"must be a number of bytes from 1 to {MAX_RESPONSE}")
        if idempotency_header is not None and not is_header(idempotency_header):
            raise ConfigError("idempotency_header", "must be the name of a header, or null for none")
        if lookup is not None and not callable(lookup):
            raise ConfigError("lookup", "is for tests, in code")
        self._gate = Gate(allow, public=public, lookup=lookup)
        self._tls = None if tls_ca is None else _tls(tls_ca)
        self._max_response = max_response
        self._key_header = idempotency_header
        self._keep_headers = [name.lower() for name in keep_headers]

    async def execute(self, ctx: Context, task: Task) -> TaskResult:
        method = "POST" if task.task_type == "webhook" else "GET"
        order = Order(task.payload, method=method, key_header=self._key_header)
        if order.timeout is None:
            return TaskResult(success=True, data=await self._carry_out(order, ctx))
        with trio.move_on_after(order.timeout):
            return TaskResult(success=True, data=await self._carry_out(order, ctx))
        raise RetryLater(f"no full answer from {origin_of(order.url)} within {order.timeout:g} s")

    async def _carry_out(self, order: Order, ctx: Context) -> dict[str, Any]:
        """Send the request, and those that redirects lead to; the result of the last."""
        for _ in range(order.redirects + 1):
            addresses = await self._addresses_of(order, ctx)
            transport = PinnedTransport(addresses, self._context() if order.url.scheme == "https" else None)
            async with contextlib.aclosing(transport):
                try:
                    response = await transport.handle_async_request(order.request(ctx.idempotency_key))
                    location = response.headers.get("location")
                    if location is None or response.status_code not in REDIRECTS or not order.redirects:
                        return await self._judge(order, response, transport)
                except Broken as error:
                    raise RetryLater(f"{origin_of(order.url)}: {error}") from None
            order.follow(response.status_code, location)
        raise NonRetryable(f"more than {order.redirects} redirects, the last to {origin_of(order.url)}")

    async def _addresses_of(self, order: Order, ctx: Context) -> list[str]:
        host, port = order.url.raw_host.decode("ascii", "replace").rstrip("."), order.url.port
        try:
            return await self._gate.addresses_of(host, port or (443 if order.url.scheme == "https" else 80))
        except NotAllowed as error:
            logger.warning(
                "refused: %s (%s); see `allow` of atm.executors.http:HttpExecutor",
                error,
                error.address or "no address",
                extra={"task_id": ctx.task_id},
            )
            raise NonRetryable(f"payload.url: {error}") from None
        except OSError:
            raise RetryLater(f"{origin_of(order.url)}: its name leads to no address") from None

    async def _judge(self, order: Order, response: httpx.Response, transport: PinnedTransport) -> dict[str, Any]:
        """The task's result, if the status is one that is expected. Raises RetryLater, NonRetryable, Broken."""
        status = response.status_code
        if order.expects(status):
            collected = Collected(response.headers.get("content-encoding", ""), self._max_response)
            await _read(response, collected, transport)
            return result_of(response, collected, self._keep_headers)
        reason = f"HTTP {status} from {origin_of(order.url)}"
        if status == TOO_MANY_REQUESTS or status >= 500:
            raise RetryLater(reason, after=retry_after(response))
        if status in REDIRECTS:
            reason += "; redirects are not followed unless payload.redirects allows some"
        raise NonRetryable(reason)

    def _context(self) -> ssl.SSLContext:
        """Made when first needed: it reads the system's authorities."""
        if self._tls is None:
            self._tls = _tls(None)
        return self._tls


async def _read(response: httpx.Response, collected: Collected, transport: PinnedTransport) -> None:
    try:
        async for chunk in response.aiter_raw():
            if not collected.add(chunk):
                transport.stop_reading()
    except Enough:
        return
    collected.end()


def _tls(authorities: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except (OSError, TypeError) as error:
            raise ConfigError("tls_ca", f"cannot be read: {error}") from None
    return context
