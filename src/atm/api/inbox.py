"""What a client sends for one request: ASGI's ``receive``, and a way to see that all of it has come."""

from __future__ import annotations

import contextlib
from collections import deque

import trio

from atm.api.guard import Message

PARTS = 10
"""Parts of a body that wait for the application, at the most."""


class Inbox:
    """The server puts messages in, the application takes them out.

    Attributes:
        is_over: the exchange has ended, or the client has left.
    """

    def __init__(self) -> None:
        self._into, self._out = trio.open_memory_channel[Message](PARTS)
        self._taken: deque[Message] = deque()
        self.is_over = False

    async def put(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.is_over = True
            self._into.close()
            return
        # Once it is answered nobody wants the rest of a body.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            try:
                self._into.send_nowait(message)  # spares the loop a round
            except trio.WouldBlock:
                await self._into.send(message)

    async def __call__(self) -> Message:
        if self._taken:
            return self._taken.popleft()
        try:
            try:
                return self._out.receive_nowait()
            except trio.WouldBlock:
                return await self._out.receive()
        except trio.EndOfChannel:
            return {"type": "http.disconnect"}

    def whole_body(self) -> bytes | None:
        """The body if all of it is here, else None; nothing is taken out."""
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while not self._taken or self._taken[-1]["more_body"]:
                self._taken.append(self._out.receive_nowait())
            return b"".join(part["body"] for part in self._taken)
        return None

    def close(self) -> None:
        self._into.close()
        self._out.close()
