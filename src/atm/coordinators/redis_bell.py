"""What wakes the leader for a look at the queues.

A script that changes what a look would see is told whether its node leads. If so it answers 1, and the node wakes
itself; else it rings over a channel, once until the leader looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from atm.coordinator import Hint
from atm.coordinators.redis_link import Link, Request
from atm.coordinators.redis_words import says
from atm.flag import Flag


class Bell:
    """Says to Redis what may wake the leader.

    Args:
        leads: whether this node leads.

    Attributes:
        rung: is set when this node, which leads, should dispatch.
        looks: how many looks have begun.
        slots_were_short: at the last look, for what waits.
    """

    def __init__(self, link: Link, leads: Callable[[], bool]) -> None:
        self.rung = Flag()
        self.leads = leads
        self.looks = 0
        self.slots_were_short = False
        self._link = link
        self._pushed: list[Hint] = []
        self._is_in_doubt = True

    def ring(self) -> None:
        """Something may have changed: this node, if it leads, should look."""
        self.doubt()
        self.rung.set()

    def doubt(self) -> None:
        """What this node saw last does not hold any more: the next dispatch has to look."""
        self._is_in_doubt = True

    def ring_for(self, hints: Iterable[Hint]) -> None:
        """These were pushed, to be run now."""
        self._pushed += hints
        self.rung.set()

    def pushed(self) -> list[Hint]:
        """What was pushed here since the last look or call of this; nothing if there is more to see than that."""
        pushed, self._pushed = self._pushed, []
        is_in_doubt, self._is_in_doubt = self._is_in_doubt, False
        return [] if is_in_doubt else pushed

    def begin_look(self) -> None:
        """What was pushed before is seen by it."""
        self.looks += 1
        self._pushed.clear()

    def tell(self, name: str, **document: object) -> None:
        """Have the script of this name run, or lose it."""
        self.post(says(name, **document, leads=self.leads()))

    def post(self, request: Request) -> None:
        self._link.post(request, told=self.news())

    def news(self) -> Callable[[int], None]:
        """Hears the answer of a script that is about to be sent: 1 if this node, which leads, should look."""
        return partial(self._heard, self.looks)

    def _heard(self, looks: int, answer: int) -> None:
        # What was sent later has seen it.
        if answer == 1 and self.looks == looks:
            self.ring()

    def slots_are_freed(self) -> None:
        """What waits goes into them now: the look comes in the same trip as the word of them."""
        if self.slots_were_short and self.leads():
            self.ring()
