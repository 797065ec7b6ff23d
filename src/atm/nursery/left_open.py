"""Nurseries that an executor leaves open are closed at the end of its run, with the tasks in them.

Mostly it is a generator that holds one, and a loop over it that is left before its end. Trio takes a task that
ends with an open nursery for a reason to end all that is around it: the worker, with all its runs. And generators
that nobody holds any more Trio closes from a task of its own, where the end of a nursery wakes the wrong task.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import trio

REASON = "its executor has left it open"
"""The reason given to the scopes of such nurseries."""

LOOK = 0.01
"""Seconds between two looks whether the tasks in them have ended."""

MOST_KEPT = 1000
"""Generators of one run; the oldest of more than that is left to Trio, for most hold no nursery."""

MESSAGE = (
    "the executor has left a nursery open, perhaps that of an async generator whose loop it has left; "
    "see contextlib.aclosing"
)

Generator = AsyncGenerator[Any, Any]
IsRun = Callable[[trio.lowlevel.Task], bool]

_kept: dict[trio.lowlevel.Task, list[tuple[trio.lowlevel.Task, Generator]]] = {}
"""By the run's task: which task has let go of which generator."""


class NurseryLeftOpen(RuntimeError):
    """An executor has returned, and a nursery that it had opened was still open."""


@contextlib.contextmanager
def generators_kept(is_run: IsRun) -> Iterator[None]:
    """Meanwhile generators that runs let go of, and that may hold a nursery, are left for ``close``.

    Args:
        is_run: whether a run is carried out by a task of Trio's.
    """
    before = sys.get_asyncgen_hooks()

    def let_go(generator: Generator) -> None:
        holder = _current_task()
        run = holder and holder.child_nurseries and _run_above(holder, is_run)
        if holder and run:
            kept = _kept.setdefault(run, [])
            kept.append((holder, generator))
            if len(kept) <= MOST_KEPT:
                return
            _, generator = kept.pop(0)
        if before.finalizer is not None:
            before.finalizer(generator)

    sys.set_asyncgen_hooks(finalizer=let_go)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(finalizer=before.finalizer)


def _current_task() -> trio.lowlevel.Task | None:
    """None where no task runs: the garbage may be collected by any thread."""
    with contextlib.suppress(RuntimeError):
        return trio.lowlevel.current_task()
    return None


def _run_above(task: trio.lowlevel.Task, is_run: IsRun) -> trio.lowlevel.Task | None:
    """The task itself or the one above it that carries out a run."""
    current: trio.lowlevel.Task | None = task
    while current is not None and not is_run(current):
        current = current.parent_nursery and current.parent_nursery.parent_task
    return current


def has_left(task: trio.lowlevel.Task, own: int) -> bool:
    """Whether there is something to close. ``own``: how many nurseries the task had open before the run."""
    return task in _kept or len(task.child_nurseries) > own


async def close(task: trio.lowlevel.Task, own: int, error: BaseException | None = None) -> None:
    """Close what the executor of this task, the calling one, has left open.

    Args:
        own: how many nurseries the task had open before the run.
        error: what the executor has raised; its traceback no longer tells the values of variables afterwards.
    Raises: NurseryLeftOpen where a nursery was, and nothing has been raised; first all tasks in it have ended,
        however long that takes.
    """
    had_nurseries = len(task.child_nurseries) > own
    if error is not None:
        traceback.clear_frames(error.__traceback__)  # they may hold a generator
    cause = None
    kept = _kept.pop(task, [])
    for holder, generator in reversed(kept):
        if holder is task:
            cause = await _error_of(generator.aclose()) or cause
    # Tasks of the run that have left nurseries have ended by now, and Trio has failed the run for it.
    for holder in {holder for holder, _ in kept} - {task}:
        await _end_nurseries(holder, 0)
    await _end_nurseries(task, own)
    if had_nurseries and error is None:
        raise NurseryLeftOpen(MESSAGE) from cause


async def _error_of(closing: Awaitable[None]) -> BaseException | None:
    try:
        await closing
    except BaseException as error:  # noqa: BLE001 - of the user's; the nursery tells even its end in a group
        return error
    return None


async def _end_nurseries(task: trio.lowlevel.Task, own: int) -> None:
    left = task.child_nurseries[own:]
    for nursery in left:
        nursery.cancel_scope.cancel(reason=REASON)
        nursery._closed = True  # as Trio does; a generator that is closed later does not wait for it
    with trio.CancelScope(shield=True):
        while any(nursery.child_tasks for nursery in left):  # noqa: ASYNC110 - nothing tells when they end
            await trio.sleep(LOOK)
    del task._child_nurseries[own:]  # there is no other way to let go of them
