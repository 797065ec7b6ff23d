"""Cancel a piece of work at each of its checkpoints in turn, and look at what is left of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

PATIENCE = 10.0
"""Seconds in which what was cut off has to be gone."""

MOST = 1000
"""Checkpoints; work that has more is not cut at all of them in a test's time."""


class Leftovers:
    """What this process has: Trio's tasks, threads at work, descriptors, child processes."""

    def __init__(self) -> None:
        self.tasks = trio.lowlevel.current_statistics().tasks_living
        self.threads = busy_threads()
        self.descriptors = len(os.listdir("/dev/fd"))
        self.children = _children()

    def __repr__(self) -> str:
        return (
            f"tasks: {self.tasks}, threads: {self.threads}, files: {self.descriptors}, children: {self.children}"
        )

    def more_than(self, before: Leftovers) -> bool:
        return (
            self.tasks > before.tasks
            or self.threads > before.threads
            or self.descriptors > before.descriptors
            or bool(self.children - before.children)
        )


def busy_threads() -> int:
    """Threads at work, those too that nobody waits for any more; not those that Trio keeps for later."""
    return sum(not thread.name.startswith("Trio thread ") for thread in threading.enumerate())


def _children() -> frozenset[str]:
    found = Path("/proc/self/task").glob("*/children")
    return frozenset(child for file in found for child in file.read_text().split())


async def assert_nothing_more_than(before: Leftovers, when: str) -> None:
    """Return as soon as nothing is left; other parties, servers of the test say, get time to notice."""
    deadline = trio.current_time() + PATIENCE
    while (now := Leftovers()).more_than(before):
        assert trio.current_time() < deadline, f"left after {when}: {now}; before: {before}"
        await trio.sleep(0.005)


class _Cutter(trio.abc.Instrument):
    """Cancels the scope when the task, or one below it, has come to its ``number``-th wait."""

    def __init__(self, number: int, scope: trio.CancelScope) -> None:
        self._left = number
        self._scope = scope
        self._root = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self._is_below(task):
            return
        self._left -= 1
        if self._left == 0:
            self._scope.cancel(reason="the test's turn")

    def _is_below(self, task: trio.lowlevel.Task) -> bool:
        current: trio.lowlevel.Task | None = task
        while current is not None and current is not self._root:
            nursery = current.parent_nursery
            current = None if nursery is None else nursery.parent_task
        return current is not None


async def cancel_at_each_checkpoint(work: Callable[[trio.CancelScope], Awaitable[object]]) -> int:
    """Do the work again and again, cancelled at its first checkpoint, its second, … and at last at none.

    Args:
        work: is given the scope to work in, which is not entered yet.
    Returns: the number of checkpoints.
    Raises: AssertionError when a run has left a task, a thread, an open file or a process behind.
    """
    await work(trio.CancelScope())  # what is opened once, by the first run, stays
    before = Leftovers()
    for number in range(1, MOST):
        scope = trio.CancelScope()
        cutter = _Cutter(number, scope)
        trio.lowlevel.add_instrument(cutter)
        try:
            await work(scope)
        finally:
            trio.lowlevel.remove_instrument(cutter)
        await assert_nothing_more_than(before, f"a cancel at checkpoint {number}")
        if not scope.cancel_called:
            return number - 1
    raise AssertionError(f"the work did not end within {MOST} checkpoints")
