"""Serving ASGI applications: own sockets for clear errors, own connections around hypercorn's HTTP/1.1.

Hypercorn's own connections do not stand up to everything that a client may send: a malformed header of an
upgrade ends the whole server, an answer given before the body has come leaves the connection hanging, and a
client that reads nothing cannot be cancelled. What it knows of HTTP and ASGI is used as it is.
"""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import socket
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Request, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, H11SendableEvent
from hypercorn.utils import UnexpectedMessageError

from atm.api.answer import BAD_METHOD, BAD_REQUEST, HEAD_TOO_LARGE, INTERNAL, NO_ROUTE, error_body
from atm.api.guard import AT_ONCE, AsgiApp, Guard, Headers, Message, Receive, Scope, Send, refuse
from atm.api.inbox import Inbox
from atm.config import ApiKey
from atm.errors import StartError
from atm.metrics import Metrics

logger = logging.getLogger("atm.http")

BACKLOG = 1024
IN_FLIGHT_PATIENCE = 3.0
"""Seconds that requests under way get when the server stops."""

IDLE_TIMEOUT = 15.0
"""Seconds after which an idle connection, or one that sends its headers too slowly, is closed."""

WRITE_TIMEOUT = 15.0
"""Seconds within which a client has to take some part of its answer."""

LINGER = 5.0
LINGER_SIZE = 64 * 1024 * 1024
"""Seconds, and bytes, that the rest of a body may take whose request has been answered already."""

REQUESTS_PER_CONNECTION = 100_000
RECEIVE_SIZE = 64 * 1024
SEND_SIZE = 256 * 1024
"""Bytes."""


def bind(host: str, port: int, key: str) -> socket.socket:
    """A listening socket. Raises StartError, naming the setting ``key``."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise StartError(f"{key}: cannot use host {host}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise StartError(f"{key}: cannot listen on {host} port {port}: {(error.strerror or '').lower()}") from None
    return sock


def url_of(sock: socket.socket) -> str:
    """The URL of what is served on this socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """A service: ``app`` on ``sock``, behind a Guard, until told to stop; the socket is closed then."""

    def __init__(
        self,
        app: AsgiApp,
        sock: socket.socket,
        allowed_hosts: Iterable[str] | None = (),
        keys: Iterable[ApiKey] = (),
    ) -> None:
        self._app = Guard(app, allowed_hosts, keys)
        self._sock = sock
        self._config = Config()
        self._config.keep_alive_max_requests = REQUESTS_PER_CONNECTION
        self._config.include_server_header = False
        self._config.errorlog = logger
        self._context = WorkerContext(None)
        self._open: set[_Connection] = set()
        # Descriptors are also for the store, the executors, the logs, and a second server.
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = math.inf if descriptors == resource.RLIM_INFINITY else descriptors // 3

    async def __call__(
        self,
        *,
        stop: Callable[[], Awaitable[Any]],
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._sock))
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                listen = partial(trio.serve_listeners, handler_nursery=connections)
                await accepting.start(listen, self._serve, [listener])
                task_status.started()
                await stop()
                accepting.cancel_scope.cancel()
            await self._context.terminated.set()
            for connection in self._open:
                connection.stop()
            connections.cancel_scope.deadline = trio.current_time() + IN_FLIGHT_PATIENCE

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = _Connection(self._app, self._config, self._context, stream)
        try:
            if len(self._open) < self._limit:
                self._open.add(connection)
                await connection.run()
        except Exception:
            logger.exception("connection given up")
        finally:
            self._open.discard(connection)
            await trio.aclose_forcefully(stream)


