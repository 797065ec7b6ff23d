"""Claims of the MySQL store: of tasks that are named (``claim``), and of any that are due (``poll``).

While no type has a cap a claim is one trip, an update whose conditions say all. What that does not get is looked
at with care: rows, lease and limited types are locked, and each task is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from atm.serial import Call, share
from atm.store import Claimed, Lease, Refusal, Refused
from atm.stores import decide
from atm.stores import mysql_texts as texts
from atm.stores import mysql_writes as writes
from atm.stores.decide import Change, End
from atm.stores.mysql_connection import Rejected
from atm.stores.mysql_known import Claim, Known
from atm.stores.mysql_settings import DEFAULTS, Settings, by_name, is_limited
from atm.stores.mysql_texts import COMMIT, joined, keys
from atm.stores.mysql_transaction import Transaction
from atm.stores.mysql_values import bind, listing
from atm.stores.mysql_writes import Logs, write
from atm.task import Task, TaskType

_read_claimable = msgspec.json.Decoder(list[tuple[int, Task]]).decode

_NO_LEASE = Refused(Refusal.NO_LEASE)
_GONE = Refused(Refusal.GONE)
_BLOCKED, _EXPIRED = Refused(Refusal.BLOCKED), Refused(Refusal.EXPIRED)


class Claims:
    """The verbs ``claim`` and ``poll``."""

    def __init__(self, settings: Settings, known: Known) -> None:
        self._settings = settings
        self._known = known

    async def claim(self, lease: Lease, calls: list[Call], tx: Transaction) -> None:
        types = await self._settings.types(tx)
        asked = [task_id for call in calls for task_id in call.rows]
        if tx.claimed is None and not tx.losses and not any(map(is_limited, types.values())):
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
        self, lease: Lease, task_ids: Iterable[str], types: Mapping[str, TaskType], tx: Transaction
    ) -> dict[str, Claimed]:
        """In one trip, those that are due, unless a look at caps is needed or the lease is over."""
        update = bind(writes.UPDATE_CLAIMED, lease.worker_id, lease.epoch, decide.OVERRUN)
        free = bind(texts.STILL_FREE, lease.epoch, lease.worker_id, tx.shift)
        select = bind(texts.SELECT_CLAIMED, lease.worker_id)
        now = bind(writes.CLAIMED_NOW, lease.epoch)
        tx.taken |= dict.fromkeys(task_ids)
        claims, reads = [], []
        for some in keys(task_ids):
            claims.append(update + some + writes.STILL_DUE + free)
            reads.append(select + some + now)
        try:
            # Each update is a transaction: every statement is answered by a packet of its own, which costs.
            results = await tx.each(*claims, *reads)
        except Rejected:
            tx.losses += 1  # an update before it may have counted
            raise
        return self._news(joined(results[len(claims) :]), types)

    async def _claim_with_care(
        self, lease: Lease, task_ids: list[str], types: Mapping[str, TaskType], tx: Transaction
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
        taking = _Taking(lease, now, types, _read_claimable(joined(found)))
        await taking.make_room([name.decode() for name in limited.column], tx)
        verdicts = {task_id: mine.get(task_id) or taking.judge(task_id) for task_id in task_ids}
        await self._take(taking, tx)
        return verdicts

    async def poll(self, argument: tuple[Lease, tuple[str, ...], int], calls: list[Call], tx: Transaction) -> None:
        lease, task_types, limit = argument
        types = await self._settings.types(tx)
        [found] = await tx.run(texts.SELECT_SETTINGS + b" WHERE limited")
        limited = by_name(found)
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
        taking = _Taking(lease, now, types, _read_claimable(joined(pages))[: limit - len(mine)])
        await taking.make_room(limited, tx)
        verdicts = [*mine.values(), *(taking.judge(task_id) for task_id in list(taking.found))]
        await self._take(taking, tx)
        # Of calls joined by chance the first one gets the tasks.
        calls[0].succeed([verdict for verdict in verdicts if isinstance(verdict, Claimed)])

    async def _claimed_before(
        self, lease: Lease, types: Mapping[str, TaskType], tx: Transaction
    ) -> dict[str, Claimed]:
        """What an earlier try, whose outcome was unknown, has claimed."""
        if not (tx.losses and tx.taken):
            return {}
        own = bind(" AND status = 'PROCESSING' AND worker_epoch = %s FOR UPDATE", lease.epoch)
        select = bind(texts.SELECT_CLAIMED, lease.worker_id)
        found = await tx.run(*(select + some + own for some in keys(tx.taken)))
        claimed = self._news(joined(found), types)
        return {name: c for name, c in claimed.items() if tx.taken[name] in (None, c.task.attempt)}

    def _news(self, rows: bytes, types: Mapping[str, TaskType]) -> dict[str, Claimed]:
        """The tasks among the rows, all of them claimed by this process, whose claim is news."""
        claimed: dict[str, Claimed] = {}
        for task in self._known.learn(_read_claimable(rows)):
            if task.expires_ms is not None:
                task = replace(task, timeout=decide.time_left(task, task.started_ms or 0))
            claimed[task.task_id] = Claimed(task, types.get(task.task_type) or DEFAULTS)
        return claimed

    async def _take(self, taking: _Taking, tx: Transaction) -> None:
        tx.taken |= {task_id: claim.attempt for task_id, claim in taking.taken.items()}
        await tx.run(*taking.statements(), COMMIT)
        self._known.add(taking.taken)


class _Taking:
    """What one transaction takes of the tasks that it has found and locked: who gets what."""

    def __init__(
        self, lease: Lease, now: int, types: Mapping[str, TaskType], found: list[tuple[int, Task]]
    ) -> None:
        self.found = {item[1].task_id: item for item in found}
        self.taken: dict[str, Claim] = {}
        self._lease = lease
        self._now = now
        self._types = types
        self._room: dict[str, float] = {}  # how many more of a limited type may run
        self._expired: dict[str, Change | End] = {}
        self._logs = Logs()

    async def make_room(self, limited: Iterable[str], tx: Transaction) -> None:
        """Lock the limited types among the claimable tasks, and find out how many more of each may run."""
        names = sorted(set(limited) & {task.task_type for _, task in self.found.values()})
        if not names:
            return
        locking = texts.SELECT_SETTINGS + b" WHERE task_type IN " + listing(names) + b" FOR UPDATE"
        # Counted by statements behind the locks: they see all that was committed before.
        locked, *counts = await tx.run(locking, *(bind(texts.COUNT_RUNNING, name) for name in names))
        settings = by_name(locked)
        self._types = {**self._types, **settings}
        for name, count in zip(names, counts, strict=True):
            self._room[name] = _room(settings[name], count.number) if name in settings else math.inf

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
                self._expired[task_id] = decide.expired(task_id, self._logs.add)
                return _EXPIRED
            task = replace(task, timeout=left)
        if task.task_type in self._room:
            if self._room[task.task_type] <= 0:
                return _BLOCKED
            self._room[task.task_type] -= 1
        self.taken[task_id] = Claim(task.attempt, log_count if task.children else -log_count, self._now)
        if task.started_ms != self._now:  # read before the row was locked
            task = replace(task, started_ms=self._now)
        return Claimed(task, self._types.get(task.task_type) or DEFAULTS)

    def statements(self) -> list[bytes]:
        update = bind(writes.UPDATE_CLAIMED, self._lease.worker_id, self._lease.epoch, decide.OVERRUN)
        claims = [update + some for some in keys(self.taken)]
        return [*claims, *write(self._expired, self._logs, self._now)]


def _room(settings: TaskType, running: int) -> float:
    left = decide.room(settings, running)
    return math.inf if left is None else left
