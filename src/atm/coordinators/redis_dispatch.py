"""The leader's dispatch: a look at what waits and who is free, a plan, and the move that carries it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from atm.coordinator import Balance, Hint, WorkerInfo
from atm.coordinators.redis_bell import Bell
from atm.coordinators.redis_link import Link
from atm.coordinators.redis_plan import Plan
from atm.coordinators.redis_terms import Term, Terms
from atm.coordinators.redis_words import lines_of, room_of, says, workers_of
from atm.task import QUEUES

HANDOVER_PATIENCE = 0.3
"""Seconds after which what was handed to a worker, and not taken, goes back."""

FIRST_REACH = 16
"""Hints that a dispatch looks at for one slot, as the first may not be able to run; then four times more."""


VIEW_AGE = 0.25
"""Seconds for which a node that leads goes by what it saw, when nothing has rung since but its own pushes."""


class _Seen(NamedTuple):
    """What a look saw."""

    workers: list[WorkerInfo]
    room: dict[str, int]
    lines: set[str]
    heads: list[list[str]]

    @property
    def is_plain(self) -> bool:
        """No type is blocked, nothing is parked, and less waits than a look can see."""
        return not self.room and not self.lines and sum(map(len, self.heads)) < FIRST_REACH


class _View(NamedTuple):
    """Free slots, as they were when nothing waited for one: what is pushed now needs no look of its own."""

    term: Term
    seen_at: float
    workers: list[WorkerInfo]


class Dispatcher:
    """Hands over what waits, while this node leads.

    Args:
        wake: has a worker take what it was handed, if it is one of this node; whether it is.
    """

    def __init__(self, link: Link, terms: Terms, bell: Bell, wake: Callable[[str], bool]) -> None:
        self._link = link
        self._terms = terms
        self._bell = bell
        self._wake = wake
        self._next_due = math.inf
        self._view: _View | None = None

    async def changed(self) -> None:
        with trio.CancelScope(deadline=self._next_due):
            await self._bell.rung.wait()

    async def dispatch(self, balance: Balance, limit: int) -> int:
        if pushed := self._bell.pushed():
            plan = self._plan_by_view(balance, pushed)
            if plan is not None:
                return await self._move(plan)
        moved, reach = 0, FIRST_REACH
        while moved < limit:
            asked_at = trio.current_time()
            seen = await self._look(limit - moved, reach)
            if seen is None or not seen.workers:
                break
            plan = Plan(balance, seen.workers, seen.room, seen.lines, limit - moved)
            await self._fill(plan, seen)
            self._bell.slots_were_short = not plan.left
            if seen.is_plain and plan.left and not plan.parks and self._terms.current is not None:
                self._view = _View(self._terms.current, asked_at, plan.workers_after())
            moved += await self._move(plan)
            if not plan.parks or not plan.left:
                break
            reach = min(reach * 4, limit)
        return moved

    def _plan_by_view(self, balance: Balance, pushed: Sequence[Hint]) -> Plan | None:
        """Who gets what was pushed, by the last look; None when that leaves a doubt."""
        view, self._view = self._view, None
        now = trio.current_time()
        if view is None or view.term is not self._terms.current or now - view.seen_at > VIEW_AGE:
            return None
        plan = Plan(balance, view.workers, {}, set(), len(pushed) + 1)
        for priority, name in QUEUES.items():
            elements = [f"{hint.task_id}:{hint.task_type}" for hint in pushed if hint.priority == priority]
            plan.serve_queue(f"queue:{name}", priority, elements)
        if plan.parks or not plan.left:
            return None
        self._view = view._replace(workers=plan.workers_after())
        return plan

    async def _look(self, limit: int, reach: int) -> _Seen | None:
        term = self._terms.current
        self._next_due = math.inf
        if term is None:
            await trio.lowlevel.checkpoint()
            return None
        patience = round(HANDOVER_PATIENCE * 1000)
        self._view = None
        self._bell.begin_look()
        request = says("look", me=term.candidate, mark=term.mark, limit=limit, reach=reach, patience=patience)
        answer = await self._link.ask(request)
        if answer is None:
            return None
        if answer[0] != b"ok":
            term.end(answer[0].decode())
            return None
        _, due, known, room, lines, *heads = answer
        if due:
            self._next_due = trio.current_time() + int(due) / 1000
        workers = workers_of(known)
        workers.sort(key=lambda info: info.id)
        return _Seen(workers, room_of(room), set(lines_of(lines)), [lines_of(text) for text in heads])

    async def _fill(self, plan: Plan, seen: _Seen) -> None:
        runnable = [line for line in seen.lines if plan.can_run(line.rpartition(":")[0])]
        asked = plan.left
        parked: dict[str, list[str]] = {}
        if runnable:
            answer = await self._link.ask(says("heads", lines=runnable, limit=asked))
            parked = dict(zip(runnable, map(lines_of, answer or ()), strict=False))
        for (priority, name), heads in zip(QUEUES.items(), seen.heads, strict=True):
            of_priority = {line: found for line, found in parked.items() if line.endswith(f":{priority}")}
            if of_priority:
                plan.serve_lines(priority, of_priority, asked)
            plan.serve_queue(f"queue:{name}", priority, heads)

    async def _move(self, plan: Plan) -> int:
        term = self._terms.current
        if not plan.sources or term is None:
            return 0
        # Woken now, so that they ask in the same trip.
        own = [self._wake(worker_id) for worker_id in plan.workers]
        request = says(
            "move", me=term.candidate, workers=plan.workers, own=own, room=plan.used_room, sources=plan.sources
        )
        moved: int | None = await self._link.ask(request)
        if moved is None:
            return 0
        if moved < 0:
            term.end("the leadership was lost")
            return 0
        return moved
