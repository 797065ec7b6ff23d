"""A worker's slots: who runs has one, who waits for a child lends it.

A run that goes on takes the next slot that becomes free, before any new task; until then it counts as if it had
one, so that the leader hands over nothing for it. Who holds a slot never waits for one: there is no deadlock.
"""

from __future__ import annotations

from collections import deque

import trio


class Slots:
    """Counts them; for one loop.

    Attributes:
        runs: executors that have not ended, with a slot or without.
    """

    def __init__(self, capacity: int) -> None:
        self.runs = 0
        self._capacity = capacity
        self._lent = 0
        self._returning: deque[trio.Event] = deque()

    @property
    def load(self) -> int:
        """Slots that are taken, or waited for."""
        taken = self.runs - self._lent
        return taken if not self._returning else max(taken, min(self._capacity, taken + len(self._returning)))

    def take(self) -> None:
        """A run begins."""
        self.runs += 1

    def leave(self) -> None:
        """A run that has a slot ends."""
        self.runs -= 1
        self._pass_on()

    def lend(self) -> None:
        """A run waits for a child."""
        self._lent += 1
        self._pass_on()

    def take_back(self) -> None:
        """It goes on at once, to end: one slot more than there are may be taken while it cleans up."""
        self._lent -= 1

    async def go_on(self) -> None:
        """It goes on; waits for a slot. Whether that ends well or is cancelled, it has one."""
        if not self._returning and self.runs - self._lent < self._capacity:
            self._lent -= 1
            await trio.lowlevel.checkpoint()
            return
        turn = trio.Event()
        self._returning.append(turn)
        try:
            await turn.wait()
        finally:
            if not turn.is_set():
                self._returning.remove(turn)
                self._lent -= 1

    def _pass_on(self) -> None:
        while self._returning and self.runs - self._lent < self._capacity:
            self._lent -= 1
            self._returning.popleft().set()
