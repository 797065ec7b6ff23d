"""The store of a cluster: MySQL or MariaDB, many nodes at once.

Every verb is a transaction of two round trips: one locks and reads the rows, in the order of their keys, the
other writes what was decided. READ COMMITTED; what is decided is decided on locked rows.

A connection that is lost while a transaction is under way leaves open whether it counted. Then the verb is run
again on another connection, and finds what its first try has written.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import trio
from msgspec.structs import replace

from atm.errors import IdempotencyConflict, StartError, StoreUnavailable, WorkerIdTaken
from atm.lane import Lane
from atm.serial import Call, fail_all, share
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
from atm.stores import mysql_texts as texts
from atm.stores.decide import Change, End, Log, Parent, Row
from atm.stores.mysql_driver import (
    OUTAGE,
    RETRY,
    Address,
    Connection,
    Dialer,
    Lost,
    Pool,
    Rejected,
    Result,
    Unreachable,
    bind,
    connect,
    listing,
)
from atm.stores.mysql_schema import migrate
from atm.stores.mysql_texts import COMMIT, Logs, joined, keys
from atm.task import QUEUES, Status, Task, TaskType

TRIES = 10
LOSSES = 2
MAX_JITTER = 0.05
SETTINGS_AGE = 1.0
MIGRATION_PATIENCE = 600.0
RARE = 10_000
DAY = 86_400_000
FORGOTTEN_AT_ONCE = 100
RECOVERY_JITTER = 1000
CLOCK_STEP = 1000
NOT_NULL, DUPLICATE = 1048, 1062

_read_claimable = msgspec.json.Decoder(list[tuple[int, Task]]).decode
_read_rows = msgspec.json.Decoder(list[tuple[int, Row, int | None]]).decode
_read_lost = msgspec.json.Decoder(list[tuple[int, Row, int | None, int]]).decode
_read_parents = msgspec.json.Decoder(list[Parent]).decode
_read_children = msgspec.json.Decoder(list[tuple[str, str, int, Row, int | None]]).decode
_read_tasks = msgspec.json.Decoder(list[Task]).decode
_read_logs = msgspec.json.Decoder(list[LogRow]).decode
_read_settings = msgspec.json.Decoder(TaskType).decode
_read_owners = msgspec.json.Decoder(list[tuple[str, str, str, str]]).decode
_read_created = msgspec.json.Decoder(list[tuple[str, int]]).decode
_read_waiting = msgspec.json.Decoder(list[tuple[str, str, int, int]]).decode
_read_page = msgspec.json.Decoder(list[tuple[str, str, int, int, int]]).decode
_read_held = msgspec.json.Decoder(list[tuple[str, int, int, int | None]]).decode

_NO_LEASE = Refused(Refusal.NO_LEASE)
_GONE = Refused(Refusal.GONE)
_BLOCKED, _EXPIRED = Refused(Refusal.BLOCKED), Refused(Refusal.EXPIRED)
_SUCCEEDED, _STALE = Finished(Status.SUCCESS), Finished(None)
_DEFAULTS = TaskType(task_type="")
T = TypeVar("T")


class Watch:
    """Whether the store could be looked at without a break for as long as a lease lasts, by an even clock.

    After an outage, or a step of the server's clock, leases ran out that could not be renewed, or seem to have
    run out. Times are milliseconds.
    """

    def __init__(self, length: float) -> None:
        self._length = length
        self._since: float | None = None
        self._last: tuple[float, float] | None = None

    def look(self, server: float, own: float) -> bool:
        """Tell it the two clocks, read just now. True when all was well for long enough."""
        if self._last is not None:
            passed = own - self._last[1]
            if passed > self._length / 2 or abs(server - self._last[0] - passed) > CLOCK_STEP:
                self._since = None
        self._last = server, own
        if self._since is None:
            self._since = own
        return own - self._since >= self._length

    def interrupt(self) -> None:
        """The store could not be looked at."""
        self._since = self._last = None


class _Transaction:
    """A group under way: its connection, which changes from try to try, and what is known of earlier tries."""

    connection: Connection

    def __init__(self, set_now: bytes) -> None:
        self._set_now = set_now
        self.losses = 0  # tries whose outcome is unknown
        self.taken: dict[str, int | None] = {}  # tasks that those may have claimed, with the attempt if known
        self.claimed: dict[str, Claimed] | None = None  # what a first step has committed

    async def run(self, *statements: bytes) -> list[Result]:
        return await self.connection.run(*statements)

    async def at_once(self, *statements: bytes) -> None:
        """A transaction in one trip."""
        await self.connection.run(self._set_now, texts.BEGIN, *statements, COMMIT)

    async def begin(self, *reads: bytes) -> tuple[int, list[Result]]:
        """Begin, and read; now by the server's clock, and what was read."""
        _, _, now, *found = await self.connection.run(texts.BEGIN, self._set_now, texts.NOW, *reads)
        return now.number, found

    async def lock(self, *reads: bytes) -> tuple[int, list[Result]]:
        """Like ``begin``, for reads that wait for locks.

        The clock is read again behind them: who held them before has written times later than the beginning.
        """
        _, found = await self.begin(*reads, self._set_now, texts.NOW)
        *found, _, now = found
        return now.number, found

    async def look(self, *statements: bytes) -> tuple[int, list[Result]]:
        """Like ``begin``, but each statement is its own transaction."""
        now, *found = await self.each(texts.NOW, *statements)
        return now.number, found

    async def each(self, *statements: bytes) -> list[Result]:
        """In one trip, each statement a transaction of its own."""
        _, *results = await self.connection.run(self._set_now, *statements)
        return results

    async def rows(self, task_ids: Iterable[str], logs: Logs) -> tuple[int, dict[str, Row]]:
        """Begin; now, and the rows, locked."""
        now, found = await self.lock(*(texts.SELECT_ROWS + some + b" FOR UPDATE" for some in keys(task_ids)))
        rows: dict[str, Row] = {}
        for log_count, row, started_ms in _read_rows(joined(found)):
            rows[row.task_id] = row
            logs.know(log_count, row, started_ms)
        await self.find_busy(rows.values())
        return now, rows

    async def find_busy(self, rows: Iterable[Row]) -> None:
        """Mark those that have living children. Few tasks have any, and none of these costs a trip."""
        parents = {row.task_id: row for row in rows if row.children}
        if parents:
            for found in await self.run(*texts.busy(parents)):
                for name in found.column:
                    parents[name.decode()].busy = True


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
        self._boot_id = boot_id or uuid.uuid4().hex
        self._lease_ms, self._margin_ms = round(lease * 1000), round(margin * 1000)
        self._shift = shift
        self._on_commit = on_commit or (lambda seconds: None)
        dialer = Dialer(address, patience)
        self._pool = Pool(dialer, max(1, pool_size - 1))
        self._lease_pool = Pool(dialer, 1)  # a renewal waits for nobody
        self._creating, self._claiming, self._finishing = self._lane(2), self._lane(1), self._lane(2)
        self._others, self._chores = self._lane(1), self._lane(1)
        self._reading, self._reading_slowly = self._lane(2), self._lane(1)
        self._leasing = Lane(lambda calls: self._carry_out(self._lease_pool, calls))
        self._types: Mapping[str, TaskType] = {}
        self._types_known = False
        self._watch = Watch(self._lease_ms)
        self._had: set[str] = set()  # worker ids that this process had a lease for
        self._claims: dict[str, _Claim] = {}  # of the tasks that are known to be claimed here

    def _lane(self, workers: int) -> Lane:
        return Lane(lambda calls: self._carry_out(self._pool, calls), workers)

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
                nursery.start_soon(self._keep_settings)
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
        return cast("list[Created]", await _batch(self._creating, self._create, keyed, tasks, size))

    async def spawn(self, children: Sequence[NewChild]) -> list[Spawned]:
        size = sum(len(child.task.payload_json) for child in children)
        return cast("list[Spawned]", await _batch(self._others, self._spawn, None, children, size))

    async def claim(self, lease: Lease, task_ids: Sequence[str]) -> list[Claimed | Refused]:
        return cast("list[Claimed | Refused]", await _batch(self._claiming, self._claim, lease, task_ids))

    async def finish(self, lease: Lease, outcomes: Sequence[Outcome]) -> list[Finished]:
        size = sum(len(o.result_json or "") + len(o.details or "") for o in outcomes)
        return cast("list[Finished]", await _batch(self._finishing, self._finish, lease, outcomes, size))

    async def cancel(self, task_ids: Sequence[str]) -> list[CancelVerdict]:
        return cast("list[CancelVerdict]", await _batch(self._others, self._cancel, None, task_ids))

    async def cancel_children(self, parents: Sequence[str], limit: int) -> CancelledChildren:
        argument = (tuple(parents), limit)
        return cast("CancelledChildren", await self._others.call(self._cancel_children, argument))

    async def settle(self, limit: int) -> list[Settled]:
        return cast("list[Settled]", await self._chores.call(self._settle, limit))

    async def reopen(self, task_ids: Sequence[str]) -> list[Reopened]:
        return cast("list[Reopened]", await _batch(self._others, self._reopen, None, task_ids))

    async def recover(self, limit: int) -> list[Recovered]:
        return cast("list[Recovered]", await self._chores.call(self._recover, limit))

    async def sweep(self, priorities: Sequence[int], limit: int) -> list[Waiting]:
        return cast("list[Waiting]", await self._chores.call(self._sweep, (tuple(priorities), limit)))

    async def poll(self, lease: Lease, task_types: Sequence[str], limit: int) -> list[Claimed]:
        argument = (lease, tuple(sorted(task_types)), limit)
        return cast("list[Claimed]", await self._claiming.call(self._poll, argument))

    async def note(self, notes: Sequence[Note]) -> None:
        size = sum(len(note.message or "") + len(note.progress_json or "") for note in notes)
        await _batch(self._others, self._note, None, notes, size)

    async def purge(self, older_than: float, limit: int) -> int:
        return cast("int", await self._chores.call(self._purge, (older_than, limit)))

    # leases and settings

    async def register(self, worker_id: str, capacity: int, task_types: Sequence[str]) -> Lease:
        argument = (worker_id, capacity, tuple(task_types))
        return cast("Lease", await self._leasing.call(self._register, argument))

    async def renew(self, lease: Lease) -> float:
        return cast("float", await self._leasing.call(self._renew, lease))

    async def retire(self, lease: Lease) -> None:
        await self._leasing.call(self._retire, lease)

    async def expire(self) -> list[str]:
        return cast("list[str]", await self._chores.call(self._expire, None))

    async def campaign(self, candidate: str, seconds: float) -> bool:
        return cast("bool", await self._leasing.call(self._campaign, (candidate, seconds)))

    async def change_task_type(self, task_type: str, changes: Mapping[str, Any]) -> TaskType:
        # The changes as JSON, to be compared.
        argument = (task_type, texts.encode(changes))
        return cast("TaskType", await self._others.call(self._change_task_type, argument))

    # reads

    async def ping(self) -> None:
        await self._read(b"SELECT 1")

    async def is_early(self, due_ms: int) -> bool:
        now, _ = await self._read()
        return due_ms > now

    async def get(self, task_id: str) -> Task | None:
        found = _read_tasks(await self._read_one(texts.SELECT_TASKS + listing([task_id])))
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
        for log_count, row, started_ms in _read_rows(joined([owed])):
            claim = decide.claimed(task_id, row.attempt, row.worker_id or "")
            if len(rows) == -log_count:  # else it was written meanwhile
                values = (1 - log_count, *claim[1:], started_ms)
                rows.append(msgspec.convert(values, LogRow))
        return rows or None

    async def find(self, where: TaskFilter, before: str | None, limit: int) -> list[Task]:
        rare = where.status not in (None, Status.SUCCESS) and await self._is_rare(where.status)
        found = await self._read_one(texts.find(where, before, limit, rare=rare), slow=True)
        return sorted(_read_tasks(found), key=lambda task: task.task_id, reverse=True)

    async def _is_rare(self, status: Status | None) -> bool:
        """Whether so few tasks are in this state that sorting them beats a walk through the newest tasks."""
        _, [count] = await self._read(bind(texts.COUNT_SOME, status, RARE + 1), slow=True)
        return count.number <= RARE

    async def task_types(self) -> Mapping[str, TaskType]:
        _, [found] = await self._read(texts.SELECT_SETTINGS)
        return _by_name(found)

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
        return cast("tuple[int, list[Result]]", await lane.call(self._look, statements))

    async def _look(self, statements: tuple[bytes, ...], calls: list[Call], tx: _Transaction) -> None:
        share(calls, await tx.look(*statements))

    # how a group is carried out

    async def _carry_out(self, pool: Pool, calls: list[Call]) -> None:
        """Carry out a group in one transaction; where a call's data is at fault, each call in one of its own."""
        began = time.perf_counter()
        try:
            await self._transact(pool, calls)
            self._on_commit(time.perf_counter() - began)
        except (StoreUnavailable, WorkerIdTaken) as error:
            if isinstance(error, StoreUnavailable):
                self._watch.interrupt()
            fail_all(calls, error)
        except Exception as error:  # noqa: BLE001 - a bug in one call must not end the others
            if len(calls) == 1:
                calls[0].fail(error)
                return
            fail_all(calls, StoreUnavailable("the transaction was undone"))
            for call in calls:
                await self._carry_out(pool, [call])

    async def _transact(self, pool: Pool, calls: list[Call]) -> None:
        """Run the verb until it has come through."""
        tx = _Transaction(bind(texts.SET_NOW, self._shift()))
        for number in range(TRIES):
            await trio.sleep(random.uniform(0, MAX_JITTER) * min(number, 4))
            try:
                async with pool.connection() as tx.connection:
                    await calls[0].verb(calls[0].argument, calls, tx)
                    return
            except Rejected as error:
                if error.code in OUTAGE:
                    raise StoreUnavailable(f"MySQL at {self.address}: {error}") from None
                if error.code not in RETRY and not _is_race(error, tx):
                    raise
                reason = f"MySQL at {self.address}: {error}"
            except Lost as error:
                tx.losses += 1
                reason = str(error)
                if tx.losses > LOSSES:
                    break
        raise StoreUnavailable(reason)

    async def _settings(self, tx: _Transaction) -> Mapping[str, TaskType]:
        """The settings of the types, about a second old at most."""
        if not self._types_known:
            [found] = await tx.run(texts.SELECT_SETTINGS)
            self._types, self._types_known = _by_name(found), True
        return self._types

    async def _keep_settings(self) -> None:
        """Learn what other nodes change, so that no create or claim has to wait for that."""
        while True:
            await trio.sleep(SETTINGS_AGE)
            with suppress(StoreUnavailable):
                before, found = self._types, await self.task_types()
                if self._types is before:  # else they were changed here meanwhile
                    self._types = found

    # create

    async def _create(self, keyed: bool, calls: list[Call], tx: _Transaction) -> None:
        types = await self._settings(tx)
        done = await self._created_before(calls, tx) if tx.losses else {}
        owners = await self._owners(calls, tx) if keyed else {}
        new: list[NewTask] = []
        receipts: list[tuple[Call, list[Created | NewTask]]] = []
        for call in calls:
            try:
                replays = decide.replays(call.rows, owners) if keyed else repeat(None)
            except IdempotencyConflict as conflict:
                call.fail(conflict)
                continue
            made = [
                done.get(task.task_id) or replay or task for task, replay in zip(call.rows, replays, strict=False)
            ]
            new += [task for task in made if isinstance(task, NewTask)]
            receipts.append((call, made))
        now = 0
        if new:
            inserts = texts.insert_tasks((task, types.get(task.task_type) or _DEFAULTS) for task in new)
            now, _ = await tx.begin(*inserts, COMMIT)
        for call, made in receipts:
            call.succeed([_receipt(item, now) for item in made])

    async def _owners(self, calls: list[Call], tx: _Transaction) -> decide.Owners:
        wanted = keys(
            task.idempotency_key for call in calls for task in call.rows if task.idempotency_key is not None
        )
        rows = _read_owners(joined(await tx.run(*(texts.SELECT_OWNERS + some for some in wanted))))
        return {key: (task_id, task_type, payload) for key, task_id, task_type, payload in rows}

    async def _created_before(self, calls: list[Call], tx: _Transaction) -> dict[str, Created]:
        """What an earlier try, whose outcome was unknown, has created: the callers chose the ids."""
        wanted = keys(task.task_id for call in calls for task in call.rows)
        rows = _read_created(joined(await tx.run(*(texts.SELECT_CREATED + some for some in wanted))))
        return {task_id: Created(task_id, due_in=wait / 1000) for task_id, wait in rows}

    # claim

    async def _claim(self, lease: Lease, calls: list[Call], tx: _Transaction) -> None:
        types = await self._settings(tx)
        asked = [task_id for call in calls for task_id in call.rows]
        if tx.claimed is None and not tx.losses and not any(map(_is_limited, types.values())):
            tx.claimed = await self._claim_at_once(lease, asked, types, tx)
        got: dict[str, Claimed | Refused] = dict(tx.claimed or {})
        if rest := [task_id for task_id in dict.fromkeys(asked) if task_id not in got]:
            got |= await self._claim_with_care(lease, rest, types, tx)
        for call in calls:
            verdicts = []
            for task_id in call.rows:
                verdicts.append(got[task_id])
                if isinstance(got[task_id], Claimed):
                    got[task_id] = _GONE  # asked for once more
            call.succeed(verdicts)

    async def _claim_at_once(
        self, lease: Lease, task_ids: Iterable[str], types: Mapping[str, TaskType], tx: _Transaction
    ) -> dict[str, Claimed]:
        """In one trip, those that are due, unless a look at caps is needed or the lease is over."""
        update = bind(texts.UPDATE_CLAIMED, lease.worker_id, lease.epoch, decide.OVERRUN)
        free = bind(texts.STILL_FREE, lease.epoch, lease.worker_id, self._shift())
        now = bind(texts.CLAIMED_NOW, lease.epoch)
        tx.taken |= dict.fromkeys(task_ids)
        claims, reads = [], []
        for some in keys(task_ids):
            claims.append(update + some + texts.STILL_DUE + free)
            reads.append(texts.SELECT_CLAIMED + some + now)
        try:
            # Each update is a transaction: every statement is answered by a packet of its own, which costs.
            results = await tx.each(*claims, *reads)
        except Rejected:
            tx.losses += 1  # an update before it may have counted
            raise
        return self._claimed(joined(results[len(claims) :]), types)

    def _claimed(self, rows: bytes, types: Mapping[str, TaskType]) -> dict[str, Claimed]:
        """The tasks among the rows, all of them claimed by this process, whose claim is news."""
        claimed: dict[str, Claimed] = {}
        for log_count, task in _read_claimable(rows):
            known = self._claims.get(task.task_id)
            if known is None or known.attempt != task.attempt:
                if task.children:
                    log_count = abs(log_count)  # its end takes more than to find it as it is
                self._claims[task.task_id] = _Claim(task.attempt, log_count, task.started_ms or 0)
                if task.expires_ms is not None:
                    task = replace(task, timeout=decide.time_left(task, task.started_ms or 0))
                claimed[task.task_id] = Claimed(task, types.get(task.task_type) or _DEFAULTS)
        return claimed

    async def _claim_with_care(
        self, lease: Lease, task_ids: list[str], types: Mapping[str, TaskType], tx: _Transaction
    ) -> dict[str, Claimed | Refused]:
        claimable = bind(texts.SELECT_CLAIMABLE, lease.worker_id)
        now, (alive, limited, *found) = await tx.lock(
            bind(texts.SELECT_LEASE, lease.epoch, lease.worker_id),
            b"SELECT task_type FROM task_config WHERE limited",
            *(claimable + some + b" AND status = 'PENDING' FOR UPDATE" for some in keys(task_ids)),
        )
        if not alive.rows:
            return dict.fromkeys(task_ids, _NO_LEASE)
        mine = await self._claimed_before(lease, types, tx)
        claims = _Claims(lease, now, types, _read_claimable(joined(found)))
        await self._prepare(claims, [name.decode() for name in limited.column], tx)
        verdicts = {task_id: mine.get(task_id) or claims.judge(task_id) for task_id in task_ids}
        await self._take(claims, tx)
        return verdicts

    async def _poll(
        self, argument: tuple[Lease, tuple[str, ...], int], calls: list[Call], tx: _Transaction
    ) -> None:
        lease, task_types, limit = argument
        types = await self._settings(tx)
        [found] = await tx.run(texts.SELECT_SETTINGS + b" WHERE limited")
        limited = _by_name(found)
        names = [name for name in task_types if name in limited]
        counts = await tx.run(*(bind(texts.COUNT_RUNNING, name) for name in names))
        full = {name for name, count in zip(names, counts, strict=True) if not _room(limited[name], count.number)}
        share(calls, [])
        if limit < 1 or not (asked := [name for name in task_types if name not in full]):
            return
        now, (alive, *pages) = await tx.lock(
            bind(texts.SELECT_LEASE, lease.epoch, lease.worker_id), *texts.poll(lease, listing(asked), limit)
        )
        if not alive.rows:
            return
        mine = await self._claimed_before(lease, types, tx)
        claims = _Claims(lease, now, types, _read_claimable(joined(pages))[: limit - len(mine)])
        await self._prepare(claims, limited, tx)
        verdicts = [*mine.values(), *(claims.judge(task_id) for task_id in list(claims.found))]
        await self._take(claims, tx)
        # Of calls joined by chance the first one gets the tasks.
        calls[0].succeed([verdict for verdict in verdicts if isinstance(verdict, Claimed)])

    async def _prepare(self, claims: _Claims, limited: Iterable[str], tx: _Transaction) -> None:
        """Lock the limited types among the claimable tasks, and find out how many more of each may run."""
        names = sorted(set(limited) & {task.task_type for _, task in claims.found.values()})
        if not names:
            return
        locking = texts.SELECT_SETTINGS + b" WHERE task_type IN " + listing(names) + b" FOR UPDATE"
        # Counted by statements behind the locks: they see all that was committed before.
        locked, *counts = await tx.run(locking, *(bind(texts.COUNT_RUNNING, name) for name in names))
        settings = _by_name(locked)
        claims.types = {**claims.types, **settings}
        for name, count in zip(names, counts, strict=True):
            left = _room(settings[name], count.number) if name in settings else math.inf
            claims.room[name] = left

    async def _claimed_before(
        self, lease: Lease, types: Mapping[str, TaskType], tx: _Transaction
    ) -> dict[str, Claimed]:
        """What an earlier try, whose outcome was unknown, has claimed."""
        if not (tx.losses and tx.taken):
            return {}
        own = bind(" AND status = 'PROCESSING' AND worker_epoch = %s FOR UPDATE", lease.epoch)
        found = await tx.run(*(texts.SELECT_CLAIMED + some + own for some in keys(tx.taken)))
        claimed = self._claimed(joined(found), types)
        return {name: c for name, c in claimed.items() if tx.taken[name] in (None, c.task.attempt)}

    async def _take(self, claims: _Claims, tx: _Transaction) -> None:
        tx.taken |= {task_id: claim.attempt for task_id, claim in claims.taken.items()}
        await tx.run(*claims.statements(), COMMIT)
        self._claims |= claims.taken

    # parents and children

    async def _spawn(self, _: None, calls: list[Call], tx: _Transaction) -> None:
        types = await self._settings(tx)
        children: list[NewChild] = [child for call in calls for child in call.rows]
        logs = Logs()
        now, _rows = await tx.rows((child.parent_id for child in children), logs)
        wanted = [decide.child_key(child.parent_id, child.ordinal) for child in children]
        by_id = [texts.SELECT_PARENTS + some for some in keys(child.parent_id for child in children)]
        by_key = [texts.SELECT_CHILDREN + some + b" FOR UPDATE" for some in keys(wanted)]
        found = await tx.run(*by_id, *by_key)
        parents = {parent.task_id: parent for parent in _read_parents(joined(found[: len(by_id)]))}
        former: dict[str, tuple[Row, str]] = {}
        for key, payload, log_count, row, started_ms in _read_children(joined(found[len(by_id) :])):
            former[key] = row, payload
            logs.know(log_count, row, started_ms)
        spawning = _Spawning(now, parents, former, logs)
        spawning.capped = await self._waiting_for_themselves(children, parents, types, tx)
        for call in calls:
            call.succeed([spawning.judge(child) for child in call.rows])
        inserts = texts.insert_tasks((task, types.get(task.task_type) or _DEFAULTS) for task in spawning.new)
        await tx.run(*inserts, *spawning.statements(), COMMIT)
        for parent_id in parents:
            if (claim := self._claims.get(parent_id)) is not None:
                self._claims[parent_id] = claim._replace(log_count=abs(claim.log_count))

    async def _waiting_for_themselves(
        self,
        children: list[NewChild],
        parents: Mapping[str, Parent],
        types: Mapping[str, TaskType],
        tx: _Transaction,
    ) -> set[tuple[str, str]]:
        """By parent and type, the children whose type has a cap that an ancestor of theirs has a slot of."""
        capped = {name for name, settings in types.items() if settings.max_concurrent is not None}
        asked = {(child.parent_id, child.task.task_type) for child in children if child.task.task_type in capped}
        pairs = sorted(asked)
        found = await tx.run(*(bind(texts.SELECT_ANCESTOR, *pair) for pair in pairs)) if pairs else []
        return {pair for pair, result in zip(pairs, found, strict=True) if result.rows}

    async def _cancel_children(
        self, argument: tuple[tuple[str, ...], int], calls: list[Call], tx: _Transaction
    ) -> None:
        parents, limit = argument
        met = 0
        alive: list[str] = []
        while parents and len(alive) < limit:
            found = [
                row
                for result in await tx.run(*texts.family(parents, limit))
                for row in cast("list[tuple[bytes, bytes, bytes]]", result.rows)
            ]
            met += len(found)
            alive += [name.decode() for name, _, asked in found if asked == b"0"]
            parents = tuple(name.decode() for name, has_children, _ in found if has_children != b"0")
        verdicts: dict[str, CancelVerdict] = {}
        if alive:
            logs = Logs()
            now, rows = await tx.rows(alive, logs)
            decisions = {name: decide.cancel_child(row, now, logs.add) for name, row in rows.items()}
            changes = {name: change for name, (_, change) in decisions.items() if change is not None}
            verdicts = {name: verdict for name, (verdict, _) in decisions.items() if verdict.changed}
            marked = [name for name in verdicts if name not in changes]
            marks = texts.pieces((name, logs.counts[name]) for name in marked)
            updates = [bind(texts.UPDATE_MARKED, piece, now) for piece in marks]
            orphaned = [name for name, verdict in verdicts.items() if verdict.status is not Status.TIMEOUT]
            updates += [texts.UPDATE_ORPHANED + some for some in keys(orphaned)]
            await tx.run(*updates, *texts.write(changes, logs, now), COMMIT)
        share(calls, CancelledChildren(met, verdicts))

    async def _settle(self, limit: int, calls: list[Call], tx: _Transaction) -> None:
        [found] = await tx.run(bind(texts.SELECT_WITHOUT_WORKER, limit))
        share(calls, [])
        if not found.rows:
            return
        logs = Logs()
        now, rows = await tx.rows((name.decode() for name in found.column), logs)
        decisions = [decide.settle(row, now, logs.add) for row in rows.values()]
        changes = {cast("str", change.seq): change for _, change in decisions if change is not None}
        await tx.run(*texts.write(changes, logs, now), COMMIT)
        share(calls, [settled for settled, _ in decisions])

    # the other transitions

    async def _finish(self, lease: Lease, calls: list[Call], tx: _Transaction) -> None:
        plain = {} if tx.losses else self._plain_ends(calls)
        if not (plain and await self._succeed(lease, plain, tx)):
            plain = {}
        others = [o for call in calls for o in call.rows if o.task_id not in plain]
        logs = Logs()
        now, rows = await tx.rows((o.task_id for o in others), logs) if others else (0, {})

        def judge(o: Outcome) -> tuple[Finished, Change | End | None]:
            if (success := plain.get(o.task_id)) is not None:
                return _SUCCEEDED if success.outcome is o else _STALE, None
            return decide.finish(rows.get(o.task_id), o, now, logs.add)

        changes = _judge(calls, judge)
        if others:
            await tx.run(*texts.write(changes, logs, now), COMMIT)
        for call in calls:
            for o in call.rows:
                claim = self._claims.get(o.task_id)
                if claim is not None and claim.attempt == o.attempt:
                    del self._claims[o.task_id]

    def _plain_ends(self, calls: list[Call]) -> dict[str, texts.Success]:
        """The successes of tasks that are, as far as known here, just as they were claimed."""
        plain: dict[str, texts.Success] = {}
        for call in calls:
            for o in call.rows:
                claim = self._claims.get(o.task_id)
                if (
                    o.status is Status.SUCCESS
                    and claim is not None
                    and claim.attempt == o.attempt
                    and claim.log_count < 0
                    and o.error_json is None
                    and o.details is None
                ):
                    plain[o.task_id] = texts.Success(o.task_id, *claim, o)
        return plain

    @staticmethod
    async def _succeed(lease: Lease, plain: Mapping[str, texts.Success], tx: _Transaction) -> bool:
        """Write these ends in one trip; False, and nothing is written, when one of the tasks has changed."""
        try:
            await tx.at_once(*texts.succeed(list(plain.values()), lease))
            return True
        except Rejected as error:
            if error.code not in (NOT_NULL, DUPLICATE):
                raise
            await tx.run(b"ROLLBACK")
            return False

    async def _cancel(self, _: None, calls: list[Call], tx: _Transaction) -> None:
        logs = Logs()
        now, rows = await tx.rows((task_id for call in calls for task_id in call.rows), logs)
        marked: list[str] = []

        def judge(task_id: str) -> tuple[CancelVerdict, Change | None]:
            verdict, change = decide.cancel(rows.get(task_id), now, logs.add)
            if change is None and verdict.changed:
                marked.append(task_id)
            return verdict, change

        changes = _judge(calls, judge)
        marks = texts.pieces((task_id, logs.counts[task_id]) for task_id in marked)
        updates = [bind(texts.UPDATE_MARKED, piece, now) for piece in marks]
        await tx.run(*updates, *texts.write(changes, logs, now), COMMIT)

    async def _reopen(self, _: None, calls: list[Call], tx: _Transaction) -> None:
        logs = Logs()
        now, rows = await tx.rows((task_id for call in calls for task_id in call.rows), logs)

        def judge(task_id: str) -> tuple[bool, Change | None]:
            row = rows.get(task_id)
            change = decide.reopen(row, now, logs.add) if row else None
            return change is not None, change

        writes = texts.write(_judge(calls, judge), logs, now)
        reads = [texts.SELECT_TASKS + some for some in keys(rows)]
        results = await tx.run(*writes, *reads, COMMIT)
        after = {task.task_id: task for task in _read_tasks(joined(results[len(writes) : -1]))}
        for call in calls:
            changed: list[bool] = call.result.unwrap()
            call.succeed([Reopened(after.get(name), ok) for name, ok in zip(call.rows, changed, strict=True)])

    async def _note(self, _: None, calls: list[Call], tx: _Transaction) -> None:
        logs = Logs()
        _now, rows = await tx.rows((note.task_id for call in calls for note in call.rows), logs)
        progress: dict[str, str | None] = {}
        for call in calls:
            for note in call.rows:
                row = rows.get(note.task_id)
                if row is None or row.attempt != note.attempt or row.status is not Status.PROCESSING:
                    continue
                progress[note.task_id] = note.progress_json or progress.get(note.task_id)
                if note.message is not None:
                    log_type = note.log_type.value
                    logs.add(Log(row.seq, log_type, None, None, note.message, note.worker_id, note.attempt))
                    if (claim := self._claims.get(note.task_id)) is not None:
                        self._claims[note.task_id] = claim._replace(log_count=abs(claim.log_count))
            call.succeed(None)
        noted = texts.pieces((task_id, logs.counts[task_id], text) for task_id, text in progress.items())
        await tx.run(*(bind(texts.UPDATE_NOTED, piece) for piece in noted), *logs.statements(), COMMIT)

    async def _recover(self, limit: int, calls: list[Call], tx: _Transaction) -> None:
        [suspects] = await tx.run(bind(texts.SELECT_LOST, limit))
        share(calls, [])
        if not suspects.rows:
            return
        still = b" AND status = 'PROCESSING' FOR UPDATE SKIP LOCKED"
        now, found = await tx.lock(*(texts.SELECT_LOST_ROWS + some + still for some in keys(suspects.column)))
        # Looked up behind the locks: who is not alive now will never be again.
        living = {int(epoch) for epoch in (await tx.run(texts.SELECT_LIVING))[0].column}
        logs = Logs()
        changes: dict[str, Change | End] = {}
        recovered: list[Recovered] = []
        lost = _read_lost(joined(found))
        await tx.find_busy(row for _, row, _, _ in lost)
        for log_count, row, started_ms, epoch in lost:
            if epoch not in living:
                logs.know(log_count, row, started_ms)
                delay = random.randrange(RECOVERY_JITTER)
                verdict, changes[row.task_id] = decide.recover(row, now, delay, logs.add)
                recovered.append(verdict)
        await tx.run(*texts.write(changes, logs, now), COMMIT)
        share(calls, recovered)

    async def _sweep(self, argument: tuple[tuple[int, ...], int], calls: list[Call], tx: _Transaction) -> None:
        priorities, limit = argument
        now, pages = await tx.begin(*(bind(texts.SELECT_OVERDUE, priority, limit) for priority in priorities))
        rows = _read_waiting(joined(pages))
        update = bind(texts.UPDATE_SWEPT, now, now, decide.SWEEP_FIRST, decide.SWEEP_MAX)
        await tx.run(*(update + some for some in keys(row[0] for row in rows)), COMMIT)
        share(calls, [decide.waiting(*row, now) for row in rows])

    async def _purge(self, argument: tuple[float, int], calls: list[Call], tx: _Transaction) -> None:
        older_than, limit = argument
        before = bind("SET @before := @now - %s", round(older_than * 1000))
        _, [_, found] = await tx.look(before, texts.oldest_ended(limit))
        still = b" AND completed_at IS NOT NULL AND sweep_at < @before FOR UPDATE SKIP LOCKED"
        ids = keys(cast("bytes", row[1]) for row in found.rows)
        _, locked = await tx.begin(*(texts.SELECT_IDS + some + still for some in ids))
        gone = [task_id for some in locked for task_id in some.column]
        await tx.run(*(delete + some for delete in texts.DELETES for some in keys(gone)))
        await tx.run(COMMIT)
        share(calls, len(gone))

    # leases and settings

    async def _register(
        self, argument: tuple[str, int, tuple[str, ...]], calls: list[Call], tx: _Transaction
    ) -> None:
        worker_id, capacity, task_types = argument
        now, [_, last] = await tx.begin(texts.LOCK_DOOR, bind(texts.SELECT_LAST_LEASE, worker_id))
        for boot_id, state, until in cast("list[tuple[bytes, bytes, bytes]]", last.rows):
            wait = int(until) + self._margin_ms - now
            if boot_id.decode() == self._boot_id:
                continue
            if worker_id in self._had:
                raise WorkerIdTaken(worker_id, None)
            if state == b"ALIVE" and wait > 0:
                raise WorkerIdTaken(worker_id, wait / 1000)
        values = (worker_id, self._boot_id, capacity, texts.encode(task_types), now, now + self._lease_ms)
        _, _, epoch, _ = await tx.run(
            bind(texts.SUPERSEDE, worker_id),
            bind(texts.INSERT_LEASE, *values),
            b"SELECT LAST_INSERT_ID()",
            COMMIT,
        )
        self._had.add(worker_id)
        self._claims.clear()  # those of a former lease are over
        share(calls, Lease(worker_id, epoch.number))
        await self._forget(now, tx)

    @staticmethod
    async def _forget(now: int, tx: _Transaction) -> None:
        """Remove leases that have long been over; of each worker the last one stays for a day."""
        try:
            [found] = await tx.run(bind(texts.SELECT_FORGOTTEN, now - DAY, FORGOTTEN_AT_ONCE))
            if found.rows:
                epochs = listing(int(epoch) for epoch in found.column)
                await tx.run(b"DELETE FROM worker_registry WHERE epoch IN " + epochs)
        except (Rejected, Lost):
            return  # another time

    async def _renew(self, lease: Lease, calls: list[Call], tx: _Transaction) -> None:
        renewal = bind(texts.RENEW, self._lease_ms, lease.epoch, lease.worker_id)
        now, [renewed] = await tx.look(renewal)
        self._has_been_well(now)
        share(calls, self._lease_ms / 1000 if renewed.met else 0.0)

    async def _retire(self, lease: Lease, calls: list[Call], tx: _Transaction) -> None:
        await tx.run(bind(texts.RETIRE, lease.epoch, lease.worker_id))
        share(calls, None)

    async def _expire(self, _: None, calls: list[Call], tx: _Transaction) -> None:
        over = bind("state = 'ALIVE' AND lease_until < @now - %s", self._margin_ms)
        now, [found] = await tx.look(b"SELECT epoch FROM worker_registry WHERE " + over)
        share(calls, [])
        if not self._has_been_well(now) or not found.rows:
            return
        epochs = listing(sorted(int(epoch) for epoch in found.column))
        select = b"SELECT epoch, worker_id FROM worker_registry WHERE epoch IN " + epochs
        now, [lost] = await tx.begin(select + b" AND " + over + b" FOR UPDATE")
        if lost.rows:
            update = b"UPDATE worker_registry SET state = 'LOST' WHERE epoch IN "
            await tx.run(update + listing(int(epoch) for epoch in lost.column), COMMIT)
        share(calls, [cast("bytes", row[1]).decode() for row in lost.rows])

    def _has_been_well(self, now: int) -> bool:
        # A leap that a test makes is time that has passed, for both clocks.
        return self._watch.look(now, trio.current_time() * 1000 + self._shift())

    async def _campaign(self, argument: tuple[str, float], calls: list[Call], tx: _Transaction) -> None:
        candidate, seconds = argument
        update = bind(texts.CAMPAIGN, candidate, candidate, round(seconds * 1000), candidate)
        _, [leads] = await tx.look(update)
        share(calls, bool(leads.met))

    async def _change_task_type(self, argument: tuple[str, bytes], calls: list[Call], tx: _Transaction) -> None:
        task_type, changes = argument
        insert = bind(texts.INSERT_TYPE, task_type, texts.encode(TaskType(task_type=task_type)))
        _, [_, found] = await tx.begin(insert, bind(texts.SELECT_TYPE, task_type))
        settings = decide.changed_type(_read_settings(found.column[0]), msgspec.json.decode(changes))
        await tx.run(bind(texts.UPDATE_TYPE, texts.encode(settings), _is_limited(settings), task_type), COMMIT)
        self._types_known = False
        share(calls, settings)


