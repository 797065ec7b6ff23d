"""The embedded store: one SQLite file, one writer thread, durable at every commit (WAL, synchronous=FULL)."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import trio
from msgspec.structs import replace

from atm.errors import IdempotencyConflict, StoreDamaged, StoreUnavailable
from atm.serial import Call, SerialThread, fail_all, share
from atm.store import (
    CancelledChildren,
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
    Refusal,
    Refused,
    Reopened,
    Settled,
    Spawned,
    SpawnState,
    TaskFilter,
    Waiting,
)
from atm.stores import decide
from atm.stores import sqlite_texts as texts
from atm.stores.decide import Change, End, Log, Parent, Row
from atm.stores.sqlite_driver import Connection, connect, explained, fetch, transaction, translate
from atm.stores.sqlite_file import opened
from atm.stores.sqlite_texts import as_task, to_json
from atm.task import QUEUES, TERMINAL, Status, Task, TaskType

LOG_ID_BLOCK = 1_000_000
RARE = 10_000
READ_SLICE = 128  # tasks whose payloads, 1 MiB each, still fit into one JSON value (SQLite: 1 GB)

_read_claimable = msgspec.json.Decoder(list[tuple[int, Task]]).decode
_read_rows = msgspec.json.Decoder(list[Row]).decode
_read_parents = msgspec.json.Decoder(list[Parent]).decode
_read_children = msgspec.json.Decoder(list[tuple[str, str, Row]]).decode
T = TypeVar("T")


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
        self._on_commit = on_commit or (lambda seconds: None)
        self._writer = SerialThread(self._commit, inline=inline)
        self._reader = SerialThread(self._read, inline=inline)
        self._slow_reader = SerialThread(self._read_slowly, inline=inline)
        self._types: dict[str, TaskType] = {}
        self._limited: frozenset[str] = frozenset()
        self._alive: set[Lease] = set()
        self._logs: list[Log] = []
        self._log_id = self._log_ids_end = self._seq = 0

    # life

    def open(self) -> None:
        """Lock and open the file, making it if there is none. Raises StartError, in one line."""
        with contextlib.ExitStack() as stack, explained(self.path):
            self._db = stack.enter_context(opened(self.path))
            self._load()
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
                for thread in (self._reader, self._slow_reader, self._writer):
                    await nursery.start(thread.serve)
                task_status.started()
        finally:
            self.close()

    def _load(self) -> None:
        """What the writer keeps in memory, and the end of every lease that was alive: its node is gone."""
        with transaction(self._db):
            self._db.execute(texts.LOSE_ALL)
            for name, settings in self._db.execute(texts.SELECT_SETTINGS):
                self._types[name] = msgspec.json.decode(settings, type=TaskType)
            self._reserve_log_ids()
            self._seq = self._db.execute(texts.LAST_SEQ).fetchone()[0]
        self._find_limited()

    def _reserve_log_ids(self) -> None:
        """Take the next block of log ids, so that they grow across restarts without a look at the logs."""
        row = self._db.execute(texts.RESERVE_LOG_IDS, (LOG_ID_BLOCK,)).fetchone()
        self._log_id, self._log_ids_end = row[0] - LOG_ID_BLOCK, row[0]

    def _find_limited(self) -> None:
        self._limited = frozenset(
            name for name, t in self._types.items() if t.max_concurrent is not None or not t.enabled
        )

    # transitions

    async def create(self, tasks: Sequence[NewTask]) -> list[Created]:
        size = sum(len(task.payload_json) for task in tasks)
        return cast("list[Created]", await self._writer.call(self._create, None, tasks, size))

    async def spawn(self, children: Sequence[NewChild]) -> list[Spawned]:
        size = sum(len(child.task.payload_json) for child in children)
        return cast("list[Spawned]", await self._writer.call(self._spawn, None, children, size))

    async def claim(self, lease: Lease, task_ids: Sequence[str]) -> list[Claimed | Refused]:
        return cast("list[Claimed | Refused]", await self._writer.call(self._claim, lease, task_ids))

    async def finish(self, lease: Lease, outcomes: Sequence[Outcome]) -> list[Finished]:
        size = sum(len(o.result_json or "") + len(o.details or "") for o in outcomes)
        return cast("list[Finished]", await self._writer.call(self._finish, None, outcomes, size))

    async def cancel(self, task_ids: Sequence[str]) -> list[CancelVerdict]:
        return cast("list[CancelVerdict]", await self._writer.call(self._cancel, None, task_ids))

    async def cancel_children(self, parents: Sequence[str], limit: int) -> CancelledChildren:
        argument = (tuple(parents), limit)
        return cast("CancelledChildren", await self._writer.call(self._cancel_children, argument))

    async def settle(self, limit: int) -> list[Settled]:
        return cast("list[Settled]", await self._writer.call(self._settle, limit))

    async def reopen(self, task_ids: Sequence[str]) -> list[Reopened]:
        return cast("list[Reopened]", await self._writer.call(self._reopen, None, task_ids))

    async def recover(self, limit: int) -> list[Recovered]:
        return cast("list[Recovered]", await self._writer.call(self._recover, limit))

    async def sweep(self, priorities: Sequence[int], limit: int) -> list[Waiting]:
        return cast("list[Waiting]", await self._writer.call(self._sweep, (tuple(priorities), limit)))

    async def poll(self, lease: Lease, task_types: Sequence[str], limit: int) -> list[Claimed]:
        argument = (lease, tuple(task_types), limit)
        return cast("list[Claimed]", await self._writer.call(self._poll, argument))

    async def note(self, notes: Sequence[Note]) -> None:
        await self._writer.call(self._note, None, notes)

    async def purge(self, older_than: float, limit: int) -> int:
        return cast("int", await self._writer.call(self._purge, (older_than, limit)))

    async def register(self, worker_id: str, capacity: int, task_types: Sequence[str]) -> Lease:
        return cast("Lease", await self._writer.call(self._register, (worker_id, capacity, tuple(task_types))))

    async def renew(self, lease: Lease) -> float:
        await trio.lowlevel.checkpoint()
        # The lock on the file is the lease; within the process a new registration ends the old one.
        return math.inf if lease in self._alive else 0.0

    async def retire(self, lease: Lease) -> None:
        await self._writer.call(self._retire, lease)

    async def expire(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []

    async def campaign(self, candidate: str, seconds: float) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def change_task_type(self, task_type: str, changes: Mapping[str, Any]) -> TaskType:
        # The changes as JSON: calls with equal arguments are carried out as one, so arguments need a hash.
        argument = (task_type, to_json(changes))
        return cast("TaskType", await self._writer.call(self._change_task_type, argument))

    # reads

    async def ping(self) -> None:
        await self._reader.call(fetch, (texts.PING, ()))

    async def is_early(self, due_ms: int) -> bool:
        await trio.lowlevel.checkpoint()
        return due_ms > self._now()

    async def get(self, task_id: str) -> Task | None:
        rows = await self._reader.call(fetch, (texts.SELECT_TASK, (task_id,)))
        return as_task(rows[0]) if rows else None

    async def ended(self, task_ids: Sequence[str]) -> set[str]:
        rows = await self._reader.call(fetch, (texts.SELECT_ALIVE, (to_json(list(task_ids)),)))
        return set(task_ids) - {task_id for (task_id,) in rows}

    async def logs(self, task_id: str) -> list[LogRow] | None:
        rows = await self._reader.call(fetch, (texts.SELECT_LOG, (task_id,)))
        # A task is created with its first log row, so no rows means no task.
        return [msgspec.convert(row, LogRow, strict=False) for row in rows] or None

    async def find(self, where: TaskFilter, before: str | None, limit: int) -> list[Task]:
        rare = where.status is not None and where.status not in TERMINAL and await self._is_rare(where.status)
        sql, values = texts.find(where, before, limit, rare=rare)
        return [as_task(row) for row in await self._slow_reader.call(fetch, (sql, values))]

    async def _is_rare(self, status: Status) -> bool:
        """Whether so few tasks are in this live state that sorting them beats a walk through the newest tasks."""
        rows = await self._slow_reader.call(fetch, (texts.COUNT_SOME, (status, RARE + 1)))
        return bool(rows[0][0] <= RARE)

    async def task_types(self) -> Mapping[str, TaskType]:
        await trio.lowlevel.checkpoint()
        return dict(self._types)

    async def running(self, task_type: str) -> int:
        rows = await self._slow_reader.call(fetch, (texts.COUNT_RUNNING, (task_type,)))
        return cast("int", rows[0][0])

    async def waiting(self, after: Position | None, limit: int) -> tuple[list[Waiting], Position | None]:
        at = after or Position(max(QUEUES), 0, 0)
        rows = await self._slow_reader.call(
            fetch, (texts.SELECT_WAITING, (at.priority, at.sweep_ms, at.after, limit))
        )
        now = self._now()
        page = [decide.waiting(row[0], row[1], row[2], row[3], now) for row in rows]
        if len(rows) == limit:
            return page, Position(at.priority, rows[-1][4], rows[-1][5])
        lower = [priority for priority in QUEUES if priority < at.priority]
        return page, Position(lower[0], 0, 0) if lower else None

    async def held(self, lease: Lease) -> list[Held]:
        # By the writer, so that it sees what every claim before it has done.
        return cast("list[Held]", await self._writer.call(self._held, lease))

    # the reader threads

    def _read(self, calls: list[Call]) -> None:
        self._answer(self._read_db, calls)

    def _read_slowly(self, calls: list[Call]) -> None:
        self._answer(self._slow_db, calls)

    def _answer(self, connection: Connection, calls: list[Call]) -> None:
        for call in calls:
            try:
                call.succeed(call.verb(connection, call.argument))
            except Exception as error:  # noqa: BLE001 - a caller's odd argument must not end the others
                failure = translate(error)
                call.fail(failure)
                if isinstance(failure, StoreDamaged):
                    raise failure from None

    # the writer thread

    def _commit(self, calls: list[Call]) -> None:
        """Carry out a group in one transaction; where it fails, each call in one of its own."""
        self._logs.clear()
        began = time.perf_counter()
        types, alive = self._types, self._alive
        try:
            with transaction(self._db):
                now = self._now()
                for (verb, argument), same in _by_verb(calls):
                    verb(argument, same, now)
                self._write_logs(now)
            self._on_commit(time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001 - a bug in one call must not end the others
            self._types, self._alive = types, alive
            self._find_limited()
            self._log_id = self._log_ids_end  # a block taken in this transaction was not
            failure = translate(error)
            if isinstance(failure, StoreDamaged):
                fail_all(calls, failure)
                raise failure from None
            if isinstance(failure, StoreUnavailable) or len(calls) == 1:
                fail_all(calls, failure)
                return
            fail_all(calls, StoreUnavailable("the transaction was undone"))
            for call in calls:
                self._commit([call])

    def _log(self, row: Log) -> None:
        self._logs.append(row)

    def _write_logs(self, now: int) -> None:
        if self._log_id + len(self._logs) > self._log_ids_end:
            self._reserve_log_ids()
        values: list[Any] = []
        for log_id, row in enumerate(self._logs, self._log_id):
            values += row
            values += (log_id, now)
        for statement, some in texts.insert_logs(values):
            self._db.execute(statement, some)
        self._log_id += len(self._logs)

    def _insert(self, values: list[Any]) -> None:
        for statement, some in texts.insert_tasks(values):
            self._db.execute(statement, some)

    def _rows(self, task_ids: Iterable[str]) -> dict[str, Row]:
        text = self._db.execute(texts.SELECT_ROWS, (to_json(list(task_ids)),)).fetchone()[0]
        return self._with_families(_read_rows(text))

    def _with_families(self, rows: Iterable[Row]) -> dict[str, Row]:
        found = {row.task_id: row for row in rows}
        parents = [row.task_id for row in found.values() if row.children]
        if parents:
            for (parent_id,) in self._db.execute(texts.SELECT_BUSY, (to_json(parents),)):
                found[parent_id].busy = True
        return found

    def _apply(self, changes: Iterable[Change | End], now: int) -> None:
        ends: list[End] = []
        others: list[Change] = []
        for change in changes:
            if isinstance(change, End):
                ends.append(change)
            else:
                others.append(change)
        if ends:
            self._db.execute(texts.UPDATE_ENDED, (now, to_json(ends)))
        if others:
            self._db.execute(texts.UPDATE_CHANGED, (to_json(others),))

    def _create(self, _: None, calls: list[Call], now: int) -> None:
        keys = [task.idempotency_key for call in calls for task in call.rows if task.idempotency_key]
        owners = self._owners(keys) if keys else {}
        values: list[Any] = []
        for call in calls:
            try:
                replays = decide.replays(call.rows, owners) if keys else repeat(None)
            except IdempotencyConflict as conflict:
                call.fail(conflict)
                continue
            call.succeed(
                [replay or self._add(task, now, values) for task, replay in zip(call.rows, replays, strict=False)]
            )
        self._insert(values)

    def _owners(self, keys: list[str]) -> decide.Owners:
        rows = self._db.execute(texts.owners(len(keys)), keys)
        return {key: (task_id, task_type, payload) for key, task_id, task_type, payload in rows}

    def _add(self, task: NewTask, now: int, values: list[Any]) -> Created:
        """Put the row of a new task behind ``values``, and its first row into the log."""
        settings = self._types.get(task.task_type, _DEFAULTS)
        due_ms, scheduled_ms = decide.due(task, now)
        self._seq += 1
        values += (
            self._seq, task.task_id, task.task_type, "PENDING", task.priority, task.payload_json,
            settings.default_timeout if task.timeout is None else task.timeout,
            settings.default_max_retry if task.max_retry is None else task.max_retry,
            now, due_ms, scheduled_ms, due_ms + decide.SWEEP_FIRST, task.idempotency_key,
        )  # fmt: skip
        self._log(decide.created(self._seq))
        return Created(task.task_id, due_in=(due_ms - now) / 1000)

    def _claim(self, lease: Lease, calls: list[Call], now: int) -> None:
        if lease not in self._alive:
            for call in calls:
                call.succeed([Refused(Refusal.NO_LEASE)] * len(call.rows))
            return
        wanted = [task_id for call in calls for task_id in call.rows]
        found: dict[str, tuple[int, Task]] = {}
        for at in range(0, len(wanted), READ_SLICE):
            text = self._db.execute(
                texts.SELECT_CLAIMABLE, (lease.worker_id, now, to_json(wanted[at : at + READ_SLICE]))
            ).fetchone()[0]
            for item in _read_claimable(text):
                found[item[1].task_id] = item
        room = self._room(task.task_type for _, task in found.values()) if self._limited else {}
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
                    expired.append(decide.expired(seq, self._log))
                    del found[task_id]
                    return _EXPIRED
                task = replace(task, timeout=left)
            if task.task_type in room:
                if room[task.task_type] <= 0:
                    return _BLOCKED
                room[task.task_type] -= 1
            taken.append(seq)
            del found[task_id]  # asked for once more, it is gone
            self._log(decide.claimed(seq, task.attempt, lease.worker_id))
            return Claimed(task, self._types.get(task.task_type, _DEFAULTS))

        for call in calls:
            call.succeed([judge(task_id) for task_id in call.rows])
        if taken:
            overrun = now + decide.OVERRUN
            self._db.execute(texts.UPDATE_CLAIMED, (lease.worker_id, lease.epoch, now, overrun, to_json(taken)))
        self._apply(expired, now)

    def _poll(self, argument: tuple[Lease, tuple[str, ...], int], calls: list[Call], now: int) -> None:
        lease, task_types, limit = argument
        room = self._room(task_types)
        # What cannot run now must not stand in the way of what can.
        able = [name for name in task_types if room.get(name, 1) > 0]
        due = (self._db.execute(texts.SELECT_POLLED, (p, to_json(able), now, limit)).fetchall() for p in QUEUES)
        rows = [row for page in due for row in page]
        call = Call(self._claim, lease, [task_id for (task_id,) in rows[:limit]], 0)
        self._claim(lease, [call], now)
        # Of calls joined by chance the first one gets the tasks.
        share(calls, [])
        calls[0].succeed([verdict for verdict in call.result.unwrap() if isinstance(verdict, Claimed)])

    def _room(self, task_types: Iterable[str]) -> dict[str, float]:
        """How many more tasks of those types that are limited may run."""
        limited = self._limited.intersection(task_types)
        counts = {name: self._db.execute(texts.COUNT_RUNNING, (name,)).fetchone()[0] for name in limited}
        room = {name: decide.room(self._types[name], count) for name, count in counts.items()}
        return {name: left for name, left in room.items() if left is not None}

    def _finish(self, _: None, calls: list[Call], now: int) -> None:
        rows = self._rows(o.task_id for call in calls for o in call.rows)
        self._judge(calls, lambda o: decide.finish(rows.get(o.task_id), o, now, self._log), now)

    def _cancel(self, _: None, calls: list[Call], now: int) -> None:
        rows = self._rows(task_id for call in calls for task_id in call.rows)
        marked: list[str] = []

        def judge(task_id: str) -> tuple[CancelVerdict, Change | None]:
            verdict, change = decide.cancel(rows.get(task_id), now, self._log)
            if change is None and verdict.changed:
                marked.append(task_id)
            return verdict, change

        self._judge(calls, judge, now)
        if marked:
            self._db.execute(texts.UPDATE_MARKED, (now, to_json(marked)))

    def _reopen(self, _: None, calls: list[Call], now: int) -> None:
        rows = self._rows(task_id for call in calls for task_id in call.rows)

        def judge(task_id: str) -> tuple[bool, Change | None]:
            row = rows.get(task_id)
            change = decide.reopen(row, now, self._log) if row else None
            return change is not None, change

        self._judge(calls, judge, now)
        for call in calls:
            verdicts: list[bool] = call.result.unwrap()
            after = [fetch(self._db, (texts.SELECT_TASK, (task_id,))) for task_id in call.rows]
            call.succeed(
                [Reopened(as_task(r[0]) if r else None, ok) for r, ok in zip(after, verdicts, strict=True)]
            )

    def _recover(self, limit: int, calls: list[Call], now: int) -> None:
        text = self._db.execute(texts.SELECT_LOST, (limit,)).fetchone()[0]
        lost = self._with_families(_read_rows(text)).values()
        decisions = [decide.recover(row, now, 0, self._log) for row in lost]
        self._apply([change for _, change in decisions], now)
        share(calls, [recovered for recovered, _ in decisions])

    # parents and children

    def _spawn(self, _: None, calls: list[Call], now: int) -> None:
        children: list[NewChild] = [child for call in calls for child in call.rows]
        known = to_json(list({child.parent_id for child in children}))
        parents = {
            p.task_id: p for p in _read_parents(self._db.execute(texts.SELECT_PARENTS, (known,)).fetchone()[0])
        }
        keys = to_json([decide.child_key(child.parent_id, child.ordinal) for child in children])
        found = _read_children(self._db.execute(texts.SELECT_CHILDREN, (keys,)).fetchone()[0])
        former = {key: (row, payload) for key, payload, row in found}
        self._with_families(row for row, _ in former.values())
        values: list[Any] = []
        changes: list[Change] = []
        adopted: dict[str, tuple[str, str, int]] = {}

        def judge(child: NewChild) -> Spawned:
            parent = parents.get(child.parent_id)
            refusal = decide.refusal_to_spawn(parent, child)
            if refusal is not None:
                return refusal
            assert parent is not None
            key = decide.child_key(child.parent_id, child.ordinal)
            if key in former:
                row, payload = former[key]
                spawned, change = decide.rejoin(row, payload, child, now, self._log)
                if change is not None:
                    changes.append(change)
            elif self._would_wait_for_itself(parent, child.task.task_type):
                return Spawned(SpawnState.CAPPED)
            else:
                self._add(replace(child.task, idempotency_key=key), now, values)
                spawned = Spawned(SpawnState.CREATED, child.task.task_id)
                self._log(decide.started(parent, child))
            if spawned.state is not SpawnState.CONFLICT:
                adopted[spawned.task_id] = (spawned.task_id, parent.task_id, parent.deadline)
            return spawned

        for call in calls:
            call.succeed([judge(child) for child in call.rows])
        self._insert(values)
        self._apply(changes, now)
        if adopted:
            self._db.execute(texts.UPDATE_ADOPTED, (to_json(list(adopted.values())),))
            self._db.execute(texts.UPDATE_PARENTS, (known,))

    def _would_wait_for_itself(self, parent: Parent, task_type: str) -> bool:
        settings = self._types.get(task_type)
        if settings is None or settings.max_concurrent is None:
            return False
        return self._db.execute(texts.SELECT_ANCESTOR, (parent.task_id, task_type)).fetchone() is not None

    def _cancel_children(self, argument: tuple[tuple[str, ...], int], calls: list[Call], now: int) -> None:
        parents, limit = argument
        met = 0
        alive: list[str] = []
        while parents and len(alive) < limit:
            found = []
            for parent_id in parents:
                keys = decide.child_keys(parent_id)
                found += self._db.execute(texts.SELECT_FAMILY, (*keys, limit)).fetchall()
            met += len(found)
            alive += [task_id for task_id, _, is_asked in found if not is_asked]
            parents = tuple(task_id for task_id, has_children, _ in found if has_children)
        rows = self._rows(alive)
        decisions = {task_id: decide.cancel_child(row, now, self._log) for task_id, row in rows.items()}
        self._apply([change for _, change in decisions.values() if change is not None], now)
        asked = [name for name, (verdict, _) in decisions.items() if verdict.changed]
        ended = [name for name in asked if decisions[name][0].status is not Status.TIMEOUT]
        if ended:
            self._db.execute(texts.UPDATE_ORPHANED, (now, to_json(ended)))
        share(calls, CancelledChildren(met, {name: decisions[name][0] for name in asked}))

    def _settle(self, limit: int, calls: list[Call], now: int) -> None:
        text = self._db.execute(texts.SELECT_WITHOUT_WORKER, (limit,)).fetchone()[0]
        rows = self._with_families(_read_rows(text)).values()
        decisions = [decide.settle(row, now, self._log) for row in rows]
        self._apply([change for _, change in decisions if change is not None], now)
        share(calls, [settled for settled, _ in decisions])

    def _sweep(self, argument: tuple[tuple[int, ...], int], calls: list[Call], now: int) -> None:
        priorities, limit = argument
        found: list[Waiting] = []
        for priority in priorities:
            rows = self._db.execute(texts.SELECT_OVERDUE, (priority, now, limit)).fetchall()
            if rows:
                ids = to_json([row[0] for row in rows])
                self._db.execute(texts.UPDATE_SWEPT, (now, now, decide.SWEEP_FIRST, decide.SWEEP_MAX, ids))
                found += [decide.waiting(row[0], row[1], row[2], row[3], now) for row in rows]
        share(calls, found)

    def _note(self, _: None, calls: list[Call], now: int) -> None:
        rows = self._rows({note.task_id for call in calls for note in call.rows})
        progress: dict[str, str] = {}
        for call in calls:
            for note in call.rows:
                row = rows.get(note.task_id)
                if row is None or row.attempt != note.attempt or row.status is not Status.PROCESSING:
                    continue
                if note.message is not None:
                    self._log(
                        Log(row.seq, note.log_type._value_, None, None, note.message, note.worker_id, note.attempt)
                    )
                if note.progress_json is not None:
                    progress[note.task_id] = note.progress_json
            call.succeed(None)
        if progress:
            self._db.execute(texts.UPDATE_NOTED, (to_json(list(progress.items())),))

    def _purge(self, argument: tuple[float, int], calls: list[Call], now: int) -> None:
        older_than, limit = argument
        ids = self._db.execute(texts.SELECT_ENDED, (now - round(older_than * 1000), limit)).fetchone()[0]
        for delete in texts.DELETES:
            removed = self._db.execute(delete, (ids,)).rowcount
        share(calls, removed)

    def _register(self, argument: tuple[str, int, tuple[str, ...]], calls: list[Call], now: int) -> None:
        worker_id, capacity, task_types = argument
        self._db.execute(texts.FORGET)
        self._db.execute(texts.SUPERSEDE, (worker_id,))
        epoch = self._db.execute(texts.NEXT_EPOCH).fetchone()[0]
        self._db.execute(texts.INSERT_LEASE, (worker_id, epoch, capacity, to_json(task_types), now))
        self._alive = {lease for lease in self._alive if lease.worker_id != worker_id} | {Lease(worker_id, epoch)}
        share(calls, Lease(worker_id, epoch))

    def _retire(self, lease: Lease, calls: list[Call], now: int) -> None:
        self._db.execute(texts.RETIRE, (lease.worker_id, lease.epoch))
        self._alive = self._alive - {lease}
        share(calls, None)

    def _held(self, lease: Lease, calls: list[Call], now: int) -> None:
        rows = fetch(self._db, (texts.SELECT_HELD, (lease.worker_id, lease.epoch)))
        share(calls, [Held(row[0], row[1], (now - row[2]) / 1000, bool(row[3])) for row in rows])

    def _change_task_type(self, argument: tuple[str, str], calls: list[Call], now: int) -> None:
        task_type, changes = argument
        before = self._types.get(task_type) or TaskType(task_type=task_type)
        settings = decide.changed_type(before, msgspec.json.decode(changes))
        self._db.execute(texts.INSERT_TYPE, (settings.task_type, to_json(settings)))
        # Seen by the verbs behind it in this group; a new dict, so that a failed commit can take it back.
        self._types = {**self._types, settings.task_type: settings}
        self._find_limited()
        share(calls, settings)

    def _judge(self, calls: list[Call], judge: Callable[[Any], tuple[Any, Change | End | None]], now: int) -> None:
        """Have every row of every call judged; write the changes; give each call its verdicts."""
        changes: dict[int | str, Change | End] = {}
        for call in calls:
            verdicts = []
            for item in call.rows:
                verdict, change = judge(item)
                verdicts.append(verdict)
                if change is not None:
                    changes[change.seq] = change
            call.succeed(verdicts)
        self._apply(changes.values(), now)


_GONE = Refused(Refusal.GONE)
_BLOCKED = Refused(Refusal.BLOCKED)
_EXPIRED = Refused(Refusal.EXPIRED)
_DEFAULTS = TaskType(task_type="")


def _by_verb(calls: list[Call]) -> Iterable[tuple[tuple[Callable[..., None], Any], list[Call]]]:
    """The calls of a group by verb and argument. Their order means nothing: none waited for another."""
    groups: dict[tuple[Any, Any], list[Call]] = {}
    for call in calls:
        groups.setdefault((call.verb, call.argument), []).append(call)
    return groups.items()
