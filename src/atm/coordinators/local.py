"""The coordinator of a single node: everything in memory, always leader.

Waiting hints stand in one line per priority and type, so that a type which cannot run now is stepped over
at no cost. The order between types is kept by a running number.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

import trio
from msgspec.structs import replace

from atm.coordinator import Balance, CancelRequest, Hint, Overview, QueueInfo, TaskEvent, WorkerInfo
from atm.flag import Flag
from atm.task import QUEUES

MAX_HINTS = 1_000_000
"""Hints held at the most (some 400 bytes each); what is pushed beyond comes back by the sweep."""


MAX_CREDIT = 1000
"""Room remembered for a type that is not blocked; too much of it costs a refused claim, no more."""


class _Waiting(NamedTuple):
    """A hint in its line: its number gives the order among all, ``since`` when it came to the line."""

    number: int
    since: float
    hint: Hint


_Line = OrderedDict[str, _Waiting]
"""By task id, so that one which is withdrawn need not be searched for."""


class _Desk:
    """A worker's place: what was handed to it, what it took and has not settled yet."""

    def __init__(self, info: WorkerInfo) -> None:
        self.info = info
        self.handed: list[_Waiting] = []
        self.taken: dict[str, _Waiting] = {}
        self.arrived = Flag()

    @property
    def busy(self) -> int:
        return self.info.load + len(self.handed) + len(self.taken)

    @property
    def free(self) -> int:
        return 0 if self.info.draining else max(0, self.info.capacity - self.busy)


