"""Watches the loop from a thread: says what blocks it, and ends a process that outlives its lease.

A loop that is blocked cannot cancel anything. So whether runs have ended after their lease was over is looked
at from outside; where they have not, only the end of the process keeps the promise that they do.

Nobody is blamed who was not seen at it: a run is named when the loop was found in one and the same step of it at
each look. Time that this thread did not get either (the process was stopped, the machine overloaded) does not
count, unless the loop's thread computed through it: then code keeps the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from inspect import CO_COROUTINE
from types import FrameType
from typing import Any

import trio

from atm.executor import name_of
from atm.metrics import Metrics
from atm.nursery.places import UNKNOWN, place_on_stack, run_on_stack, stack, whereabouts
from atm.nursery.run import Run
from atm.nursery.worker import Worker, about
from atm.task import duration

TICK = 0.1
"""Seconds between two signs of life of the loop."""

LOOK = 0.25
"""Seconds between two looks of the thread."""

LAG_LIMIT = 1.0
"""Seconds without a sign of life after which the blocking line is told."""

OVERTIME = 5.0
"""Seconds that runs may go on after their lease is over: the time the leader waits before it gives them away."""

BLOCK_LIMIT = 15.0
"""Seconds of a blocked loop after which ``worker.stuck: exit`` ends the process: a lease and that time."""

BURNT = 0.5
"""Of the time in which this thread got none, what the loop's has computed, for it to be taken for the reason."""

MAX_TOLD = 10
"""Runs that are named when the process ends because of them."""

OUTLIVED_EXIT = 70
"""EX_SOFTWARE of sysexits.h."""

logger = logging.getLogger("atm.watchdog")


class Block:
    """One time that something held the loop. The thread makes it, the loop ends it."""

    def __init__(self, place: str, since: float) -> None:
        self._place = place
        self._since = since
        self._seconds: float | None = None

    def end(self) -> None:
        """The loop goes on."""
        if self._seconds is None:
            self._seconds = time.monotonic() - self._since

    def __str__(self) -> str:
        self.end()
        return f"Blocked the node's loop for {duration(self._seconds or 0)}, at {self._place}"


class Watchdog:
    """Two services: ``tick`` on the loop, ``watch`` in a thread. To be started in the loop's thread.

    Args:
        worker: whose lease is watched; None where no tasks are run.
        exit_process: how the process is ended.
        exit_when_stuck: end it also when the loop has been blocked for BLOCK_LIMIT.
    """

    def __init__(
        self,
        metrics: Metrics,
        worker: Worker | None,
        exit_process: Callable[[int], Any] = os._exit,
        *,
        exit_when_stuck: bool = False,
    ) -> None:
        self._metrics = metrics
        self._worker = worker
        self._exit = exit_process
        self._exit_when_stuck = exit_when_stuck
        self._loop_thread = threading.get_ident()
        self._computed_by_loop = _clock_of_this_thread()
        self._computed = self._computed_by_loop()
        self._step: FrameType | None = None
        self._step_since = time.monotonic()
        self._block: tuple[Block, Run | None] | None = None
        self._blocked_for = 0.0
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
                self._end_block()
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

    def _end_block(self) -> None:
        """The loop is free again: count it; its task's log is told, by its outcome if the run has ended."""
        if self._block is None:
            return
        (block, run), self._block = self._block, None
        self._metrics.loop_blocks.inc()
        block.end()
        if run is not None and run.ended_at is None and self._worker is not None:
            self._worker.remarked.append(run)

    def _look_at_loop(self) -> None:
        now, before = time.monotonic(), self._looked_at
        held = self._was_kept_away(now - before)
        self._looked_at = now
        lag = now - self._alive_at
        if lag < LOOK:
            self._step, self._step_since = None, now
            self._told, self._blocked_for = False, 0.0
            return
        self._blocked_for += LOOK
        innermost = sys._current_frames().get(self._loop_thread)
        step = _step_of(innermost)
        if step is not self._step:
            # One that has kept this thread from looking was there all the time.
            self._step, self._step_since = step, before if held else now
        if not self._told and lag >= LAG_LIMIT:
            seen_for = now - self._step_since
            if seen_for >= LAG_LIMIT - 2 * LOOK or lag >= 2 * LAG_LIMIT:
                self._told = True
                self._tell(innermost, lag, is_culprit=step is not None and seen_for >= LAG_LIMIT - 2 * LOOK)
        if self._exit_when_stuck and self._told and self._blocked_for >= BLOCK_LIMIT:
            logger.critical("worker.stuck is exit: the loop is blocked for good, the process ends")
            self._exit(OUTLIVED_EXIT)

    def _was_kept_away(self, gap: float) -> bool:
        """Whether the loop's thread has kept this one from looking. Where nobody had any time, none has passed."""
        computed = self._computed_by_loop()
        burnt, self._computed = computed - self._computed, computed
        if gap <= 2 * LOOK:
            return False
        if burnt >= gap * BURNT:
            return True
        paused = gap - LOOK
        self._alive_at += paused
        self._step_since += paused
        return False

    def _tell(self, innermost: FrameType | None, lag: float, *, is_culprit: bool) -> None:
        run = self._run_on(innermost) if is_culprit else None
        place = place_on_stack(innermost, None if run is None else run.executor)
        if not is_culprit:
            logger.error("the loop has been late for %.1f s, no single step holds it; it is at %s", lag, place)
            return
        block = Block(place, self._alive_at)
        who, extra = "", {}
        if run is not None:
            who, extra = f" by a task of executor {name_of(run.executor)}", about(run)
            run.remarks = [*(run.remarks or ()), block]
        self._block = block, run
        logger.error("the loop has been blocked for %.1f s%s, at %s", lag, who, place, extra=extra)

    def _run_on(self, innermost: FrameType | None) -> Run | None:
        if self._worker is None:
            return None
        with contextlib.suppress(RuntimeError):  # what is looked through changes: the loop goes on
            return run_on_stack(innermost, list(self._worker.runs.values()))
        return None

    def _look_at_lease(self) -> None:
        worker = self._worker
        if worker is None or not worker.busy or time.monotonic() < worker.safe_until_clock:
            self._overtime = 0.0
            return
        # Looks are counted, not the clock: a process that was paused has had no time to end its runs.
        self._overtime += LOOK
        if self._overtime >= OVERTIME:
            logger.critical("%d tasks still run long after the lease was lost: the process ends", worker.busy)
            for run in worker.unended()[:MAX_TOLD]:
                logger.error("task does not end, at %s", self._place_of(run), extra=about(run))
            self._exit(OUTLIVED_EXIT)

    def _place_of(self, run: Run) -> str:
        with contextlib.suppress(RuntimeError):  # what is looked through changes: the loop goes on
            innermost = sys._current_frames().get(self._loop_thread)
            holds_the_loop = run_on_stack(innermost, [run]) is run
            return place_on_stack(innermost, run.executor) if holds_the_loop else whereabouts(run)
        return UNKNOWN


def _step_of(frame: FrameType | None) -> FrameType | None:
    """The outermost coroutine on the stack, a step of which the loop carries out; None in its own code."""
    return next((each for each in reversed(list(stack(frame))) if each.f_code.co_flags & CO_COROUTINE), None)


def _clock_of_this_thread() -> Callable[[], float]:
    """Seconds of CPU that the calling thread has used, to be asked for by others; 0 where that is not known."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return lambda: 0.0
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)
