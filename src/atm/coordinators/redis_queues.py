"""What the queues hold: pushing, withdrawing, the sweep's look for what is missing, rebuilding, the overview."""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from atm.coordinator import Hint, Overview
from atm.coordinators.redis_bell import Bell
from atm.coordinators.redis_link import Link, Request
from atm.coordinators.redis_terms import Terms
from atm.coordinators.redis_wire import SCRIPTS
from atm.coordinators.redis_words import encode, overview_of, says, written
from atm.lane import TURNS

JAM_PATIENCE = 0.5
"""Seconds that a push waits while too much waits already."""

PAGE = 1000

SENDING_TURNS = TURNS + 2
"""Of the loop: what was posted has been sent, if nothing was under way."""


class Queues:
    """The verbs of the coordinator that fill the queues, and look at them."""

    def __init__(self, link: Link, terms: Terms, bell: Bell) -> None:
        self._link = link
        self._terms = terms
        self._bell = bell
        self._losses_before_rebuild = 0
        # One object each, so that those in a row are merged.
        self._push = Request(SCRIPTS["push"], self._pushed)
        self._withdraw = Request(SCRIPTS["withdraw"], lambda hints: (encode({"hints": [*map(written, hints)]}),))

    async def push(self, hints: Sequence[Hint]) -> None:
        # If there may be slots for them the look comes in the same trip.
        looks = self._bell.leads() and not self._bell.slots_were_short and any(hint.delay <= 0 for hint in hints)
        for start in range(0, len(hints), PAGE):
            if self._link.is_jammed:
                with trio.move_on_after(JAM_PATIENCE):
                    await self._link.flush()
            told = None if looks else self._bell.news()
            self._link.post(self._push, hints[start : start + PAGE], told=told)
        if looks:
            self._bell.ring_for(hint for hint in hints if hint.delay <= 0)
        # So that it is sent before the caller goes on, with a long answer say.
        for _ in range(SENDING_TURNS):
            await trio.lowlevel.checkpoint()

    def _pushed(self, hints: Sequence[Hint]) -> tuple[bytes, ...]:
        now: dict[str, list[str]] = {}
        later: dict[str, int] = {}
        for hint in hints:
            if hint.delay > 0:
                text, delay = written(hint), math.ceil(hint.delay * 1000)
                later[text] = min(delay, later.get(text, delay))
            else:
                _add(hint, now)
        if now and later:
            # The earlier time counts.
            for priority, elements in now.items():
                for element in elements:
                    later.pop(f"{element}:{priority}", None)
        delayed = [part for pair in later.items() for part in pair]
        return (encode({"now": now, "later": delayed, "leads": self._bell.leads()}),)

    async def requeue(self, hints: Sequence[Hint]) -> int:
        now: dict[str, list[str]] = {}
        for hint in hints:
            _add(hint, now)
        heard = self._bell.news()
        answer = await self._link.ask(says("requeue", now=now, leads=self._bell.leads()))
        if answer is None:
            return 0
        missing, news = answer
        heard(news)
        return int(missing)

    async def withdraw(self, hints: Sequence[Hint]) -> None:
        self._link.post(self._withdraw, hints)

    async def overview(self) -> Overview | None:
        answer = await self._link.ask(says("overview"))
        return None if answer is None else overview_of(*answer)

    # after Redis has forgotten

    async def has_forgotten(self) -> bool:
        answer = await self._link.ask(says("incarnation"))
        if answer is None or answer[0] != answer[1]:
            return True
        self._trust(answer[0])
        return False

    async def begin_rebuild(self) -> None:
        self._losses_before_rebuild = self._link.losses
        await self._link.ask(says("begin_rebuild", me=self._terms.leader))

    async def end_rebuild(self) -> None:
        await self._link.flush()
        mark = b""
        if self._link.losses == self._losses_before_rebuild:
            mark = await self._link.ask(says("end_rebuild", me=self._terms.leader)) or b""
        if mark:
            self._trust(mark)
        elif self._terms.current is not None:
            self._terms.current.end("the queues were not filled well")

    def _trust(self, mark: bytes) -> None:
        if self._terms.current is not None:
            self._terms.current.mark = mark.decode()


def _add(hint: Hint, queues: dict[str, list[str]]) -> None:
    queues.setdefault(str(hint.priority), []).append(f"{hint.task_id}:{hint.task_type}")
