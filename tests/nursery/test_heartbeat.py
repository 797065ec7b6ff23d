"""The worker's heartbeat, and the look at how late the loop is."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from atm.executor import Context
from atm.metrics import Metrics
from atm.nursery.heartbeat import LAG_INTERVAL, LEASE_MARGIN, beat, measure_lag
from atm.store import Lease
from atm.task import Status, Task
from nursery.bench import Bench, MakeBench


async def forever(ctx: Context, task: Task) -> None:
    await trio.sleep_forever()


class LeasedFor:
    """A store whose leases last so long; everything else is the bench's."""

    def __init__(self, bench: Bench, seconds: float, takes: float = 0.0) -> None:
        self._bench = bench
        self._seconds = seconds
        self._takes = takes

    def __getattr__(self, name: str) -> object:
        return getattr(self._bench.store, name)

    async def renew(self, lease: Lease) -> float:
        await trio.sleep(self._takes)
        return self._seconds


async def test_each_renewal_moves_the_end_of_the_right(
    make_bench: MakeBench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": forever})
    right = trio.CancelScope()
    store = LeasedFor(bench, 10, takes=0.5)
    async with bench.store_alone():
        await bench.worker.enrol()
        nursery.start_soon(beat, bench.worker, store, bench.coordinator, right, 2.5)
        await trio.sleep(1)
        assert right.deadline == pytest.approx(10 - LEASE_MARGIN)  # counted from before the asking
        await trio.sleep(3)
        assert right.deadline == pytest.approx(3 + 10 - LEASE_MARGIN)
        nursery.cancel_scope.cancel()


async def test_a_lease_that_cannot_be_lost_never_ends(
    make_bench: MakeBench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": forever})
    right = trio.CancelScope()
    async with bench.store_alone():
        await bench.worker.enrol()
        nursery.start_soon(beat, bench.worker, bench.store, bench.coordinator, right, 2.5)
        await trio.sleep(100)
        assert right.deadline == math.inf
        nursery.cancel_scope.cancel()


async def test_the_heart_beats_on_while_the_store_is_away(
    make_bench: MakeBench, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with make_bench({"x": forever}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.store.away = {"renew"}
        await trio.sleep(60)
        assert "heartbeat failed: the line is down" in caplog.text
        assert (await bench.get(task_id)).status is Status.PROCESSING
        bench.store.away.clear()
        await bench.cancel(task_id, message=False)
        assert (await bench.until(task_id, within=5)).status is Status.CANCELLED


async def test_each_beat_is_seen_in_the_registry(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": forever}).running() as bench:
        await trio.sleep(60)
        (before,) = bench.coordinator.workers()
        await trio.sleep(10)
        (after,) = bench.coordinator.workers()
        assert after.last_seen > before.last_seen
        assert (after.id, after.capacity, after.task_types) == ("w1", 10, frozenset({"x"}))


async def test_the_loops_lag_is_told(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    metrics = Metrics()
    await nursery.start(measure_lag, metrics)
    await wait_all_tasks_blocked()
    mock_clock.jump(LAG_INTERVAL)
    await wait_all_tasks_blocked()
    assert metrics.registry.get_sample_value("atm_loop_lag_seconds") == 0
    mock_clock.jump(LAG_INTERVAL + 3.0)  # as if something had held the loop
    await wait_all_tasks_blocked()
    assert metrics.registry.get_sample_value("atm_loop_lag_seconds") == pytest.approx(3.0)
    nursery.cancel_scope.cancel()
