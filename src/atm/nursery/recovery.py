"""The leader's sweep: what a crash, a lost message or a full queue left behind comes back here.

Each duty is carried out again after a pause when the store is away.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import trio

from atm import families
from atm.coordinator import Coordinator, Hint, TaskEvent
from atm.errors import StoreUnavailable
from atm.metrics import Metrics
from atm.store import Position, Store, Waiting
from atm.task import QUEUES, TERMINAL, Status

PAGE = 500
SWEEP_INTERVAL = 1.0
EXPIRE_INTERVAL = 1.0
EXPIRIES_PER_RECOVERY = 5
"""Looks for leases that ran out, to one for tasks whose lease was given up in another way."""

PURGE_INTERVAL = 60.0
PURGE_SLICE_PAUSE = 0.05
REBUILD_LIMIT = 500_000
"""Waiting tasks that a rebuild queues; those behind come by the sweep when the queues run short."""

logger = logging.getLogger("atm.leader")


class Recovery:
    """Finds lost workers and takes their tasks back."""

    def __init__(self, store: Store, coordinator: Coordinator, metrics: Metrics) -> None:
        self._store = store
        self._coordinator = coordinator
        self._metrics = metrics
        self._looks = 0

    async def __call__(self) -> None:
        lost = await self._store.expire()
        for worker_id in lost:
            logger.warning("worker %s is lost: its lease ran out", worker_id)
            await self._coordinator.unregister(worker_id)
        if lost or self._looks % EXPIRIES_PER_RECOVERY == 0:
            await recover_lost(self._store, self._coordinator, self._metrics)
        await settle(self._store, self._coordinator)
        self._looks += 1


async def recover_lost(store: Store, coordinator: Coordinator, metrics: Metrics) -> None:
    """Take the tasks of lost workers back, as many as there are."""
    while True:
        lost = await store.recover(PAGE)
        metrics.recoveries.inc(len(lost))
        again = [Hint(r.task_id, r.task_type, r.priority) for r in lost if r.status is Status.PENDING]
        await coordinator.push(again)
        await coordinator.publish([TaskEvent(r.task_id, r.status) for r in lost if r.status in TERMINAL])
        if lost:
            logger.warning("recovered %d tasks of lost workers, %d run again", len(lost), len(again))
        if len(lost) < PAGE:
            return


async def settle(store: Store, coordinator: Coordinator) -> None:
    """End tasks that no worker has and that wait for their children; these are ended first."""
    while True:
        found = await store.settle(PAGE)
        waiting = [s.task_id for s in found if s.status not in TERMINAL]
        ended = [s for s in found if s.status in TERMINAL]
        await coordinator.publish([TaskEvent(s.task_id, s.status) for s in ended])
        for task_type, count in Counter(s.task_type for s in ended).items():
            await coordinator.unblock(task_type, count)
        if waiting:
            await families.cancel_children(store, coordinator, waiting)
        if len(found) < PAGE or not ended:
            return


async def rebuild(store: Store, coordinator: Coordinator) -> None:
    """Where the queues are lost, queue what waits in the store, high priority first."""
    if not await coordinator.has_forgotten():
        return
    await coordinator.begin_rebuild()
    position: Position | None = None
    count = 0
    while count < REBUILD_LIMIT:
        page, position = await store.waiting(position, PAGE)
        await coordinator.push(_hints(page))
        count += len(page)
        if position is None:
            break
    await coordinator.end_rebuild()
    if count:
        logger.info("queued %d waiting tasks", count)


async def sweep(store: Store, coordinator: Coordinator) -> None:
    """Queue due tasks that nobody claims, for queues that have run short; page after page while hints are lost."""
    full = True
    while full:
        overview = await coordinator.overview()
        if overview is None:
            return
        short = [
            priority
            for priority, queue in zip(QUEUES, overview.queues, strict=True)
            if queue.length - queue.parked < PAGE
        ]
        found = await store.sweep(short, PAGE) if short else []
        missing = await coordinator.requeue(_hints(found))
        for task_type in {waiting.task_type for waiting in found}:
            # A type that is blocked by a lost message gets one try.
            await coordinator.unblock(task_type, 1)
        # Many that wait in their queues as they should are no reason to hurry.
        full = len(found) >= PAGE and missing > 0


async def purge(store: Store, retention: float) -> None:
    """Remove tasks that ended long ago, in small slices."""
    removed = 0
    while True:
        count = await store.purge(retention, PAGE)
        removed += count
        if count < PAGE:
            break
        await trio.sleep(PURGE_SLICE_PAUSE)
    if removed:
        logger.info("removed %d tasks older than the retention of %.0f s", removed, retention)


async def repeat(duty: Callable[[], Awaitable[None]], interval: float) -> None:
    """Carry the duty out every ``interval`` seconds, until cancelled."""
    while True:
        try:
            await duty()
        except StoreUnavailable as error:
            logger.error("put off: %s", error)
        await trio.sleep(interval)


def _hints(found: Iterable[Waiting]) -> list[Hint]:
    return [Hint(w.task_id, w.task_type, w.priority, w.due_in) for w in found]
