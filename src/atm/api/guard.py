"""Refuses what a web page of another site makes a browser send, and whoever lacks a key: on every request.

The Host check ends DNS rebinding, the Origin check cross-site requests; the keys are checked last. Plain ASGI,
so that it costs little and covers whatever is served behind it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote

from atm.api.answer import BAD_REQUEST, NO_KEY, UNAUTHORISED_HOST, UNAUTHORISED_ORIGIN, error_body
from atm.api.keys import Keys
from atm.config import ApiKey

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

AT_ONCE = "atm.answer"
"""An ASGI extension of our server: an async function of status, Headers and content that sends them in one go."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/?#@]*)(:[0-9]*)?")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?|\[[0-9a-f:.]+\]")
"""What can be the name of a host at all; the application behind fails on others."""

_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/[^?#]*)?", re.IGNORECASE)

Refusal = tuple[int, str]


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        allowed_hosts: names and addresses, beside those of loopback, under which the node may be called;
            None: any name.
        keys: of which a request must show one; without any, none is asked for.
    """

    def __init__(
        self, app: AsgiApp, allowed_hosts: Iterable[str] | None = (), keys: Iterable[ApiKey] = ()
    ) -> None:
        self._app = app
        self._names: frozenset[str] | None = None
        if allowed_hosts is not None:
            self._names = LOOPBACK_NAMES | {_bracketed(host.lower()) for host in allowed_hosts}
        self._keys = Keys(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refuse(send, *refusal)

    def _refusal(self, scope: Scope) -> Refusal | None:
        host = origin = site = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1").lower()
            elif name == b"origin":
                origin = value.decode("latin-1").lower()
            elif name == b"sec-fetch-site":
                site = value
        if not scope["raw_path"].startswith(b"/"):
            # RFC 9112, section 3.2.2: a target with a host of its own is as good as one, and counts more.
            absolute = _ABSOLUTE.fullmatch(scope["raw_path"])
            if absolute is None:
                return BAD_REQUEST, "the request's target must be a path"
            host = absolute[1].decode("latin-1").lower()
            scope["raw_path"] = absolute[2] or b"/"
            scope["path"] = unquote(scope["raw_path"].decode("latin-1"))
        if host is not None and not self._is_mine(host):
            return UNAUTHORISED_HOST, "the Host header names no host of this node (server.allowed_hosts)"
        if site is not None and site not in (b"same-origin", b"none"):
            return UNAUTHORISED_ORIGIN, "requests from pages of other sites are refused"
        if origin is not None and (host is None or origin.partition("://")[2] != host):
            return UNAUTHORISED_ORIGIN, "requests from pages of other origins are refused"
        return self._keys.refusal(scope["method"], scope["path"], scope["headers"]) if self._keys else None

    def _is_mine(self, host: str) -> bool:
        authority = _AUTHORITY.fullmatch(host)
        if authority is None:
            return False
        return authority[1] in self._names if self._names is not None else bool(_NAME.fullmatch(authority[1]))


def _bracketed(host: str) -> str:
    """An IPv6 address as a Host header shows it."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


async def refuse(send: Send, code: int, message: str) -> None:
    """Answer with the error envelope."""
    body = error_body(code, message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if code == NO_KEY:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": code // 100, "headers": headers})
    await send({"type": "http.response.body", "body": body})
