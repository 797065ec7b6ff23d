"""The embedded store: one SQLite file, one writer thread, durable at every commit (WAL, synchronous=FULL).

This file is the contract's side: each verb is a call for a thread. Reads are queries for two threads that read,
one for those that may take long; all else is carried out by the writer:

sqlite_writer.py   a group of calls, one transaction
sqlite_create.py   ├─ create, spawn
sqlite_claims.py   ├─ claim, poll
sqlite_ends.py     ├─ finish, note, cancel, reopen
sqlite_chores.py   ├─ settle, recover, sweep, purge
sqlite_leases.py   └─ leases, settings
sqlite_texts.py    the statements
sqlite_file.py     the file before it is used: its lock, checks, schema
sqlite_driver.py   connections, transactions, errors
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import trio

from atm.errors import StoreDamaged
from atm.serial import Call, SerialThread
from atm.store import (
    CancelVerdict,
    Claimed,
    Created,
    Finished,
    Held,
    Lease,
    LogRow,
    NewChild,
    NewTask,
    Note,
    Outcome,
    Position,
    Recovered,
    Refused,
    Reopened,
    Settled,
    Spawned,
    TaskFilter,
    Waiting,
)
from atm.stores import decide
from atm.stores import sqlite_chores as chores
from atm.stores import sqlite_claims as claims
from atm.stores import sqlite_create as creation
from atm.stores import sqlite_ends as ends
from atm.stores import sqlite_leases as leases
from atm.stores import sqlite_texts as texts
from atm.stores.sqlite_driver import Connection, connect, explained, fetch, translate
from atm.stores.sqlite_file import opened
from atm.stores.sqlite_texts import as_task, to_json
from atm.stores.sqlite_writer import Writer
from atm.task import QUEUES, TERMINAL, Status, Task, TaskType

RARE = 10_000


def system_clock() -> Callable[[], int]:
    """Milliseconds since 1970 that never go backwards within this process."""
    last = 0

    def now() -> int:
        nonlocal last
        last = max(last, time.time_ns() // 1_000_000)
        return last

    return now


class SqliteStore:
    """Implements ``atm.store.Store`` on one file.

    Args:
        path: the file; it is made if there is none.
        now: the store's clock, milliseconds since 1970; must not go backwards.
        inline: carry verbs out in the caller's task instead of in threads, for tests on a virtual clock.
        on_commit: told how many seconds each transaction took, in the writer's thread.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        now: Callable[[], int] | None = None,
        inline: bool = False,
        on_commit: Callable[[float], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self._now = now or system_clock()
        self._inline = inline
        self._writer = Writer(self._now, on_commit or (lambda seconds: None))
        self._writing = SerialThread(self._writer.commit, inline=inline)
        self._reading = SerialThread(lambda calls: _answer(self._read_db, calls), inline=inline)
        self._reading_slowly = SerialThread(lambda calls: _answer(self._slow_db, calls), inline=inline)

    # life

    def open(self) -> None:
        """Lock and open the file, making it if there is none. Raises StartError, in one line."""
        with contextlib.ExitStack() as stack, explained(self.path):
            self._writer.open(stack.enter_context(opened(self.path)))
            self._read_db = stack.enter_context(contextlib.closing(connect(self.path)))
            self._slow_db = stack.enter_context(contextlib.closing(connect(self.path)))
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Close the file and give up the lock. The threads must have ended."""
        self._closing.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises StartError before it has started, StoreDamaged when it must stop."""
        if self._inline:
            self.open()
        else:
            await trio.to_thread.run_sync(self.open)
        try:
            async with trio.open_nursery() as nursery:
                for thread in (self._reading, self._reading_slowly, self._writing):
                    await nursery.start(thread.serve)
                task_status.started()
        finally:
            self.close()

    # transitions

    async def create(self, tasks: Sequence[NewTask]) -> list[Created]:
        size = sum(len(task.payload_json) for task in tasks)
        return cast("list[Created]", await self._writing.call(creation.create, None, tasks, size))

    async def spawn(self, children: Sequence[NewChild]) -> list[Spawned]:
        size = sum(len(child.task.payload_json) for child in children)
        return cast("list[Spawned]", await self._writing.call(creation.spawn, None, children, size))

    async def claim(self, lease: Lease, task_ids: Sequence[str]) -> list[Claimed | Refused]:
        return cast("list[Claimed | Refused]", await self._writing.call(claims.claim, lease, task_ids))

    async def finish(self, lease: Lease, outcomes: Sequence[Outcome]) -> list[Finished]:
        size = sum(len(o.result_json or "") + len(o.details or "") for o in outcomes)
        return cast("list[Finished]", await self._writing.call(ends.finish, None, outcomes, size))

    async def cancel(self, task_ids: Sequence[str]) -> list[CancelVerdict]:
        return cast("list[CancelVerdict]", await self._writing.call(ends.cancel, None, task_ids))

    async def cancel_children(self, parents: Sequence[str], limit: int) -> dict[str, CancelVerdict]:
        argument = (tuple(parents), limit)
        return cast("dict[str, CancelVerdict]", await self._writing.call(ends.cancel_children, argument))

    async def settle(self, limit: int) -> list[Settled]:
        return cast("list[Settled]", await self._writing.call(chores.settle, limit))

    async def reopen(self, task_ids: Sequence[str]) -> list[Reopened]:
        return cast("list[Reopened]", await self._writing.call(ends.reopen, None, task_ids))

    async def recover(self, limit: int) -> list[Recovered]:
        return cast("list[Recovered]", await self._writing.call(chores.recover, limit))

    async def sweep(self, priorities: Sequence[int], limit: int) -> list[Waiting]:
        return cast("list[Waiting]", await self._writing.call(chores.sweep, (tuple(priorities), limit)))

    async def poll(self, lease: Lease, task_types: Sequence[str], limit: int) -> list[Claimed]:
        argument = (lease, tuple(task_types), limit)
        return cast("list[Claimed]", await self._writing.call(claims.poll, argument))

    async def note(self, notes: Sequence[Note]) -> None:
        await self._writing.call(ends.note, None, notes)

    async def purge(self, older_than: float, limit: int) -> int:
        return cast("int", await self._writing.call(chores.purge, (older_than, limit)))

    # leases and settings

    async def register(self, worker_id: str, capacity: int, task_types: Sequence[str]) -> Lease:
        return cast("Lease", await self._writing.call(leases.register, (worker_id, capacity, tuple(task_types))))

    async def renew(self, lease: Lease) -> float:
        await trio.lowlevel.checkpoint()
        # The lock on the file is the lease; within the process a new registration ends the old one.
        return math.inf if lease in self._writer.alive else 0.0

    async def retire(self, lease: Lease) -> None:
        await self._writing.call(leases.retire, lease)

    async def expire(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []

    async def campaign(self, candidate: str, seconds: float) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def change_task_type(self, task_type: str, changes: Mapping[str, Any]) -> TaskType:
        # The changes as JSON: calls with equal arguments are carried out as one, so arguments need a hash.
        argument = (task_type, to_json(changes))
        return cast("TaskType", await self._writing.call(leases.change_task_type, argument))

    # reads

    async def ping(self) -> None:
        await self._read(texts.PING)

    async def is_early(self, due_ms: int) -> bool:
        await trio.lowlevel.checkpoint()
        return due_ms > self._now()

    async def get(self, task_id: str) -> Task | None:
        rows = await self._read(texts.SELECT_TASK, task_id)
        return as_task(rows[0]) if rows else None

    async def ended(self, task_ids: Sequence[str]) -> set[str]:
        rows = await self._read(texts.SELECT_ALIVE, to_json(list(task_ids)))
        return set(task_ids) - {task_id for (task_id,) in rows}

    async def logs(self, task_id: str) -> list[LogRow] | None:
        rows = await self._read(texts.SELECT_LOG, task_id)
        # A task is created with its first log row, so no rows means no task.
        return [msgspec.convert(row, LogRow, strict=False) for row in rows] or None

    async def find(self, where: TaskFilter, before: str | None, limit: int) -> list[Task]:
        rare = where.status is not None and where.status not in TERMINAL and await self._is_rare(where.status)
        sql, values = texts.find(where, before, limit, rare=rare)
        return [as_task(row) for row in await self._read_slowly(sql, *values)]

    async def _is_rare(self, status: Status) -> bool:
        """Whether so few tasks are in this live state that sorting them beats a walk through the newest tasks."""
        rows = await self._read_slowly(texts.COUNT_SOME, status, RARE + 1)
        return bool(rows[0][0] <= RARE)

    async def task_types(self) -> Mapping[str, TaskType]:
        await trio.lowlevel.checkpoint()
        return dict(self._writer.types)

    async def running(self, task_type: str) -> int:
        rows = await self._read_slowly(texts.COUNT_RUNNING, task_type)
        return cast("int", rows[0][0])

    async def waiting(self, after: Position | None, limit: int) -> tuple[list[Waiting], Position | None]:
        at = after or Position(max(QUEUES), 0, 0)
        rows = await self._read_slowly(texts.SELECT_WAITING, at.priority, at.sweep_ms, at.after, limit)
        now = self._now()
        page = [decide.waiting(row[0], row[1], row[2], row[3], now) for row in rows]
        if len(rows) == limit:
            return page, Position(at.priority, rows[-1][4], rows[-1][5])
        lower = [priority for priority in QUEUES if priority < at.priority]
        return page, Position(lower[0], 0, 0) if lower else None

    async def held(self, lease: Lease) -> list[Held]:
        # By the writer, so that it sees what every claim before it has done.
        return cast("list[Held]", await self._writing.call(leases.held, lease))

    def _read(self, sql: str, *values: object) -> Coroutine[Any, Any, list[Any]]:
        return self._reading.call(fetch, (sql, values))

    def _read_slowly(self, sql: str, *values: object) -> Coroutine[Any, Any, list[Any]]:
        return self._reading_slowly.call(fetch, (sql, values))


def _answer(connection: Connection, calls: list[Call]) -> None:
    """Carry out the queries of a group, in a thread that reads."""
    for call in calls:
        try:
            call.succeed(call.verb(connection, call.argument))
        except Exception as error:  # noqa: BLE001 - a caller's odd argument must not end the others
            failure = translate(error)
            call.fail(failure)
            if isinstance(failure, StoreDamaged):
                raise failure from None
