"""The leader's sweep: what a crash, a lost message or a full queue left behind comes back here.

Each duty is carried out again after a pause when the store is away.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio

from atm.coordinator import Coordinator, Hint, TaskEvent
from atm.errors import StoreUnavailable
from atm.metrics import Metrics
from atm.store import Position, Store, Waiting
from atm.task import QUEUES, Status

PAGE = 500
SWEEP_INTERVAL = 1.0
RECOVER_INTERVAL = 10.0
PURGE_INTERVAL = 60.0
PURGE_SLICE_PAUSE = 0.05
REBUILD_LIMIT = 500_000
"""Waiting tasks that a rebuild queues; those behind come by the sweep when the queues run short."""

logger = logging.getLogger("atm.leader")


async def recover_lost(store: Store, coordinator: Coordinator, metrics: Metrics) -> None:
    """Take the tasks of lost workers back, as many as there are."""
    while True:
        lost = await store.recover(PAGE)
        metrics.recoveries.inc(len(lost))
        again = [Hint(r.task_id, r.task_type, r.priority) for r in lost if r.status is Status.PENDING]
        await coordinator.push(again)
        await coordinator.publish([TaskEvent(r.task_id, r.status) for r in lost if r.status is not Status.PENDING])
        if lost:
            logger.warning("recovered %d tasks of lost workers, %d run again", len(lost), len(again))
        if len(lost) < PAGE:
            return


async def rebuild(store: Store, coordinator: Coordinator) -> None:
    """Queue what waits in the store, high priority first."""
    position: Position | None = None
    count = 0
    while count < REBUILD_LIMIT:
        page, position = await store.waiting(position, PAGE)
        await coordinator.push(_hints(page))
        count += len(page)
        if position is None:
            break
    if count:
        logger.info("queued %d waiting tasks", count)


async def sweep(store: Store, coordinator: Coordinator) -> None:
    """Queue due tasks that nobody claims, for queues that have run short; page after page while they are full."""
    full = True
    while full:
        short = [
            priority
            for priority, queue in zip(QUEUES, coordinator.queues(), strict=True)
            if queue.length - queue.parked < PAGE
        ]
        found = await store.sweep(short, PAGE) if short else []
        await coordinator.push(_hints(found))
        for task_type in {waiting.task_type for waiting in found}:
            # A type that is blocked by a lost message gets one try.
            await coordinator.unblock(task_type, 1)
        full = len(found) >= PAGE


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