class _Claim(NamedTuple):
    """A task as it was claimed here."""

    attempt: int
    log_count: int
    started_ms: int


class _Claims:
    """The claims of one transaction: who gets what. ``room``: how many more of a limited type may run."""

    def __init__(
        self, lease: Lease, now: int, types: Mapping[str, TaskType], found: list[tuple[int, Task]]
    ) -> None:
        self.lease = lease
        self.types = types
        self.found = {item[1].task_id: item for item in found}
        self.room: dict[str, float] = {}
        self.taken: dict[str, _Claim] = {}
        self.expired: dict[str, Change | End] = {}
        self._now = now
        self._logs = Logs()

    def judge(self, task_id: str) -> Claimed | Refused:
        item = self.found.get(task_id)
        if item is None:
            return _GONE
        log_count, task = item
        if task.due_ms > self._now:
            return Refused(Refusal.NOT_DUE, (task.due_ms - self._now) / 1000)
        if task.expires_ms is not None:
            if not (left := decide.time_left(task, self._now)):
                self._logs.counts[task_id] = log_count
                self.expired[task_id] = decide.expired(task_id, self._logs.add)
                return _EXPIRED
            task = replace(task, timeout=left)
        if task.task_type in self.room:
            if self.room[task.task_type] <= 0:
                return _BLOCKED
            self.room[task.task_type] -= 1
        self.taken[task_id] = _Claim(task.attempt, log_count if task.children else -log_count, self._now)
        if task.started_ms != self._now:  # read before the row was locked
            task = replace(task, started_ms=self._now)
        return Claimed(task, self.types.get(task.task_type) or _DEFAULTS)

    def statements(self) -> list[bytes]:
        update = bind(texts.UPDATE_CLAIMED, self.lease.worker_id, self.lease.epoch, decide.OVERRUN)
        claims = [update + some for some in keys(self.taken)]
        return [*claims, *texts.write(self.expired, self._logs, self._now)]


