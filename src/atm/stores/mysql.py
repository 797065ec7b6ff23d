"""The store of a cluster: MySQL or MariaDB, many nodes at once.

Every verb is a transaction of two round trips: one locks and reads the rows, in the order of their keys, the
other writes what was decided. READ COMMITTED; what is decided is decided on locked rows.

Here stands which verb waits in which lane, and what is read. What the verbs do is in rooms of their own: create,
claims, ends, chores, leases and settings; how they are carried out in mysql_transaction.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import msgspec
import trio

from atm.errors import StartError
from atm.lane import Lane
from atm.serial import Call, share
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
from atm.stores import decide, mysql_chores, mysql_ends, mysql_leases
from atm.stores import mysql_texts as texts
from atm.stores.mysql_claims import Claims
from atm.stores.mysql_connection import Lost, Rejected, Result
from atm.stores.mysql_create import Creation
from atm.stores.mysql_driver import Address, Unreachable, connect
from atm.stores.mysql_ends import Ends
from atm.stores.mysql_known import Known
from atm.stores.mysql_leases import Leases
from atm.stores.mysql_pool import Dialer, Pool
from atm.stores.mysql_schema import migrate
from atm.stores.mysql_settings import Settings, by_name
from atm.stores.mysql_texts import joined, keys
from atm.stores.mysql_transaction import Transaction, Transactions
from atm.stores.mysql_values import bind, encode, listing
from atm.task import QUEUES, Status, Task, TaskType

MIGRATION_PATIENCE = 600.0
RARE = 10_000

_read_logs = msgspec.json.Decoder(list[LogRow]).decode
_read_page = msgspec.json.Decoder(list[tuple[str, str, int, int, int]]).decode
_read_held = msgspec.json.Decoder(list[tuple[str, int, int, int | None]]).decode


class MySqlStore:
    """Implements ``atm.store.Store`` on MySQL or MariaDB.

    Args:
        address: where the database is.
        pool_size: how many connections there are at most; 2 at least.
        boot_id: tells this process from others that use the same worker id; None makes one up.
        lease: seconds that a worker's lease lasts from a renewal.
        margin: seconds from its end until it is taken for lost.
        shift: milliseconds by which time has leapt, the server's clock and this process's, for tests.
        patience: seconds that the server gets to answer.
        on_commit: told how many seconds each transaction took.
    """

    def __init__(
        self,
        address: Address,
        *,
        pool_size: int = 8,
        boot_id: str | None = None,
        lease: float = 10.0,
        margin: float = 5.0,
        shift: Callable[[], int] = lambda: 0,
        patience: float = 10.0,
        on_commit: Callable[[float], None] | None = None,
    ) -> None:
        self.address = address
        dialer = Dialer(address, patience)
        self._pool = Pool(dialer, max(1, pool_size - 1))
        self._lease_pool = Pool(dialer, 1)  # a renewal waits for nobody
        known = Known()
        self._settings = Settings()
        self._creation = Creation(self._settings, known)
        self._claims = Claims(self._settings, known)
        self._ends = Ends(known)
        self._leases = Leases(boot_id or uuid.uuid4().hex, round(lease * 1000), round(margin * 1000), known)
        self._transactions = Transactions(
            str(address),
            shift=shift,
            on_commit=on_commit or (lambda seconds: None),
            on_outage=self._leases.watch.interrupt,
        )
        self._creating, self._claiming, self._finishing = self._lane(2), self._lane(1), self._lane(2)
        self._others, self._chores = self._lane(1), self._lane(1)
        self._reading, self._reading_slowly = self._lane(2), self._lane(1)
        self._leasing = Lane(partial(self._transactions.carry_out, self._lease_pool))

    def _lane(self, workers: int) -> Lane:
        return Lane(partial(self._transactions.carry_out, self._pool), workers)

    # life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises StartError, in one line, when the database cannot be used."""
        await self.migrate()
        lanes = [self._creating, self._claiming, self._finishing, self._others, self._chores, self._leasing]
        try:
            async with trio.open_nursery() as nursery:
                for lane in (*lanes, self._reading, self._reading_slowly):
                    await nursery.start(lane.serve)
                nursery.start_soon(self._pool.keep_alive)
                nursery.start_soon(self._lease_pool.keep_alive)
                nursery.start_soon(self._settings.keep, self.task_types)
                task_status.started()
        finally:
            self._pool.close()
            self._lease_pool.close()

    async def migrate(self) -> int:
        """Make or change the tables as far as needed.

        Returns: the version that was found, 0 for none.
        Raises: StartError.
        """
        try:
            connection = await connect(self.address, MIGRATION_PATIENCE)
            try:
                return await migrate(connection)
            finally:
                connection.close()
        except Unreachable as error:
            raise StartError(f"{error.key}: {error}") from None
        except (Rejected, Lost) as error:
            raise StartError(f"database: {error}") from None

    # transitions

    async def create(self, tasks: Sequence[NewTask]) -> list[Created]:
        size = sum(len(task.payload_json) for task in tasks)
        keyed = any(task.idempotency_key is not None for task in tasks)
        return cast("list[Created]", await _batch(self._creating, self._creation.create, keyed, tasks, size))

    async def spawn(self, children: Sequence[NewChild]) -> list[Spawned]:
        size = sum(len(child.task.payload_json) for child in children)
        return cast("list[Spawned]", await _batch(self._others, self._creation.spawn, None, children, size))

    async def claim(self, lease: Lease, task_ids: Sequence[str]) -> list[Claimed | Refused]:
        return cast("list[Claimed | Refused]", await _batch(self._claiming, self._claims.claim, lease, task_ids))

    async def finish(self, lease: Lease, outcomes: Sequence[Outcome]) -> list[Finished]:
        size = sum(len(o.result_json or "") + len(o.details or "") for o in outcomes)
        return cast("list[Finished]", await _batch(self._finishing, self._ends.finish, lease, outcomes, size))

    async def cancel(self, task_ids: Sequence[str]) -> list[CancelVerdict]:
        return cast("list[CancelVerdict]", await _batch(self._others, mysql_ends.cancel, None, task_ids))

    async def cancel_children(self, parents: Sequence[str], limit: int) -> dict[str, CancelVerdict]:
        argument = (tuple(parents), limit)
        return cast("dict[str, CancelVerdict]", await self._others.call(mysql_ends.cancel_children, argument))

    async def settle(self, limit: int) -> list[Settled]:
        return cast("list[Settled]", await self._chores.call(mysql_chores.settle, limit))

    async def reopen(self, task_ids: Sequence[str]) -> list[Reopened]:
        return cast("list[Reopened]", await _batch(self._others, mysql_ends.reopen, None, task_ids))

    async def recover(self, limit: int) -> list[Recovered]:
        return cast("list[Recovered]", await self._chores.call(mysql_chores.recover, limit))

    async def sweep(self, priorities: Sequence[int], limit: int) -> list[Waiting]:
        return cast("list[Waiting]", await self._chores.call(mysql_chores.sweep, (tuple(priorities), limit)))

    async def poll(self, lease: Lease, task_types: Sequence[str], limit: int) -> list[Claimed]:
        argument = (lease, tuple(sorted(task_types)), limit)
        return cast("list[Claimed]", await self._claiming.call(self._claims.poll, argument))

    async def note(self, notes: Sequence[Note]) -> None:
        size = sum(len(note.message or "") + len(note.progress_json or "") for note in notes)
        await _batch(self._others, self._ends.note, None, notes, size)

    async def purge(self, older_than: float, limit: int) -> int:
        return cast("int", await self._chores.call(mysql_chores.purge, (older_than, limit)))

    # leases and settings

    async def register(self, worker_id: str, capacity: int, task_types: Sequence[str]) -> Lease:
        argument = (worker_id, capacity, tuple(task_types))
        return cast("Lease", await self._leasing.call(self._leases.register, argument))

    async def renew(self, lease: Lease) -> float:
        return cast("float", await self._leasing.call(self._leases.renew, lease))

    async def retire(self, lease: Lease) -> None:
        await self._leasing.call(self._leases.retire, lease)

    async def expire(self) -> list[str]:
        return cast("list[str]", await self._chores.call(self._leases.expire, None))

    async def campaign(self, candidate: str, seconds: float) -> bool:
        return cast("bool", await self._leasing.call(mysql_leases.campaign, (candidate, seconds)))

    async def change_task_type(self, task_type: str, changes: Mapping[str, Any]) -> TaskType:
        # The changes as JSON, to be compared.
        argument = (task_type, encode(changes))
        return cast("TaskType", await self._others.call(self._settings.change, argument))

    # reads

    async def ping(self) -> None:
        await self._read(b"SELECT 1")

    async def is_early(self, due_ms: int) -> bool:
        now, _ = await self._read()
        return due_ms > now

    async def get(self, task_id: str) -> Task | None:
        found = texts.read_tasks(await self._read_one(texts.SELECT_TASKS + listing([task_id])))
        return found[0] if found else None

    async def ended(self, task_ids: Sequence[str]) -> set[str]:
        if not task_ids:
            await trio.lowlevel.checkpoint()
            return set()
        alive = [texts.SELECT_ALIVE + some + texts.AND_ALIVE for some in keys(task_ids)]
        _, found = await self._read(*alive)
        return set(task_ids) - {name.decode() for result in found for name in result.column}

    async def logs(self, task_id: str) -> list[LogRow] | None:
        # A task is created with its first log row, so no rows means no task.
        _, [owed, written] = await self._read(
            texts.SELECT_ROWS + listing([task_id]) + texts.OWED, bind(texts.SELECT_LOG, task_id)
        )
        rows = _read_logs(joined([written]))
        for log_count, row, started_ms in texts.read_rows(joined([owed])):
            claim = decide.claimed(task_id, row.attempt, row.worker_id or "")
            if len(rows) == -log_count:  # else it was written meanwhile
                values = (1 - log_count, *claim[1:], started_ms)
                rows.append(msgspec.convert(values, LogRow))
        return rows or None

    async def find(self, where: TaskFilter, before: str | None, limit: int) -> list[Task]:
        rare = where.status not in (None, Status.SUCCESS) and await self._is_rare(where.status)
        found = await self._read_one(texts.find(where, before, limit, rare=rare), slow=True)
        return sorted(texts.read_tasks(found), key=lambda task: task.task_id, reverse=True)

    async def _is_rare(self, status: Status | None) -> bool:
        """Whether so few tasks are in this state that sorting them beats a walk through the newest tasks."""
        _, [count] = await self._read(bind(texts.COUNT_SOME, status, RARE + 1), slow=True)
        return count.number <= RARE

    async def task_types(self) -> Mapping[str, TaskType]:
        _, [found] = await self._read(texts.SELECT_SETTINGS)
        return by_name(found)

    async def running(self, task_type: str) -> int:
        _, [count] = await self._read(bind(texts.COUNT_RUNNING, task_type), slow=True)
        return count.number

    async def waiting(self, after: Position | None, limit: int) -> tuple[list[Waiting], Position | None]:
        at = after or Position(max(QUEUES), 0, "")
        select = bind(texts.SELECT_WAITING, at.priority, at.sweep_ms, at.sweep_ms, at.after, limit)
        now, found = await self._read(select, slow=True)
        rows = _read_page(joined(found))
        page = [
            decide.waiting(task_id, task_type, priority, due, now) for task_id, task_type, priority, due, _ in rows
        ]
        if len(rows) == limit:
            return page, Position(at.priority, rows[-1][4], rows[-1][0])
        lower = [priority for priority in QUEUES if priority < at.priority]
        return page, Position(lower[0], 0, "") if lower else None

    async def held(self, lease: Lease) -> list[Held]:
        now, found = await self._read(bind(texts.SELECT_HELD, lease.epoch, lease.worker_id))
        return [
            Held(task_id, attempt, (now - started) / 1000, cancelled is not None)
            for task_id, attempt, started, cancelled in _read_held(joined(found))
        ]

    async def _read_one(self, statement: bytes, *, slow: bool = False) -> bytes:
        """What it answers, as a JSON list."""
        _, found = await self._read(statement, slow=slow)
        return joined(found)

    async def _read(self, *statements: bytes, slow: bool = False) -> tuple[int, list[Result]]:
        lane = self._reading_slowly if slow else self._reading
        return cast("tuple[int, list[Result]]", await lane.call(_look, statements))


async def _batch(
    lane: Lane, verb: Callable[..., Any], argument: object, rows: Sequence[Any], size: int = 0
) -> Any:
    if not rows:
        await trio.lowlevel.checkpoint()
        return []
    return await lane.call(verb, argument, rows, size)


async def _look(statements: tuple[bytes, ...], calls: list[Call], tx: Transaction) -> None:
    share(calls, await tx.look(*statements))
