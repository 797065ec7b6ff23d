"""A wake-up that is remembered: set many times, it wakes its one waiter once."""

from __future__ import annotations

import trio


class Flag:
    """Setting is remembered until somebody has waited for it. For one waiter at a time."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: trio.Event | None = None

    def set(self) -> None:
        self._set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Return when the flag is set, and clear it."""
        if self._set:
            await trio.lowlevel.checkpoint()
        else:
            self._event = trio.Event()
            try:
                await self._event.wait()
            finally:
                self._event = None
        self._set = False
