"""Refuses what a web page of another site makes a browser send: Host and Origin checks, on every request.

The Host check ends DNS rebinding, the Origin check cross-site requests. Plain ASGI, so that it costs little
and covers whatever is served behind it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from atm.api.answer import UNAUTHORISED_HOST, UNAUTHORISED_ORIGIN, error_body

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        allowed_hosts: names, beside those of loopback, under which the node may be called.
    """

    def __init__(self, app: AsgiApp, allowed_hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None and scope["type"] == "http":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            assert refusal is not None
            await _refuse(send, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        host = origin = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1").lower()
            elif name == b"origin":
                origin = value.decode("latin-1").lower()
            elif name == b"sec-fetch-site":
                site = value
        if host is not None and _name(host) not in self._hosts:
            return UNAUTHORISED_HOST, "the Host header names no host of this node (server.allowed_hosts)"
        if site is not None and site not in (b"same-origin", b"none"):
            return UNAUTHORISED_ORIGIN, "requests from pages of other sites are refused"
        if origin is not None and origin.partition("://")[2] != (host or ""):
            return UNAUTHORISED_ORIGIN, "requests from pages of other origins are refused"
        return None


def _name(host: str) -> str:
    """The host without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


async def _refuse(send: Send, code: int, message: str) -> None:
    body = error_body(code, message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": code // 100, "headers": headers})
    await send({"type": "http.response.body", "body": body})
