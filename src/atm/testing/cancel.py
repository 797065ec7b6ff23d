"""Cancels an executor at each of its checkpoints in turn, and looks at what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack

import trio

from atm.executor import Executor, name_of
from atm.executors.lanes import Lanes
from atm.nursery.stuck import STUCK_MARGIN
from atm.task import Status
from atm.testing.attempts import Ended, Options, Trial, executor_of, opened
from atm.testing.leftovers import Leftovers, left_since

MOST = 1000
"""Checkpoints; work that has more is not cut at all of them in a test's time."""

_ROOT = Path(__file__).parent.parent
_BETWEEN = (
    str(Path(trio.__file__).parent),
    *(str(_ROOT / name) for name in ("context.py", "children.py", "nursery", "testing")),
)
"""What stands between the executor's lines and the wait."""


async def check_cancel_safety(
    executor: Executor | Callable[..., Any],
    payload: Mapping[str, Any] | None = None,
    *,
    ends_as: str = Status.SUCCESS,
    most: int = MOST,
    **options: Unpack[Options],
) -> int:
    """Run the executor again and again: to its end, then cancelled at its first checkpoint, its second, …

    A cancelled run has to end as CANCELLED, or as a run that nobody cancels does, within the cleanup budget. And
    nothing may be left of it: no Trio task, no thread, no open file or socket, no child process. What the first
    run leaves behind is kept for the next ones (a pool's connections, say), and no leak.

    The executor is opened once, around all runs. The payload should make it do all that it does, in few steps:
    each of them is a run.

    Args:
        ends_as: how a run ends that nobody cancels.
        most: checkpoints, at the most.
        options: see ``Options``; the rest is as with ``run_executor``.
    Returns: how many checkpoints there were.
    Raises: AssertionError that names the checkpoint, its line, and what was left; ConfigError for what is no
        executor.
    """
    lanes = Lanes()
    found = executor_of(executor, lanes)
    async with opened(found, options):
        await _run(found, payload, options, lanes, ends_as)  # what is opened once, by the first run, stays
        before = Leftovers()
        await _run(found, payload, options, lanes, ends_as)
        await _assert_nothing_left(before, lanes, f"{name_of(found)}, not cancelled")
        for number in range(1, most + 1):
            cutter = await _cut(found, payload, options, lanes, number)
            if not cutter.place:
                return number - 1
            where = f"{name_of(found)}, cancelled at checkpoint {number}, {cutter.place}"
            _assert_ended_well(cutter, ends_as, where)
            await _assert_nothing_left(before, lanes, where)
    raise AssertionError(f"{name_of(found)} has more than {most} checkpoints: give it less to do, or raise `most`")


async def _run(
    executor: Executor, payload: Mapping[str, Any] | None, options: Options, lanes: Lanes, ends_as: str
) -> None:
    ended = await Trial(executor, payload, options, lanes).carry_out()
    told = f"{name_of(executor)}, not cancelled, ended as {ended.status}, not as {ends_as}: {ended.message}"
    assert ended.status == ends_as, told if ended.details is None else f"{told}\n{ended.details}"


async def _cut(
    executor: Executor, payload: Mapping[str, Any] | None, options: Options, lanes: Lanes, number: int
) -> _Cutter:
    trial = Trial(executor, payload, options, lanes)
    cutter = _Cutter(trial, number, options.get("cleanup_budget", 5.0))
    trio.lowlevel.add_instrument(cutter)
    try:
        cutter.ended = await trial.carry_out()
    finally:
        trio.lowlevel.remove_instrument(cutter)
    return cutter


def _assert_ended_well(cutter: _Cutter, ends_as: str, where: str) -> None:
    ended = cutter.ended
    assert ended is not None
    # The store writes CANCELLED, whatever the executor makes of its cancel: what it made of it tells more.
    made_of_it = cutter.trial.run.outcome.status
    if made_of_it not in (Status.CANCELLED, ends_as):
        raise AssertionError(f"{where}, ended as {made_of_it}: {ended.message}\n{ended.details or ''}")
    if cutter.took > cutter.budget + STUCK_MARGIN:
        raise AssertionError(f"{where}, took {cutter.took:.1f} s to end; it has {cutter.budget:g} s to clean up")


async def _assert_nothing_left(before: Leftovers, lanes: Lanes, where: str) -> None:
    if left := await left_since(before):
        raise AssertionError(f"{where}, left behind: {left}")
    # Daemons of its commands, too, which are nobody's children any more.
    if orphans := await lanes.orphans():
        raise AssertionError(f"{where}, left behind: {orphans} orphans")


class _Cutter(trio.abc.Instrument):
    """Cancels the attempt when it, or a task below it, has come to its ``number``-th wait.

    Attributes:
        place: where that was; "" when it has ended before.
        ended: how it ended.
    """

    def __init__(self, trial: Trial, number: int, budget: float) -> None:
        self.trial = trial
        self.budget = budget
        self.place = ""
        self.ended: Ended | None = None
        self._left = number
        self._cut_at = 0.0

    @property
    def took(self) -> float:
        """Seconds from the cancel to the end, by Trio's clock."""
        ended_at = self.trial.run.ended_at
        assert ended_at is not None
        return ended_at - self._cut_at

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._left == 0 or self.trial.run.ended_at is not None or not self._is_below(task):
            return
        self._left -= 1
        if self._left == 0:
            self.place = _place_of(task)
            self._cut_at = trio.current_time()
            self.trial.cancel()

    def _is_below(self, task: trio.lowlevel.Task) -> bool:
        current: trio.lowlevel.Task | None = task
        while current is not None and current is not self.trial.top:
            nursery = current.parent_nursery
            current = None if nursery is None else nursery.parent_task
        return current is not None


def _place_of(task: trio.lowlevel.Task) -> str:
    """The line that the task waits in: the innermost one that is not Trio's nor the runtime's."""
    frames = [(frame.f_code, line) for frame, line in task.iter_await_frames()]
    if not frames:
        return f"at the end of the task {task.name}"
    outside = [place for place in frames if not place[0].co_filename.startswith(_BETWEEN)]
    code, line = (outside or frames)[-1]
    return f"{code.co_filename}:{line} in {code.co_name}"
