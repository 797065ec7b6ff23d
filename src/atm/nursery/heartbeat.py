"""One beat of a worker: renew the lease, be seen, bring home missed cancels."""

from __future__ import annotations

import logging

import trio

from atm.coordinator import Coordinator
from atm.errors import StoreUnavailable
from atm.nursery.run import LEASE_LOST
from atm.nursery.worker import Worker

BEATS_PER_LEASE = 4

logger = logging.getLogger("atm.worker")


async def beat(worker: Worker, coordinator: Coordinator, right: trio.CancelScope, interval: float) -> None:
    """Beat until cancelled, at once when messages get through again: some may have been missed.

    Args:
        right: the scope that holds all runs; each renewal moves its deadline.
        interval: seconds between two beats, at the most.
    """
    while True:
        good_for = interval * BEATS_PER_LEASE
        try:
            good_for = await worker.renew()
            if worker.safe_until <= trio.current_time():
                # It is over: what the deadline would do to all at once is done in slices first.
                await worker.stop_runs(LEASE_LOST)
            right.deadline = worker.safe_until
            await coordinator.register(worker.info())
            await worker.reconcile(older_than=interval)
        except StoreUnavailable as error:
            logger.error("heartbeat failed: %s", error)
        with trio.move_on_after(min(interval, good_for / BEATS_PER_LEASE)):
            await coordinator.away()
            await coordinator.back()
