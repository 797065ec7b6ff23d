"""Claims of the embedded store: of tasks that are named (``claim``), and of any that are due (``poll``).

Each verb is carried out by the writer, in its transaction; see sqlite_writer.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from atm.serial import Call, share
from atm.store import Claimed, Lease, Refusal, Refused
from atm.stores import decide
from atm.stores import sqlite_texts as texts
from atm.stores.decide import End
from atm.stores.sqlite_driver import one
from atm.stores.sqlite_texts import to_json
from atm.stores.sqlite_writer import DEFAULTS, Writer
from atm.task import QUEUES, Task

READ_SLICE = 128  # tasks whose payloads, 1 MiB each, still fit into one JSON value (SQLite: 1 GB)

_GONE = Refused(Refusal.GONE)
_BLOCKED = Refused(Refusal.BLOCKED)
_EXPIRED = Refused(Refusal.EXPIRED)
_NO_LEASE = Refused(Refusal.NO_LEASE)

_read_claimable = msgspec.json.Decoder(list[tuple[int, Task]]).decode


def claim(lease: Lease, calls: list[Call], writer: Writer, now: int) -> None:
    if lease not in writer.alive:
        for call in calls:
            call.succeed([_NO_LEASE] * len(call.rows))
        return
    found = _claimable(lease, [task_id for call in calls for task_id in call.rows], writer, now)
    room = _room((task.task_type for _, task in found.values()), writer) if writer.limited else {}
    types, log = writer.types, writer.log
    taken: list[int] = []
    expired: list[End] = []

    def judge(task_id: str) -> Claimed | Refused:
        item = found.get(task_id)
        if item is None:
            return _GONE
        seq, task = item
        if task.due_ms > now:
            return Refused(Refusal.NOT_DUE, (task.due_ms - now) / 1000)
        if task.expires_ms is not None:
            if not (left := decide.time_left(task, now)):
                expired.append(decide.expired(seq, log))
                del found[task_id]
                return _EXPIRED
            task = replace(task, timeout=left)
        if task.task_type in room:
            if room[task.task_type] <= 0:
                return _BLOCKED
            room[task.task_type] -= 1
        taken.append(seq)
        del found[task_id]  # asked for once more, it is gone
        log(decide.claimed(seq, task.attempt, lease.worker_id))
        return Claimed(task, types.get(task.task_type, DEFAULTS))

    for call in calls:
        call.succeed([judge(task_id) for task_id in call.rows])
    if taken:
        overrun = now + decide.OVERRUN
        writer.db.execute(texts.UPDATE_CLAIMED, (lease.worker_id, lease.epoch, now, overrun, to_json(taken)))
    writer.apply(expired, now)


def _claimable(lease: Lease, wanted: list[str], writer: Writer, now: int) -> dict[str, tuple[int, Task]]:
    """Those that are PENDING, with their seq, as they are once this lease has claimed them."""
    found: dict[str, tuple[int, Task]] = {}
    for at in range(0, len(wanted), READ_SLICE):
        some = to_json(wanted[at : at + READ_SLICE])
        for item in _read_claimable(one(writer.db, texts.SELECT_CLAIMABLE, lease.worker_id, now, some)):
            found[item[1].task_id] = item
    return found


def poll(argument: tuple[Lease, tuple[str, ...], int], calls: list[Call], writer: Writer, now: int) -> None:
    lease, task_types, limit = argument
    room = _room(task_types, writer)
    # What cannot run now must not stand in the way of what can.
    able = to_json([name for name in task_types if room.get(name, 1) > 0])
    due = (writer.db.execute(texts.SELECT_POLLED, (p, able, now, limit)).fetchall() for p in QUEUES)
    rows = [row for page in due for row in page]
    call = Call(claim, lease, [task_id for (task_id,) in rows[:limit]], 0)
    claim(lease, [call], writer, now)
    # Of calls joined by chance the first one gets the tasks.
    share(calls, [])
    calls[0].succeed([verdict for verdict in call.result.unwrap() if isinstance(verdict, Claimed)])


def _room(task_types: Iterable[str], writer: Writer) -> dict[str, int]:
    """How many more tasks of those types that are limited may run."""
    limited = writer.limited.intersection(task_types)
    room = {name: decide.room(writer.types[name], one(writer.db, texts.COUNT_RUNNING, name)) for name in limited}
    return {name: left for name, left in room.items() if left is not None}