class _Spawning:
    """The children of one transaction. ``former``: by key, those that are there, with their payloads.

    ``capped``: by parent and type, children that would wait for a slot of their ancestors.
    """

    def __init__(
        self, now: int, parents: Mapping[str, Parent], former: Mapping[str, tuple[Row, str]], logs: Logs
    ) -> None:
        self.new: list[NewTask] = []
        self.capped: set[tuple[str, str]] = set()
        self._now = now
        self._parents = parents
        self._former = former
        self._logs = logs
        self._changes: dict[str, Change | End] = {}
        self._adopted: list[tuple[str, str, int]] = []

    def judge(self, child: NewChild) -> Spawned:
        parent = self._parents.get(child.parent_id)
        if (refusal := decide.refusal_to_spawn(parent, child)) is not None:
            return refusal
        assert parent is not None
        key = decide.child_key(child.parent_id, child.ordinal)
        if key in self._former:
            row, payload = self._former[key]
            spawned, change = decide.rejoin(row, payload, child, self._now, self._logs.add)
            if change is not None:
                self._changes[spawned.task_id] = change
        elif (child.parent_id, child.task.task_type) in self.capped:
            return Spawned(SpawnState.CAPPED)
        else:
            self.new.append(replace(child.task, idempotency_key=key))
            spawned = Spawned(SpawnState.CREATED, child.task.task_id)
            self._logs.add(decide.started(parent, child))
        if spawned.state is not SpawnState.CONFLICT:
            self._adopted.append((spawned.task_id, child.parent_id, parent.deadline))
        return spawned

    def statements(self) -> list[bytes]:
        parents = sorted({parent_id for _, parent_id, _ in self._adopted})
        rows = texts.pieces((parent_id, self._logs.counts[parent_id]) for parent_id in parents)
        return [
            *texts.write(self._changes, self._logs, self._now),
            *(bind(texts.UPDATE_PARENTS, piece) for piece in rows),
            *(bind(texts.UPDATE_ADOPTED, piece) for piece in texts.pieces(self._adopted)),
        ]