class _Connection:
    """One client: its bytes to the protocol, the protocol's bytes back, its requests to the application."""

    def __init__(self, app: AsgiApp, config: Config, context: WorkerContext, stream: trio.SocketStream) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._stream = stream
        self._reading = trio.CancelScope(deadline=trio.current_time() + IDLE_TIMEOUT)
        self._idle = True
        self._client_is_there = True

    async def run(self) -> None:
        """Serve until one of the two sides has had enough."""
        try:
            client, server = self._stream.socket.getpeername()[:2], self._stream.socket.getsockname()[:2]
        except OSError:
            return  # it is gone already
        async with trio.open_nursery() as self._requests:
            self._protocol = protocol = _Protocol(
                cast("Any", self._app),
                self._config,
                self._context,
                cast("Any", self),
                ConnectionState({}),
                False,
                client,
                server,
                self._handle,
            )
            with self._reading:
                await self._read(protocol)
            await protocol.handle(Closed())
            # Nobody is left to be answered.
            self._requests.cancel_scope.cancel()
        if self._client_is_there and protocol.connection.their_state in (h11.SEND_BODY, h11.ERROR):
            await self._linger()

    async def _read(self, protocol: H11Protocol) -> None:
        while self._client_is_there:
            try:
                data = bytes(await self._stream.receive_some(RECEIVE_SIZE))
            except trio.BrokenResourceError:
                data = b""
            self._client_is_there = data != b""
            await protocol.handle(RawData(data))

    async def _linger(self) -> None:
        """Drop what is still being sent: to close with unread data would reset the connection under the answer."""
        left = LINGER_SIZE
        with trio.move_on_after(LINGER), contextlib.suppress(trio.BrokenResourceError):
            await self._stream.send_eof()
            while left > 0 and (data := await self._stream.receive_some(RECEIVE_SIZE)):
                left -= len(data)

    def stop(self) -> None:
        """Close it now if no request is under way; else the protocol does so after the answer."""
        if self._idle:
            self._reading.cancel()

    async def _handle(self, event: Event) -> None:
        """What the protocol wants to be done. Nothing but a write waits, so nothing else can be cut short."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            self._idle = event.idle
            self._reading.deadline = trio.current_time() + IDLE_TIMEOUT if event.idle else math.inf
        else:
            self._reading.cancel()

    async def _write(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), SEND_SIZE):
                with trio.fail_after(WRITE_TIMEOUT):
                    await self._stream.send_all(data[start : start + SEND_SIZE])
        except (trio.BrokenResourceError, trio.BusyResourceError, trio.TooSlowError):
            self._client_is_there = False
            self._reading.cancel()

    async def spawn_app(
        self, app: object, config: object, scope: object, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        """Have the application answer a request (hypercorn's interface). Returns what takes the request's body."""
        inbox = Inbox()
        request = cast("Scope", scope)
        request["extensions"][AT_ONCE] = partial(self._protocol.answer, cast("HTTPStream", self._protocol.stream))

        async def answer() -> None:
            with contextlib.closing(inbox):
                try:
                    await self._app(request, inbox, send)
                except Exception:
                    if inbox.is_over:
                        return  # Quart tells so that its client has left
                    logger.exception("request failed")
                    with contextlib.suppress(UnexpectedMessageError):  # a part of an answer is out already
                        await refuse(send, INTERNAL, "internal error; the log has more")
            await send(None)

        self._requests.start_soon(answer)
        return inbox.put


class _Protocol(H11Protocol):
    """Hypercorn's HTTP/1.1, without a way to other protocols, and with our envelope where it refuses by itself."""

    _head = b""

    async def _check_protocol(self, event: h11.Request) -> None:
        """No HTTP/2; RFC 9110, section 7.8: a server may ignore what a client wants to upgrade to."""

    async def _create_stream(self, request: h11.Request) -> None:
        """As above: no websocket either."""
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def answer(self, stream: HTTPStream, status: int, headers: Headers, content: bytes) -> None:
        """Answer the stream's request in one go, past what ASGI's messages are checked and turned into."""
        if stream.closed:
            return
        stream.state = ASGIHTTPState.CLOSED
        headers += self.config.response_headers("h11")
        if self.keep_alive_requests >= self.config.keep_alive_max_requests:
            headers.append((b"connection", b"close"))
        await self._send_h11_event(h11.Response(status_code=status, headers=headers))
        await self._send_h11_event(h11.Data(data=content))
        await self._send_h11_event(h11.EndOfMessage())
        await self.stream_send(StreamClosed(stream_id=STREAM_ID))

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """The head of an answer leaves together with what follows it; it tells if the connection will close."""
        if isinstance(event, h11.Response) and self._is_last():
            headers = [*event.headers, (b"connection", b"close")]
            event = h11.Response(status_code=event.status_code, headers=headers)
        try:
            data = self._head + self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        self._head = data if isinstance(event, h11.Response) else b""
        if data and not self._head:
            await self.send(RawData(data=data))

    def _is_last(self) -> bool:
        """Whether this answer must be the connection's last: the body is still coming, or the server stops."""
        they = self.connection.their_state
        return they is h11.SEND_BODY or (they is h11.DONE and self.context.terminated.is_set())

    async def _send_error_response(self, status_code: int) -> None:
        code, message = BAD_REQUEST, "the request is not HTTP/1.1 as it should be"
        if status_code == HEAD_TOO_LARGE // 100:
            code, message = HEAD_TOO_LARGE, "the request's head is too large"
        # Any other is the same to us: h11 has 501 for an unknown Transfer-Encoding, but the request is at fault.
        content = error_body(code, message)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=code // 100, headers=headers))
        await self._send_h11_event(h11.Data(data=content))
        await self._send_h11_event(h11.EndOfMessage())


def metrics_app(metrics: Metrics) -> AsgiApp:
    """GET /metrics, nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kind = b"application/json"
        headers: list[tuple[bytes, bytes]] = []
        if scope["path"] != "/metrics":
            status, content = 404, error_body(NO_ROUTE, "only /metrics is here")
        elif scope["method"] not in ("GET", "HEAD"):
            status, content = 405, error_body(BAD_METHOD, "only GET is served")
            headers.append((b"allow", b"GET, HEAD"))
        else:
            status, content = 200, await metrics.render()
            kind = b"text/plain; version=0.0.4; charset=utf-8"
        headers += [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return app
