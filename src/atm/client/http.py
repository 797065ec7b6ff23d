"""The clients that speak HTTP."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self
from urllib.parse import urlsplit

import anyio
import httpx

from atm.client.calls import WAITERS
from atm.client.errors import BadAnswer, ConnectionFailed, RequestTimeout
from atm.client.handles import AsyncTaskHandle, TaskHandle
from atm.client.sides import Later, Now
from atm.client.verbs import Verbs
from atm.client.wire import Answer, Pause, Request, Session, Step, number

DEFAULT_URL = "http://127.0.0.1:8080"
TIMEOUT = 10.0
RETRIES = 6
RETRY_FOR = 30.0

CALLS = 100
"""Requests under way at a time, beside those that wait; further ones stand in line, which is not timed."""

LIMITS = httpx.Limits(max_connections=CALLS + WAITERS, max_keepalive_connections=CALLS)


class _Settings:
    """What both clients are given, checked. Raises ValueError, TypeError."""

    def __init__(self, base_url: str | None, api_key: str | None, timeout: float) -> None:
        for name, text in (("base_url", base_url), ("api_key", api_key)):
            if not isinstance(text, str | None):
                raise TypeError(f"{name}: must be a text, not {type(text).__name__}")
        self.base_url = (base_url or os.environ.get("ATM_URL") or DEFAULT_URL).rstrip("/")
        if reason := reason_against(self.base_url):
            raise ValueError(f"base_url: {reason}")
        key = api_key if api_key is not None else os.environ.get("ATM_API_KEY")
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("api_key: must be printable ASCII without blanks")
        if not number("timeout", timeout) > 0:
            raise ValueError("timeout: must be a number of seconds greater than 0")
        self.timeout = timeout
        # Reading the certificates takes longer than all the rest; without https there is nobody to verify.
        self.is_https = self.base_url.startswith("https:")
        self.headers = {"User-Agent": "atm-python", "Accept": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"

    def whole(self, http: httpx.Client | httpx.AsyncClient, request: Request) -> httpx.Request:
        """The request as httpx sends it."""
        headers = dict(self.headers)
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        return http.build_request(
            request.method,
            self.base_url + request.path,
            params=request.query or None,
            content=request.body,
            headers=headers,
            timeout=httpx.Timeout(self.seconds(request), connect=self.timeout),
        )

    def seconds(self, request: Request) -> float:
        return self.timeout + request.extra


def reason_against(url: str) -> str | None:
    """Why this is no address of a server, without telling a password; None: it is one."""
    try:
        parts = urlsplit(url)
        # An umlaut is fine in a name; what no name can be is told late, and not as an error of httpx's.
        (parts.hostname or "").encode("idna")
        fits = httpx.URL(url).host and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        parts, fits = urlsplit(""), False
    if parts.username is not None or parts.password is not None:
        return "must not hold a user or a password; a server wants an API key"
    if not fits or parts.query or parts.fragment:
        return f"must be as http://host:port, not {url!r}"
    return None


@contextmanager
def _translated(url: str, seconds: float) -> Iterator[None]:
    """httpx's errors as ours."""
    try:
        yield
    except (httpx.ConnectTimeout, httpx.PoolTimeout):
        raise RequestTimeout(f"{url}: no connection within {seconds:g} s", sent=False) from None
    except httpx.TimeoutException:
        raise _late(url, seconds) from None
    except httpx.ConnectError as error:
        raise ConnectionFailed(f"{url}: {error}", sent=False) from None
    except httpx.TransportError as error:
        raise ConnectionFailed(f"{url}: {error or type(error).__name__}") from None
    except httpx.DecodingError as error:
        raise BadAnswer(f"{url}: an answer that cannot be decoded: {error}", 200) from None


def _late(url: str, seconds: float) -> RequestTimeout:
    return RequestTimeout(f"{url}: no answer within {seconds:g} s")


class Client(Verbs[TaskHandle], Now):
    """Speaks with an atm server; blocks. May be shared by threads; keeps its connections until closed.

    Args:
        base_url: of the server; None: ATM_URL from the environment, else http://127.0.0.1:8080.
        api_key: shown with every request; None: ATM_API_KEY from the environment, else none.
        timeout: seconds that one request may take, from its beginning to the end of the answer.
        retries: how often a request is sent again that failed and may be repeated.
        retry_for: seconds after which a request is not sent again any more.
        http: connections of your own making (proxies, certificates, headers …), which you close yourself.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        retry_for: float = RETRY_FOR,
        http: httpx.Client | None = None,
    ) -> None:
        self._settings = _Settings(base_url, api_key, timeout)
        self._session = Session(retries, retry_for, time.monotonic)
        self._calls, self._waits = threading.Semaphore(CALLS), threading.Semaphore(WAITERS)
        self._own = http is None
        self._http = httpx.Client(verify=self._settings.is_https, limits=LIMITS) if http is None else http

    def _handle(self, task_id: str) -> TaskHandle:
        return TaskHandle(self, self._session, task_id)

    def _do(self, step: Step) -> Answer | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        with self._waits if step.extra else self._calls:
            return self._send(step)

    def _send(self, step: Request) -> Answer:
        seconds = self._settings.seconds(step)
        deadline = time.monotonic() + seconds
        with _translated(self._settings.base_url, seconds):
            response = self._http.send(self._settings.whole(self._http, step), stream=True)
            try:
                return Answer(response.status_code, response.headers, self._body(response, deadline, seconds))
            finally:
                response.close()

    def _body(self, response: httpx.Response, deadline: float, seconds: float) -> bytes:
        """All of it; one that comes in drops is not waited for longer than one that does not come."""
        parts = []
        for part in response.iter_bytes():
            parts.append(part)
            if time.monotonic() > deadline:
                raise _late(self._settings.base_url, seconds)
        return b"".join(parts)

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self._settings.base_url}>"


class AsyncClient(Verbs[AsyncTaskHandle], Later):
    """As ``Client``, under trio and asyncio: every verb is awaited, ``iter_tasks`` goes with ``async for``."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        retry_for: float = RETRY_FOR,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._settings = _Settings(base_url, api_key, timeout)
        self._session = Session(retries, retry_for, anyio.current_time)
        self._lines: tuple[anyio.CapacityLimiter, anyio.CapacityLimiter] | None = None
        self._own = http is None
        self._http = httpx.AsyncClient(verify=self._settings.is_https, limits=LIMITS) if http is None else http

    def _handle(self, task_id: str) -> AsyncTaskHandle:
        return AsyncTaskHandle(self, self._session, task_id)

    async def _do(self, step: Step) -> Answer | None:
        if isinstance(step, Pause):
            await anyio.sleep(step.seconds)
            return None
        if self._lines is None:
            self._lines = anyio.CapacityLimiter(CALLS), anyio.CapacityLimiter(WAITERS)
        async with self._lines[step.extra > 0]:
            return await self._send(step)

    async def _send(self, step: Request) -> Answer:
        seconds = self._settings.seconds(step)
        with _translated(self._settings.base_url, seconds), anyio.move_on_after(seconds):
            response = await self._http.send(self._settings.whole(self._http, step))
            return Answer(response.status_code, response.headers, response.content)
        raise _late(self._settings.base_url, seconds)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncClient {self._settings.base_url}>"
