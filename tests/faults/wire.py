"""A small HTTP client on Trio that knows the one thing that matters here: whether a request was sent."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

import trio

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
IDLE_LIMIT = 10.0
"""Seconds after which an idle connection is not used again: the node closes it after 15."""


class NotSentError(Exception):
    """Nobody listens: the node cannot have heard of it."""


class LostError(Exception):
    """The connection died before the answer: what the node did is unknown."""


class Requests(Protocol):
    """What asks a node, or some node."""

    async def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded body. Raises NotSentError, LostError."""
        ...


class _Link:
    def __init__(self, stream: trio.SocketStream, generation: int) -> None:
        self.stream = stream
        self.generation = generation
        self.used_at = trio.current_time()

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        await self.stream.send_all(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += await self._more()
        head, _, content = received.partition(b"\r\n\r\n")
        found = _LENGTH.search(head + b"\r\n")
        length = int(found[1]) if found else 0
        while len(content) < length:
            content += await self._more()
        self.used_at = trio.current_time()
        return int(head[9:12]), content

    async def _more(self) -> bytes:
        part = await self.stream.receive_some(65536)
        if not part:
            raise trio.BrokenResourceError("closed by the node")
        return bytes(part)


class Wire:
    """Keep-alive connections to one port, where nodes come and go."""

    def __init__(self, port: int, timeout: float = 30.0) -> None:
        self.port = port
        self._timeout = timeout
        self._idle: list[_Link] = []
        self._generation = 0

    def node_died(self) -> None:
        """Forget the connections of the node that was there."""
        self._generation += 1

    async def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded body. Raises NotSentError, LostError."""
        link = await self._link()
        answered = False
        try:
            with trio.fail_after(self._timeout):
                status, content = await link.exchange(_request(method, path, body, headers))
            answered = True
            return status, json.loads(content) if content else None
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, ValueError) as error:
            raise LostError(f"{method} {path}: {error!r}") from error
        finally:
            if answered:
                self._idle.append(link)
            else:
                await trio.aclose_forcefully(link.stream)

    async def _link(self) -> _Link:
        oldest = trio.current_time() - IDLE_LIMIT
        while self._idle:
            link = self._idle.pop()
            if link.generation == self._generation and link.used_at > oldest:
                return link
            await trio.aclose_forcefully(link.stream)
        generation = self._generation
        try:
            return _Link(await trio.open_tcp_stream("127.0.0.1", self.port), generation)
        except OSError as error:
            raise NotSentError(str(error)) from error

    async def aclose(self) -> None:
        while self._idle:
            await trio.aclose_forcefully(self._idle.pop().stream)


def _request(method: str, path: str, body: object, headers: dict[str, str]) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in headers.items())]
    if content:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content
