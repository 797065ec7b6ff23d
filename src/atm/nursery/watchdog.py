"""Watches the loop from a thread: says what blocks it, and ends a process that outlives its lease.

A loop that is blocked cannot cancel anything. So whether runs have ended after their lease was over is looked
at from outside; where they have not, only the end of the process keeps the promise that they do.
"""

from __future__ import annotations

import linecache
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import trio

from atm.metrics import Metrics
from atm.nursery.worker import Worker

TICK = 0.1
"""Seconds between two signs of life of the loop."""

LOOK = 0.25
"""Seconds between two looks of the thread."""

LAG_LIMIT = 1.0
"""Seconds without a sign of life after which the blocking line is told."""

OVERTIME = 5.0
"""Seconds that runs may go on after their lease is over: the time the leader waits before it gives them away."""

OUTLIVED_EXIT = 70
"""EX_SOFTWARE of sysexits.h."""

logger = logging.getLogger("atm.watchdog")


class Watchdog:
    """Two services: ``tick`` on the loop, ``watch`` in a thread. To be started in the loop's thread.

    Args:
        worker: whose lease is watched; None where no tasks are run.
        exit_process: how the process is ended.
    """

    def __init__(
        self, metrics: Metrics, worker: Worker | None, exit_process: Callable[[int], Any] = os._exit
    ) -> None:
        self._metrics = metrics
        self._worker = worker
        self._exit = exit_process
        self._loop_thread = threading.get_ident()
        self._alive_at = self._looked_at = time.monotonic()
        self._ended = threading.Event()
        self._told = False
        self._overtime = 0.0

    async def tick(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Show that the loop lives, and measure how late it is, until cancelled."""
        task_status.started()
        try:
            while True:
                due = trio.current_time() + TICK
                await trio.sleep_until(due)
                self._metrics.loop_lag.set(trio.current_time() - due)
                self._alive_at = time.monotonic()
        finally:
            self._ended.set()

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the thread until ``tick`` has ended."""
        task_status.started()
        await trio.to_thread.run_sync(self._watch, limiter=trio.CapacityLimiter(1))

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            self._look_at_loop()
            self._look_at_lease()

    def _look_at_loop(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > LOOK + LAG_LIMIT:
            # This thread was not heard of either: the whole process was paused.
            self._alive_at = now
        self._looked_at = now
        lag = now - self._alive_at
        if lag < LAG_LIMIT:
            self._told = False
        elif not self._told:
            self._told = True
            frame = sys._current_frames().get(self._loop_thread)
            logger.error("the loop has been blocked for %.1f s, at %s", lag, place_of(frame))

    def _look_at_lease(self) -> None:
        worker = self._worker
        if worker is None or not worker.load or time.monotonic() < worker.safe_until_clock:
            self._overtime = 0.0
            return
        # Looks are counted, not the clock: a process that was paused has had no time to end its runs.
        self._overtime += LOOK
        if self._overtime >= OVERTIME:
            logger.critical("%d tasks still run long after the lease was lost: the process ends", worker.load)
            self._exit(OUTLIVED_EXIT)


def place_of(frame: FrameType | None) -> str:
    """File, line and text of where a thread is."""
    if frame is None:
        return "an unknown place"
    name, line = frame.f_code.co_filename, frame.f_lineno
    return f"{name} line {line} in {frame.f_code.co_name}: {linecache.getline(name, line).strip()}"
