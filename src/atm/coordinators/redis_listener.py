"""Hears Redis' channels, over a connection of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from atm.coordinators.redis_wire import Away, Ear
from atm.flag import Flag

RECONNECT_PAUSE = (0.05, 1.0)
"""Seconds between two tries: the first pause, and the longest."""

SILENCE = 1.0
"""Seconds without a message after which the server is asked whether it is there; so long may its answer take."""


_Handlers = tuple[Callable[[bytes], None], Callable[[], None]]


class Listener:
    """Calls handlers with what comes by their channels.

    Args:
        ear: the connection.
        prefix: stands before the names of all channels.
        failed: is told when no messages come any more.
    """

    def __init__(self, ear: Ear, prefix: str, failed: Callable[[], None]) -> None:
        self._ear = ear
        self._prefix = prefix
        self._failed = failed
        self._handlers: dict[str, _Handlers] = {}
        self._to_say = Flag()
        self._is_silent = False

    def hear(
        self, channel: str, handler: Callable[[bytes], None], subscribed: Callable[[], None] = lambda: None
    ) -> None:
        """Call ``handler`` with each message on the channel.

        Args:
            subscribed: is called whenever messages begin to come; what was said before is lost.
        """
        self._handlers = {**self._handlers, channel: (handler, subscribed)}
        self._to_say.set()

    def leave(self, channel: str) -> None:
        self._handlers = {name: handlers for name, handlers in self._handlers.items() if name != channel}
        self._to_say.set()

    async def serve(self) -> None:
        """Hear, until cancelled."""
        pause, longest = RECONNECT_PAUSE
        while True:
            began = trio.current_time()
            try:
                await self._serve_once()
            finally:
                self._ear.close()
            self._failed()
            if trio.current_time() - began > longest:
                pause = RECONNECT_PAUSE[0]
            await trio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _serve_once(self) -> None:
        """Until no messages come any more."""
        self._is_silent = False
        self._to_say.set()
        async with trio.open_nursery() as nursery:

            async def until_away(part: Callable[[], Awaitable[None]]) -> None:
                with suppress(Away):
                    await part()
                nursery.cancel_scope.cancel()

            with suppress(Away):
                await self._ear.connect()
                nursery.start_soon(until_away, self._speak)
                nursery.start_soon(until_away, self._listen)

    async def _speak(self) -> None:
        """Subscribe to what is wanted; again where there are new handlers, which wait for the answer."""
        heard: dict[str, _Handlers] = {}
        while True:
            await self._to_say.wait()
            wanted = self._handlers
            new = [channel for channel, handlers in wanted.items() if heard.get(channel) is not handlers]
            old = heard.keys() - wanted.keys()
            if new:
                await self._ear.say("SUBSCRIBE", *(self._prefix + channel for channel in new))
            if old:
                await self._ear.say("UNSUBSCRIBE", *(self._prefix + channel for channel in old))
            if self._is_silent:
                await self._ear.say("PING")
            heard = wanted

    async def _listen(self) -> None:
        while True:
            with trio.move_on_after(SILENCE) as patience:
                message = await self._ear.hear()
            if not patience.cancelled_caught:
                self._is_silent = False
                self._receive(message)
            elif self._is_silent:
                raise Away("the server is silent")
            else:
                self._is_silent = True
                self._to_say.set()

    def _receive(self, message: list[bytes]) -> None:
        kind, channel = message[0], message[1].decode().removeprefix(self._prefix)
        if channel not in self._handlers:
            return
        deliver, begin = self._handlers[channel]
        if kind == b"message":
            deliver(message[2])
        elif kind == b"subscribe":
            begin()
