"""The leases of workers in the MySQL store, by the server's clock; and who leads while nobody coordinates."""

from __future__ import annotations

from typing import cast

import trio

from atm.errors import WorkerIdTaken
from atm.serial import Call, share
from atm.store import Lease
from atm.stores import mysql_texts as texts
from atm.stores.mysql_connection import Lost, Rejected
from atm.stores.mysql_known import Known
from atm.stores.mysql_texts import COMMIT
from atm.stores.mysql_transaction import Transaction
from atm.stores.mysql_values import bind, encode, listing

DAY = 86_400_000
FORGOTTEN_AT_ONCE = 100
CLOCK_STEP = 1000


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


class Leases:
    """The verbs.

    Args:
        boot_id: tells this process from others that use the same worker id.
        length_ms: how long a lease lasts from a renewal.
        margin_ms: from its end until it is taken for lost.
        known: its claims are over when a worker registers.
    """

    def __init__(self, boot_id: str, length_ms: int, margin_ms: int, known: Known) -> None:
        self.watch = Watch(length_ms)
        self._boot_id = boot_id
        self._length_ms = length_ms
        self._margin_ms = margin_ms
        self._known = known
        self._had: set[str] = set()  # worker ids that this process had a lease for

    async def register(
        self, argument: tuple[str, int, tuple[str, ...]], calls: list[Call], tx: Transaction
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
        values = (worker_id, self._boot_id, capacity, encode(task_types), now, now + self._length_ms)
        _, _, epoch, _ = await tx.run(
            bind(texts.SUPERSEDE, worker_id),
            bind(texts.INSERT_LEASE, *values),
            b"SELECT LAST_INSERT_ID()",
            COMMIT,
        )
        self._had.add(worker_id)
        self._known.clear()  # the claims of a former lease are over
        share(calls, Lease(worker_id, epoch.number))
        await _forget(now, tx)

    async def renew(self, lease: Lease, calls: list[Call], tx: Transaction) -> None:
        renewal = bind(texts.RENEW, self._length_ms, lease.epoch, lease.worker_id)
        now, [renewed] = await tx.look(renewal)
        self._has_been_well(now, tx)
        share(calls, self._length_ms / 1000 if renewed.met else 0.0)

    async def retire(self, lease: Lease, calls: list[Call], tx: Transaction) -> None:
        await tx.run(bind(texts.RETIRE, lease.epoch, lease.worker_id))
        share(calls, None)

    async def expire(self, _: None, calls: list[Call], tx: Transaction) -> None:
        over = bind("state = 'ALIVE' AND lease_until < @now - %s", self._margin_ms)
        now, [found] = await tx.look(b"SELECT epoch FROM worker_registry WHERE " + over)
        share(calls, [])
        if not self._has_been_well(now, tx) or not found.rows:
            return
        epochs = listing(sorted(int(epoch) for epoch in found.column))
        select = b"SELECT epoch, worker_id FROM worker_registry WHERE epoch IN " + epochs
        now, [lost] = await tx.begin(select + b" AND " + over + b" FOR UPDATE")
        if lost.rows:
            update = b"UPDATE worker_registry SET state = 'LOST' WHERE epoch IN "
            await tx.run(update + listing(int(epoch) for epoch in lost.column), COMMIT)
        share(calls, [cast("bytes", row[1]).decode() for row in lost.rows])

    def _has_been_well(self, now: int, tx: Transaction) -> bool:
        # A leap that a test makes is time that has passed, for both clocks.
        return self.watch.look(now, trio.current_time() * 1000 + tx.shift)


async def _forget(now: int, tx: Transaction) -> None:
    """Remove leases that have long been over; of each worker the last one stays for a day."""
    try:
        [found] = await tx.run(bind(texts.SELECT_FORGOTTEN, now - DAY, FORGOTTEN_AT_ONCE))
        if found.rows:
            epochs = listing(int(epoch) for epoch in found.column)
            await tx.run(b"DELETE FROM worker_registry WHERE epoch IN " + epochs)
    except (Rejected, Lost):
        return  # another time


async def campaign(argument: tuple[str, float], calls: list[Call], tx: Transaction) -> None:
    candidate, seconds = argument
    update = bind(texts.CAMPAIGN, candidate, candidate, round(seconds * 1000), candidate)
    _, [leads] = await tx.look(update)
    share(calls, bool(leads.met))
