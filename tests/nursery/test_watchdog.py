"""The thread that watches the loop and the lease. It lives in real time."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from atm.context import Context
from atm.metrics import Metrics
from atm.nursery import watchdog
from atm.nursery.run import Run, attempt
from atm.nursery.watchdog import OUTLIVED_EXIT, TICK, Watchdog
from atm.nursery.worker import Worker
from atm.task import Task
from nursery.bench import AttemptKit

PATIENCE = 20.0


class Hands:
    """What the watchdog looks at of a worker."""

    def __init__(self, busy: int = 0, safe_until_clock: float = math.inf) -> None:
        self.busy = busy
        self.safe_until_clock = safe_until_clock
        self.runs: dict[str, Run] = {}
        self.remarked: list[Run] = []

    def unended(self) -> list[Run]:
        return [run for run in self.runs.values() if run.ended_at is None]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK", 0.02)
    monkeypatch.setattr(watchdog, "LAG_LIMIT", 0.3)
    monkeypatch.setattr(watchdog, "OVERTIME", 0.2)


class Watched(Watchdog):
    """Counts the looks of its thread."""

    looks = 0

    def _look_at_loop(self) -> None:
        self.looks += 1
        super()._look_at_loop()


class Exits:
    def __init__(self) -> None:
        self.codes: list[int] = []

    def __call__(self, code: int) -> None:
        self.codes.append(code)


@pytest.fixture
def exits() -> Exits:
    return Exits()


@asynccontextmanager
async def watching(worker: Hands | None, exits: Exits) -> AsyncIterator[Watched]:
    made = Watched(Metrics(), cast("Worker | None", worker), exits)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.tick)
        await nursery.start(made.watch)
        await until(lambda: made.looks)
        yield made
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.01)


async def test_how_late_the_loop_is_can_be_read(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    metrics = Metrics()
    await nursery.start(Watchdog(metrics, None).tick)
    await wait_all_tasks_blocked()
    mock_clock.jump(TICK)
    await wait_all_tasks_blocked()
    assert metrics.registry.get_sample_value("atm_loop_lag_seconds") == 0
    mock_clock.jump(TICK + 3.0)  # as if something had held the loop
    await wait_all_tasks_blocked()
    assert metrics.registry.get_sample_value("atm_loop_lag_seconds") == pytest.approx(3.0)
    nursery.cancel_scope.cancel()


def hold_the_loop(until_told: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until_told() and time.monotonic() < deadline:
        time.sleep(0.01)  # this very line blocks


async def forever(ctx: Context, task: Task) -> None:
    await trio.sleep_forever()


async def test_the_line_that_blocks_the_loop_is_told_once_a_time(
    exits: Exits, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "has been blocked" in record.getMessage()]

    async with watching(None, exits) as made:
        hold_the_loop(told)
        enough = made.looks + 5
        hold_the_loop(lambda: made.looks > enough)
        (first,) = told()
        assert "hold_the_loop" in first
        assert __file__ in first
        assert "time.sleep(0.01)" in first or "until_told()" in first
        await trio.sleep(10 * TICK)
        hold_the_loop(lambda: len(told()) > 1)
        assert len(told()) == 2
    assert exits.codes == []


async def _until_run_ends(made: Watched, worker: Hands, run: Run) -> str:
    """Carry the run out as the worker does; what its task's log is told with its outcome, or without."""
    worker.runs[run.task.task_id] = run
    await attempt(run, lambda run: None)
    await until(lambda: made._block is None)
    return "\n".join([run.outcome.details or "", *map(str, run.remarks or ())])


