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

from atm.metrics import Metrics
from atm.nursery import watchdog
from atm.nursery.run import Run
from atm.nursery.watchdog import OUTLIVED_EXIT, TICK, Watchdog
from atm.nursery.worker import Worker

PATIENCE = 20.0


class Hands:
    """What the watchdog looks at of a worker."""

    def __init__(self, load: int = 0, safe_until_clock: float = math.inf) -> None:
        self.load = load
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


async def test_runs_that_outlive_their_lease_end_the_process(
    exits: Exits, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(Hands(load=2, safe_until_clock=time.monotonic()), exits):
        await until(lambda: exits.codes)
    assert exits.codes[0] == OUTLIVED_EXIT == 70
    assert "2 tasks still run long after the lease was lost" in caplog.text


async def test_a_blocked_loop_cannot_keep_the_process_alive_beyond_its_lease(exits: Exits) -> None:
    async with watching(Hands(load=1, safe_until_clock=time.monotonic()), exits):
        hold_the_loop(lambda: exits.codes)
        assert exits.codes[0] == OUTLIVED_EXIT


async def test_runs_get_their_time_to_end_after_the_lease(exits: Exits) -> None:
    worker = Hands(load=1, safe_until_clock=time.monotonic())
    made = Watchdog(Metrics(), cast("Worker", worker), exits)
    looks = round(watchdog.OVERTIME / watchdog.LOOK)
    for _ in range(looks - 1):
        made._look_at_lease()
    worker.load = 0  # they have ended in time
    made._look_at_lease()
    worker.load = 1  # under another lease, which is lost as well
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
    [None, Hands(load=1, safe_until_clock=math.inf), Hands(load=0, safe_until_clock=-math.inf)],
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