class LocalCoordinator:
    """Implements ``atm.coordinator.Coordinator`` for one process."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, _Line]] = {priority: {} for priority in QUEUES}
        self._delayed: list[tuple[float, int, Hint]] = []
        self._stale = 0  # of those, withdrawn or pushed again for an earlier time
        # When each known hint is due; -inf from the moment it stands in a line.
        self._known: dict[str, float] = {}
        self._number = 0
        self._desks: dict[str, _Desk] = {}
        self._room: dict[str, int] = {}
        self._credit: dict[str, int] = {}
        self._changed = Flag()
        self._leader: str | None = None
        self._filled = False
        self._event_listeners: list[Callable[[Sequence[TaskEvent]], None]] = []
        self._cancel_listeners: dict[str, Callable[[CancelRequest], None]] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def lead(self, candidate: str, duties: Callable[[], Awaitable[None]]) -> None:
        self._leader = candidate
        try:
            await duties()
        finally:
            self._leader = None

    def leader(self) -> str | None:
        return self._leader

    async def away(self) -> None:
        await trio.sleep_forever()

    async def back(self) -> None:
        await trio.lowlevel.checkpoint()

    async def has_forgotten(self) -> bool:
        await trio.lowlevel.checkpoint()
        return not self._filled

    async def begin_rebuild(self) -> None:
        # What stands in the queues came from this process, since it started.
        await trio.lowlevel.checkpoint()

    async def end_rebuild(self) -> None:
        await trio.lowlevel.checkpoint()
        self._filled = True

    # queues

    async def push(self, hints: Sequence[Hint]) -> None:
        now = trio.current_time()
        for hint in hints:
            due = now + hint.delay if hint.delay > 0 else -math.inf
            before = self._known.get(hint.task_id)
            if len(self._known) >= MAX_HINTS if before is None else before <= due:
                continue
            self._known[hint.task_id] = due
            self._number += 1
            self._stale += before is not None
            if hint.delay > 0:
                heapq.heappush(self._delayed, (due, self._number, hint))
            else:
                self._line(hint)[hint.task_id] = _Waiting(self._number, now, hint)
        self._changed.set()

    async def requeue(self, hints: Sequence[Hint]) -> int:
        missing = [hint for hint in hints if self._known.get(hint.task_id) != -math.inf]
        await self.push(missing)
        return len(missing)

    async def withdraw(self, hints: Sequence[Hint]) -> None:
        for hint in hints:
            due = self._known.get(hint.task_id, -math.inf)
            if due > -math.inf:
                self._stale += 1
            elif not self._leaves_line(hint):
                continue  # a worker has it, and settles it
            self._known.pop(hint.task_id, None)
        # What is stale has no other bound.
        if self._stale * 2 > len(self._delayed):
            self._drop_stale()

    def _leaves_line(self, hint: Hint) -> bool:
        lines = self._lines[hint.priority]
        line = lines.get(hint.task_type)
        if line is None or line.pop(hint.task_id, None) is None:
            return False
        if not line:
            del lines[hint.task_type]
        return True

    def _drop_stale(self) -> None:
        live = {item[2].task_id: item for item in self._delayed if self._known.get(item[2].task_id) == item[0]}
        self._delayed = sorted(live.values())
        self._stale = 0

    def _line(self, hint: Hint) -> _Line:
        lines = self._lines[hint.priority]
        line = lines.get(hint.task_type)
        if line is None:
            line = lines[hint.task_type] = OrderedDict()
        return line

    async def overview(self) -> Overview:
        await trio.lowlevel.checkpoint()
        workers = [desk.info for desk in self._desks.values()]
        return Overview(queues=self._queues(), delayed=len(self._delayed) - self._stale, workers=workers)

    def _queues(self) -> list[QueueInfo]:
        now = trio.current_time()
        runnable = self._runnable_types()
        found = []
        for priority, name in QUEUES.items():
            lines = self._lines[priority]
            oldest = min((_head(line).since for line in lines.values()), default=now)
            parked = sum(len(line) for name, line in lines.items() if name not in runnable)
            length = sum(map(len, lines.values()))
            found.append(QueueInfo(name=name, length=length, parked=parked, oldest_age=now - oldest))
        return found

    def _runnable_types(self) -> set[str]:
        supported = {name for desk in self._desks.values() for name in desk.info.task_types}
        return {name for name in supported if self._room.get(name, 1) > 0}

    async def changed(self) -> None:
        next_due = self._delayed[0][0] if self._delayed else math.inf
        with trio.CancelScope(deadline=next_due):
            await self._changed.wait()

    async def dispatch(self, balance: Balance, limit: int) -> int:
        self._promote()
        open_desks = [desk for desk in self._desks.values() if desk.free]
        left = limit
        for priority in QUEUES:
            left = self._dispatch_priority(self._lines[priority], open_desks, balance, left)
        return limit - left

    def _promote(self) -> None:
        """Move delayed hints whose time has come into their queues."""
        now = trio.current_time()
        while self._delayed and self._delayed[0][0] <= now:
            due, _, hint = heapq.heappop(self._delayed)
            if self._known.get(hint.task_id) == due:
                self._known[hint.task_id] = -math.inf
                self._number += 1
                self._line(hint)[hint.task_id] = _Waiting(self._number, due, hint)
            else:
                self._stale -= 1

    def _dispatch_priority(self, lines: dict[str, _Line], desks: list[_Desk], balance: Balance, left: int) -> int:
        able = {
            name: [desk for desk in desks if name in desk.info.task_types]
            for name in lines
            if self._room.get(name, 1) > 0
        }
        heads = [(_head(lines[name]).number, name) for name, candidates in able.items() if candidates]
        heapq.heapify(heads)
        while heads and left:
            _, name = heapq.heappop(heads)
            candidates = [desk for desk in able[name] if desk.free]
            if not candidates:
                continue
            line = lines[name]
            # With no other type to take turns with, a whole run of the line goes at once.
            turns = 1 if heads or len(candidates) > 1 else min(left, candidates[0].free, len(line))
            turns = min(turns, self._room.get(name, turns))
            for _ in range(turns):
                _, waiting = line.popitem(last=False)
                _choose(balance, waiting.hint, candidates).handed.append(waiting)
            left -= turns
            if name in self._room:
                self._room[name] -= turns
            for desk in candidates:
                if desk.handed:
                    desk.arrived.set()
            if not line:
                del lines[name]
            elif self._room.get(name, 1) > 0:
                heapq.heappush(heads, (_head(line).number, name))
        return left

    # workers

    async def register(self, worker: WorkerInfo) -> None:
        desk = self._desks.get(worker.id)
        if desk is None:
            self._desks[worker.id] = _Desk(worker)
        else:
            desk.info = worker
        self._changed.set()

    async def unregister(self, worker_id: str) -> None:
        desk = self._desks.pop(worker_id, None)
        if desk is not None:
            self._put_back([*desk.taken.values(), *desk.handed])

    def _put_back(self, waiting: Iterable[_Waiting]) -> None:
        """To where they stood in their lines."""
        for item in sorted(waiting, reverse=True):
            line = self._line(item.hint)
            line[item.hint.task_id] = item
            line.move_to_end(item.hint.task_id, last=False)
        self._changed.set()

    async def take(self, worker_id: str) -> list[Hint]:
        desk = self._desks[worker_id]
        await desk.arrived.wait()
        waiting, desk.handed = desk.handed, []
        desk.taken |= {item.hint.task_id: item for item in waiting}
        return [item.hint for item in waiting]

    async def settle(self, worker_id: str, hints: Sequence[Hint], load: int) -> None:
        desk = self._desks.get(worker_id)
        if desk is None:
            return
        for hint in hints:
            desk.taken.pop(hint.task_id, None)
            self._known.pop(hint.task_id, None)
        desk.info = replace(desk.info, load=load)
        self._changed.set()

    async def block(self, worker_id: str, hints: Sequence[Hint]) -> None:
        desk = self._desks.get(worker_id)
        if desk is None:
            return
        for task_type in {hint.task_type for hint in hints}:
            # Room made while the claim was under way counts; what was dispatched has used its own up.
            self._room.setdefault(task_type, self._credit.pop(task_type, 0))
        taken = (desk.taken.pop(hint.task_id, None) for hint in hints)
        self._put_back(item for item in taken if item is not None)

    async def unblock(self, task_type: str, room: int | None) -> None:
        if room is None:
            self._room.pop(task_type, None)
            self._credit.pop(task_type, None)
        elif task_type in self._room:
            self._room[task_type] += room
        else:
            self._credit[task_type] = min(self._credit.get(task_type, 0) + room, MAX_CREDIT)
        self._changed.set()

    # messages

    async def request_cancel(self, worker_id: str, request: CancelRequest) -> None:
        deliver = self._cancel_listeners.get(worker_id)
        if deliver is not None:
            deliver(request)

    async def listen_cancels(
        self,
        worker_id: str,
        deliver: Callable[[CancelRequest], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self._cancel_listeners[worker_id] = deliver
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            del self._cancel_listeners[worker_id]

    async def publish(self, events: Sequence[TaskEvent]) -> None:
        for deliver in self._event_listeners:
            deliver(events)

    async def listen_events(
        self,
        deliver: Callable[[Sequence[TaskEvent]], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self._event_listeners.append(deliver)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._event_listeners.remove(deliver)


def _head(line: _Line) -> _Waiting:
    return next(iter(line.values()))


def _choose(balance: Balance, hint: Hint, desks: list[_Desk]) -> _Desk:
    if len(desks) == 1:
        return desks[0]
    by_id = {desk.info.id: desk for desk in desks}
    chosen = balance.choose(hint, [replace(desk.info, load=desk.busy) for desk in desks])
    return by_id[chosen.id]
