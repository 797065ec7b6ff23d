"""Serving ASGI applications: own sockets for clear errors, hypercorn for HTTP."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as hypercorn_serve

from atm.api.answer import BAD_METHOD, NO_ROUTE, error_body
from atm.api.guard import AsgiApp, Guard, Receive, Scope, Send
from atm.errors import StartError
from atm.metrics import Metrics

logger = logging.getLogger("atm.http")
logger.setLevel(logging.WARNING)  # its "Running on" lines are the banner's business

BACKLOG = 1024
IN_FLIGHT_PATIENCE = 3.0
"""Seconds that requests under way get when the server stops."""

IDLE_TIMEOUT = 15.0
"""Seconds after which an idle connection, or one that sends its headers too slowly, is closed."""

REQUESTS_PER_CONNECTION = 100_000


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
    """A service: ``app`` on ``sock`` until told to stop."""

    def __init__(self, app: AsgiApp, sock: socket.socket, allowed_hosts: Iterable[str] = ()) -> None:
        self._app = Guard(app, allowed_hosts)
        self._sock = sock

    async def __call__(
        self,
        *,
        stop: Callable[[], Awaitable[Any]],
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        config = Config()
        # Hypercorn makes the descriptor its own and closes it.
        config.bind = [f"fd://{os.dup(self._sock.fileno())}"]
        config.graceful_timeout = IN_FLIGHT_PATIENCE
        config.keep_alive_timeout = IDLE_TIMEOUT
        config.keep_alive_max_requests = REQUESTS_PER_CONNECTION
        config.alpn_protocols = ["http/1.1"]
        config.include_server_header = False
        config.errorlog = logger
        await hypercorn_serve(
            cast("Any", self._app), config, shutdown_trigger=stop, task_status=task_status, mode="asgi"
        )


def metrics_app(metrics: Metrics) -> AsgiApp:
    """GET /metrics, nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        kind = b"application/json"
        if scope["path"] != "/metrics":
            status, content = 404, error_body(NO_ROUTE, "only /metrics is here")
        elif scope["method"] not in ("GET", "HEAD"):
            status, content = 405, error_body(BAD_METHOD, "only GET is served")
        else:
            status, content = 200, metrics.render()
            kind = b"text/plain; version=0.0.4; charset=utf-8"
        headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
