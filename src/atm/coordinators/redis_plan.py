"""Which waiting task goes to which worker, decided on what the leader saw of Redis. Pure: no I/O."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

from msgspec.structs import replace

from atm.coordinator import Balance, Hint, WorkerInfo

PARKED = 0
"""The place of what cannot run now; workers have places from 1 on."""


class Source(NamedTuple):
    """What is taken from the head of a list on. ``line``: type:priority of a parked line, else empty."""

    key: str
    priority: int
    elements: list[str]
    places: list[int]
    line: str = ""


class _Desk:
    def __init__(self, info: WorkerInfo, place: int) -> None:
        self.info = info
        self.place = place
        self.free = info.capacity - info.load


class Plan:
    """Filled from list after list, in the order of service.

    Args:
        workers: those that may get something; ``load`` counts all that they have.
        room: by blocked type, how many may run.
        lines: parked lines (type:priority) that hold something. A type that waits there waits there in order.
        limit: hints to hand over at the most.
    """

    def __init__(
        self, balance: Balance, workers: Sequence[WorkerInfo], room: dict[str, int], lines: set[str], limit: int
    ) -> None:
        self.workers = [info.id for info in workers]
        self.sources: list[Source] = []
        self.used_room: dict[str, int] = {}
        self.parks = False
        self._balance = balance
        self._desks = [_Desk(info, place) for place, info in enumerate(workers, start=1)]
        self._room = room
        self._lines = lines
        self._able: dict[str, list[_Desk]] = {}
        self.left = min(limit, sum(desk.free for desk in self._desks))

    def workers_after(self) -> list[WorkerInfo]:
        """The workers, with the load that they will have."""
        return [self._as_loaded(desk) for desk in self._desks]

    def can_run(self, task_type: str) -> bool:
        return bool(self._candidates(task_type)) and self._room.get(task_type, 1) > 0

    def serve_queue(self, key: str, priority: int, elements: Iterable[str]) -> None:
        """Hand over from the head on while there are slots; what cannot run is parked."""
        taken: list[str] = []
        places: list[int] = []
        for element in elements:
            if not self.left:
                break
            task_id, _, task_type = element.partition(":")
            if f"{task_type}:{priority}" in self._lines or not self.can_run(task_type):
                self.parks = True
                places.append(PARKED)
            else:
                places.append(self._place(Hint(task_id, task_type, priority)))
            taken.append(element)
        if taken:
            self.sources.append(Source(key, priority, taken, places))

    def serve_lines(self, priority: int, lines: dict[str, list[str]], asked: int) -> None:
        """Hand over from the heads of parked lines, the oldest first (ids tell), while there are slots.

        Args:
            lines: of this priority, by key's name; of each, up to ``asked`` elements.
        """
        by_line = {line: Source(f"queue:parked:{line}", priority, [], [], line) for line in lines}
        in_line = [list(zip(elements, repeat(line), strict=False)) for line, elements in lines.items()]
        stopped: set[str] = set()
        for element, line in heapq.merge(*in_line):
            if not self.left:
                break
            task_id, _, task_type = element.partition(":")
            if line in stopped or not self.can_run(task_type):
                stopped.add(line)
                continue
            source = by_line[line]
            source.elements.append(element)
            source.places.append(self._place(Hint(task_id, task_type, priority)))
        for line, source in by_line.items():
            if source.elements:
                self.sources.append(source)
            if len(source.elements) == len(lines[line]) < asked:
                self._lines.discard(line)

    def _candidates(self, task_type: str) -> list[_Desk]:
        able = self._able.get(task_type)
        if able is None:
            able = [desk for desk in self._desks if desk.free > 0 and task_type in desk.info.task_types]
            self._able[task_type] = able
        return able

    def _place(self, hint: Hint) -> int:
        candidates = self._able[hint.task_type]
        desk = candidates[0] if len(candidates) == 1 else self._choose(hint, candidates)
        desk.free -= 1
        self.left -= 1
        if not desk.free:
            for able in self._able.values():
                if desk in able:
                    able.remove(desk)
        if hint.task_type in self._room:
            self._room[hint.task_type] -= 1
            self.used_room[hint.task_type] = self.used_room.get(hint.task_type, 0) + 1
        return desk.place

    def _choose(self, hint: Hint, candidates: list[_Desk]) -> _Desk:
        infos = [self._as_loaded(desk) for desk in candidates]
        chosen = self._balance.choose(hint, infos)
        return next(desk for desk in candidates if desk.info.id == chosen.id)

    @staticmethod
    def _as_loaded(desk: _Desk) -> WorkerInfo:
        load = desk.info.capacity - desk.free
        if desk.info.load != load:
            desk.info = replace(desk.info, load=load)
        return desk.info
