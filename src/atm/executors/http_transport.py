"""One request over one connection of its own, made to addresses that were chosen before.

No pool: what was said to one host is not reused for another that shares its address, and when a run ends
nothing of it is left. The name stays in the Host header and is what the certificate is checked against.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import httpcore
import httpx
import trio

from atm.errors import leaf_of

CONNECT_LIMIT = 10.0
"""Seconds that all addresses together have to take the connection, and again for the TLS handshake after it."""

LEAST_LIMIT = 2.0
"""Seconds that each address has, however many there are."""


class Broken(Exception):
    """The exchange failed; the message says why, and tells nothing of what was sent or received."""


class Enough(Exception):
    """Ends the reading of a response that nobody wants more of."""


class PinnedTransport(httpx.AsyncBaseTransport):
    """Carries one request. Closed, it has no connection open.

    Args:
        addresses: are tried in turn, whatever the name of the request's host is.
        tls: for https.
    """

    def __init__(self, addresses: Sequence[str], tls: ssl.SSLContext | None) -> None:
        self._backend = _PinnedBackend(addresses)
        self._tls = tls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the response's body is still to be read. Raises Broken."""
        url = request.url
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        connection = httpcore.AsyncHTTPConnection(
            target.origin, ssl_context=self._tls, network_backend=self._backend
        )
        given = httpcore.Request(
            request.method,
            target,
            headers=request.headers.raw,
            content=_Content(request.content),
            extensions={"sni_hostname": url.raw_host.decode("ascii").rstrip(".")},
        )
        try:
            response = await connection.handle_async_request(given)
        except _FAILURES as error:
            raise Broken(_reason_of(error)) from None
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response.stream))

    def stop_reading(self) -> None:
        """Whoever reads the body next gets Enough, after what has arrived already.

        To leave a loop over the body is no way to end it: the generators in it would be found by the garbage
        collector.
        """
        self._backend.has_enough = True

    async def aclose(self) -> None:
        """Close the connection, at once and without a goodbye. Is no checkpoint."""
        self._backend.close()


_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    OSError,
    trio.BrokenResourceError,
    trio.TooSlowError,
)


def _reason_of(error: BaseException) -> str:
    """Why the exchange failed, in words that hold neither addresses nor anything of the request."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {current.verify_message}"
        if isinstance(current, ssl.SSLError):
            return f"no TLS connection: {current.reason or 'the handshake failed'}"
        if isinstance(current, trio.TooSlowError):
            return "it did not take the connection in time"
        if isinstance(current, OSError) and current.errno is not None:
            return os.strerror(current.errno).lower()
        if isinstance(current, httpcore.RemoteProtocolError):
            return "the connection ended early, or what came over it was not HTTP"
        # Trio tells of the attempts that failed in a group.
        current = current.__cause__ and (leaf_of(current.__cause__, OSError) or current.__cause__)
    return "the connection broke"


class _Content:
    """A request's body in one piece. No generator, for those that are left in the middle complain."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __aiter__(self) -> _Content:
        return self

    async def __anext__(self) -> bytes:
        data, self._data = self._data, b""
        if not data:
            raise StopAsyncIteration
        return data


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except _FAILURES as error:
            raise Broken(_reason_of(error)) from None


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the given addresses, and knows each socket that it has opened."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._sockets: list[trio.socket.SocketType] = []
        self.has_enough = False

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = OSError("no address")
        limit = max(LEAST_LIMIT, CONNECT_LIMIT / len(self._addresses))
        for address in self._addresses:
            try:
                with trio.fail_after(limit):
                    stream = await trio.open_tcp_stream(address, port)
            except (OSError, trio.TooSlowError) as error:
                failure = error
            else:
                self._sockets.append(stream.socket)
                return _Line(stream, self)
        raise failure

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


class _Line(httpcore.AsyncNetworkStream):
    def __init__(self, stream: trio.abc.Stream, backend: _PinnedBackend) -> None:
        self._stream = stream
        self._backend = backend

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._backend.has_enough:
            raise Enough
        return bytes(await self._stream.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await self._stream.send_all(buffer)
        except trio.BrokenResourceError as error:
            # A server that refuses a large body may have said so already; it is read next.
            raise httpcore.WriteError from error

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        secured = trio.SSLStream(self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True)
        with trio.fail_after(CONNECT_LIMIT):
            await secured.do_handshake()
        return _Line(secured, self._backend)

    async def aclose(self) -> None:
        self._backend.close()
