"""What is said to Redis and written there, and how it is read."""

from __future__ import annotations

import re
import time
from functools import lru_cache

import msgspec

from atm.coordinator import Hint, Overview, QueueInfo, WorkerInfo
from atm.coordinators.redis_link import Request
from atm.coordinators.redis_wire import SCRIPTS
from atm.task import QUEUES

encode = msgspec.json.Encoder().encode


def says(name: str, **document: object) -> Request:
    """A script's run with these arguments."""
    return Request(SCRIPTS[name], lambda _: (encode(document),))


# hints


def written(hint: Hint) -> str:
    return f"{hint.task_id}:{hint.task_type}:{hint.priority}"


def hint_of(text: str) -> Hint:
    task_id, _, rest = text.partition(":")
    task_type, _, priority = rest.rpartition(":")
    return Hint(task_id, task_type, int(priority))


def lines_of(text: bytes) -> list[str]:
    return text.decode(errors="replace").split("\n") if text else []


def room_of(text: bytes) -> dict[str, int]:
    """By blocked type, how many may run."""
    parts = lines_of(text)
    return {task_type: int(room) for task_type, room in zip(parts[::2], parts[1::2], strict=True)}


# workers


def seconds(value: float) -> str:
    return f"{value:.3f}"


@lru_cache(maxsize=1024)
def _types(text: str) -> frozenset[str]:
    return frozenset(msgspec.json.decode(text))


def workers_of(text: bytes) -> list[WorkerInfo]:
    return [_worker(*facts) for facts in msgspec.json.decode(text)]


def _worker(
    worker_id: str,
    name: str,
    address: str,
    capacity: str | int,
    load: str | int,
    types: str,
    last_seen: str,
    draining: str = "0",
) -> WorkerInfo:
    return WorkerInfo(
        id=worker_id,
        name=name,
        address=address,
        capacity=int(capacity),
        load=int(load),
        task_types=_types(types),
        last_seen=float(last_seen),
        draining=draining == "1",
    )


# the overview

_UUID7 = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7")


def _age(element: str) -> float:
    """Seconds since the task was created, as its id tells; 0 for other ids."""
    made = _UUID7.match(element)
    return max(0.0, time.time() - int(made[1] + made[2], 16) / 1000) if made else 0.0


def overview_of(queues: bytes, parked: bytes, workers: bytes, room: bytes, delayed: bytes) -> Overview:
    known = workers_of(workers)
    blocked = {task_type for task_type, left in room_of(room).items() if left <= 0}
    runnable = {name for info in known for name in info.task_types} - blocked
    lines = msgspec.json.decode(parked)
    found = []
    for (priority, name), (length, head) in zip(QUEUES.items(), msgspec.json.decode(queues), strict=True):
        of_priority = [line for line in lines if line[1] == priority]
        found.append(
            QueueInfo(
                name=name,
                length=length + sum(line[2] for line in of_priority),
                parked=sum(line[2] for line in of_priority if line[0] not in runnable) + (0 if known else length),
                oldest_age=max(map(_age, [head, *(line[3] for line in of_priority)])),
            )
        )
    return Overview(queues=found, delayed=int(delayed), workers=known)
