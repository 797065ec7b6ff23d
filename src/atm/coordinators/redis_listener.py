"""Hears Redis' channels, in a thread of its own with a connection of its own."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from functools import partial

import trio

from atm.coordinators.redis_wire import Away, Wire

RECONNECT_PAUSE = (0.05, 1.0)
"""Seconds between two tries: the first pause, and the longest."""

SILENCE = 1.0
"""Seconds without a message after which the server is asked whether it is there; so long may its answer take."""


_Handlers = tuple[Callable[[bytes], None], Callable[[], None]]


class Listener:
    """Calls handlers in the loop with what comes by their channels.

    Args:
        connect: makes a connection.
        nudge: has an empty message sent to the channel ``own``: the thread waits for messages alone.
        failed: is told in the loop when no messages come any more.
    """

    def __init__(self, connect: Callable[[], Wire], nudge: Callable[[], None], failed: Callable[[], None]) -> None:
        self._connect = connect
        self._nudge = nudge
        self._failed = failed
        self.own = f"bye:{uuid.uuid4().hex}"
        nothing: _Handlers = (lambda _: None, lambda: None)
        self._handlers: dict[str, _Handlers] = {self.own: nothing}
        self._ending = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the thread until ``end``, or until cancelled: then up to SILENCE longer."""
        self._token = trio.lowlevel.current_trio_token()
        task_status.started()
        try:
            await trio.to_thread.run_sync(self._run, limiter=trio.CapacityLimiter(1))
        finally:
            self.end()

    def end(self) -> None:
        """From any thread: hear no more after the next message."""
        self._ending.set()

    def hear(
        self, channel: str, handler: Callable[[bytes], None], subscribed: Callable[[], None] = lambda: None
    ) -> None:
        """Call ``handler`` in the loop with each message on the channel.

        Args:
            subscribed: is called in the loop whenever messages begin to come; what was said before is lost.
        """
        self._handlers = {**self._handlers, channel: (handler, subscribed)}
        self._nudge()

    def leave(self, channel: str) -> None:
        self._handlers = {name: handlers for name, handlers in self._handlers.items() if name != channel}
        self._nudge()

    # in the thread

    def _run(self) -> None:
        pause, longest = RECONNECT_PAUSE
        while not self._ending.is_set():
            wire = self._connect()
            began = time.monotonic()
            try:
                self._listen(wire)
            except Away:
                self._in_loop(self._failed)
            finally:
                wire.close()
            if time.monotonic() - began > longest:
                pause = RECONNECT_PAUSE[0]
            self._ending.wait(pause)
            pause = min(pause * 2, longest)

    def _listen(self, wire: Wire) -> None:
        heard: dict[str, _Handlers] = {}
        asked = False
        while not self._ending.is_set():
            heard = self._adjust(wire, heard)
            message = wire.hear(SILENCE)
            if message is not None:
                self._receive(wire, message)
                asked = False
            elif asked:
                raise Away("the server is silent")
            else:
                wire.say("PING")
                asked = True

    def _adjust(self, wire: Wire, heard: dict[str, _Handlers]) -> dict[str, _Handlers]:
        """Subscribe to what is wanted now; again where there are new handlers, which wait for the answer."""
        wanted = self._handlers
        new = [channel for channel, handlers in wanted.items() if heard.get(channel) is not handlers]
        old = heard.keys() - wanted.keys()
        if new:
            wire.say("SUBSCRIBE", *(wire.prefix + channel for channel in new))
        if old:
            wire.say("UNSUBSCRIBE", *(wire.prefix + channel for channel in old))
        return wanted

    def _receive(self, wire: Wire, message: list[bytes]) -> None:
        kind, channel = message[0], message[1].decode().removeprefix(wire.prefix)
        if kind == b"message":
            self._in_loop(partial(self._deliver, channel, message[2]))
        elif kind == b"subscribe":
            self._in_loop(partial(self._begin, channel))

    def _in_loop(self, do: Callable[[], object]) -> None:
        assert self._token is not None
        self._token.run_sync_soon(do)

    # in the loop

    def _deliver(self, channel: str, data: bytes) -> None:
        if channel in self._handlers:
            self._handlers[channel][0](data)

    def _begin(self, channel: str) -> None:
        if channel in self._handlers:
            self._handlers[channel][1]()
