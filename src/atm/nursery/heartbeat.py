"""One beat of a worker: renew the lease, be seen, bring home missed cancels."""

from __future__ import annotations

import logging

import trio

from atm.coordinator import Coordinator
from atm.errors import StoreUnavailable
from atm.metrics import Metrics
from atm.nursery.worker import Worker
from atm.store import Store

LEASE_MARGIN = 1.0
"""Seconds before the store's end of a lease at which its holder takes it to be over."""

LAG_INTERVAL = 0.5
"""Seconds between two looks at how late the loop is."""

logger = logging.getLogger("atm.worker")


async def beat(
    worker: Worker, store: Store, coordinator: Coordinator, right: trio.CancelScope, interval: float
) -> None:
    """Beat until cancelled. ``right``: the scope that holds all runs; each renewal moves its deadline."""
    while True:
        asked_at = trio.current_time()
        try:
            good_for = await store.renew(worker.lease)
            right.deadline = asked_at + good_for - LEASE_MARGIN
            await coordinator.register(worker.info())
            await worker.reconcile(older_than=interval)
        except StoreUnavailable as error:
            logger.error("heartbeat failed: %s", error)
        await trio.sleep(interval)


async def measure_lag(metrics: Metrics, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Tell the metrics how late the loop is, until cancelled."""
    task_status.started()
    while True:
        due = trio.current_time() + LAG_INTERVAL
        await trio.sleep_until(due)
        metrics.loop_lag.set(trio.current_time() - due)