async def _batch(
    lane: Lane, verb: Callable[..., Any], argument: object, rows: Sequence[Any], size: int = 0
) -> Any:
    if not rows:
        await trio.lowlevel.checkpoint()
        return []
    return await lane.call(verb, argument, rows, size)


def _judge(calls: list[Call], judge: Callable[[Any], tuple[Any, Change | End | None]]) -> dict[str, Change | End]:
    """Have every row of every call judged; give each call its verdicts; the changes by task."""
    changes: dict[str, Change | End] = {}
    for call in calls:
        verdicts = []
        for item in call.rows:
            verdict, change = judge(item)
            verdicts.append(verdict)
            if change is not None:
                changes[cast("str", change.seq)] = change
        call.succeed(verdicts)
    return changes


def _receipt(item: Created | NewTask, now: int) -> Created:
    if isinstance(item, Created):
        return item
    due_ms, _ = decide.due(item, now)
    return Created(item.task_id, due_in=(due_ms - now) / 1000)


def _is_limited(settings: TaskType) -> bool:
    return settings.max_concurrent is not None or not settings.enabled


def _room(settings: TaskType, running: int) -> float:
    left = decide.room(settings, running)
    return math.inf if left is None else left


def _by_name(found: Result) -> dict[str, TaskType]:
    return {settings.task_type: settings for settings in map(_read_settings, found.column)}


def _is_race(error: Rejected, tx: _Transaction) -> bool:
    """Whether a second look helps: a key was taken since the first one, or an earlier try comes through late."""
    return error.code == DUPLICATE and (tx.losses > 0 or error.text.endswith("task_idempotency'"))