async def test_the_run_that_blocks_the_loop_is_named_in_the_log_and_in_its_tasks(
    exits: Exits, attempts: AttemptKit, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(ctx: Context, task: Task) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            nursery.start_soon(child)

    async def child() -> None:
        hold_the_loop(lambda: "has been blocked" in caplog.text)

    worker = Hands()
    innocent, run = attempts.run(forever), attempts.run(body)
    worker.runs["innocent"] = innocent
    async with watching(worker, exits) as made, trio.open_nursery() as nursery:
        nursery.start_soon(attempt, innocent, lambda run: None)
        told = await _until_run_ends(made, worker, run)
        nursery.cancel_scope.cancel()
        assert made._metrics.registry.get_sample_value("atm_loop_blocks_total") == 1
    assert told.startswith("Blocked the node's loop for ")
    assert f"{__file__}:" in told
    assert " in hold_the_loop: " in told
    (record,) = [record for record in caplog.records if "has been blocked" in record.getMessage()]
    assert vars(record)["task_id"] == run.task.task_id
    assert "by a task of executor Scripted" in record.getMessage()
    assert innocent.remarks is None


async def test_a_run_that_goes_on_after_it_has_blocked_the_loop_is_told_of_at_once(
    exits: Exits, attempts: AttemptKit, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(ctx: Context, task: Task) -> None:
        hold_the_loop(lambda: "has been blocked" in caplog.text)
        await trio.sleep_forever()

    worker = Hands()
    run = attempts.run(body)
    async with watching(worker, exits), trio.open_nursery() as nursery:
        worker.runs[run.task.task_id] = run
        nursery.start_soon(attempt, run, lambda run: None)
        await until(lambda: worker.remarked)
        nursery.cancel_scope.cancel()
    assert worker.remarked == [run]


async def test_code_that_keeps_the_interpreters_lock_is_found_too(
    exits: Exits, attempts: AttemptKit, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(ctx: Context, task: Task) -> None:
        deadline = time.monotonic() + PATIENCE
        while "has been blocked" not in caplog.text and time.monotonic() < deadline:
            sum(range(30_000_000))

    worker = Hands()
    async with watching(worker, exits) as made:
        assert "in body: " in await _until_run_ends(made, worker, attempts.run(body))


async def test_many_short_steps_are_nobodys_fault(
    exits: Exits, attempts: AttemptKit, caplog: pytest.LogCaptureFixture
) -> None:
    async def short(ctx: Context, task: Task) -> None:
        time.sleep(0.05)  # noqa: ASYNC251 - it is rude

    worker = Hands()
    runs = [attempts.run(short) for _ in range(40)]
    worker.runs = {run.task.task_id: run for run in runs}
    async with watching(worker, exits) as made:
        async with trio.open_nursery() as nursery:
            for run in runs:
                nursery.start_soon(attempt, run, lambda run: None)
        await until(lambda: "no single step holds it" in caplog.text)
        assert made._metrics.registry.get_sample_value("atm_loop_blocks_total") == 0
    assert "has been blocked" not in caplog.text
    assert [run.outcome.details for run in runs] == [None] * len(runs)


class Clock:
    """Stands for the module ``time`` of the watchdog."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("pause", [0.1, 0.28, 1.0, 3600.0])
def test_a_process_that_was_paused_blames_nobody(
    exits: Exits, pause: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    made = Watchdog(Metrics(), None, exits, exit_when_stuck=True)
    for _ in range(50):
        clock.now += pause  # neither the loop nor the thread were heard of
        made._look_at_loop()
        made._alive_at = clock.now  # the loop ticks
        clock.now += watchdog.LOOK
        made._look_at_loop()
    assert caplog.text == ""
    assert exits.codes == []


async def test_a_loop_that_is_never_free_again_ends_the_process_where_stuck_runs_are_to(
    exits: Exits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "BLOCK_LIMIT", 0.5)
    async with watching(None, exits) as made:
        made._exit_when_stuck = True
        hold_the_loop(lambda: exits.codes)
    assert exits.codes[0] == OUTLIVED_EXIT
    assert "the loop is blocked for good" in caplog.text


async def test_a_blocked_loop_alone_ends_no_process(exits: Exits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "BLOCK_LIMIT", 0.1)
    async with watching(None, exits) as made:
        hold_the_loop(lambda: made._blocked_for > 2 * watchdog.LAG_LIMIT)
    assert exits.codes == []


async def test_runs_that_outlive_their_lease_end_the_process(
    exits: Exits, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(Hands(busy=2, safe_until_clock=time.monotonic()), exits):
        await until(lambda: exits.codes)
    assert exits.codes[0] == OUTLIVED_EXIT == 70
    assert "2 tasks still run long after the lease was lost" in caplog.text


async def test_a_blocked_loop_cannot_keep_the_process_alive_beyond_its_lease(exits: Exits) -> None:
    async with watching(Hands(busy=1, safe_until_clock=time.monotonic()), exits):
        hold_the_loop(lambda: exits.codes)
        assert exits.codes[0] == OUTLIVED_EXIT


async def test_runs_get_their_time_to_end_after_the_lease(exits: Exits) -> None:
    worker = Hands(busy=1, safe_until_clock=time.monotonic())
    made = Watchdog(Metrics(), cast("Worker", worker), exits)
    looks = round(watchdog.OVERTIME / watchdog.LOOK)
    for _ in range(looks - 1):
        made._look_at_lease()
    worker.busy = 0  # they have ended in time
    made._look_at_lease()
    worker.busy = 1  # under another lease, which is lost as well
    for _ in range(looks - 1):
        made._look_at_lease()
    assert exits.codes == []
    worker.safe_until_clock = math.inf  # a new lease
    made._look_at_lease()
    worker.safe_until_clock = time.monotonic()
    for _ in range(looks - 1):
        made._look_at_lease()
    assert exits.codes == []
    made._look_at_lease()
    made._look_at_lease()
    assert exits.codes


@pytest.mark.parametrize(
    "worker",
    [None, Hands(busy=1, safe_until_clock=math.inf), Hands(busy=0, safe_until_clock=-math.inf)],
    ids=["no worker", "under a lease", "idle without a lease"],
)
def test_nothing_to_end_ends_nothing(exits: Exits, worker: Hands | None) -> None:
    made = Watchdog(Metrics(), cast("Worker | None", worker), exits)
    for _ in range(1000):
        made._look_at_lease()
    assert exits.codes == []


async def test_the_thread_ends_with_the_node(exits: Exits) -> None:
    with trio.fail_after(PATIENCE):
        async with watching(None, exits) as made:
            pass
    assert made._ended.is_set()
