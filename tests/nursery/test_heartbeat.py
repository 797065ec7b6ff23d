"""The worker's heartbeat."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.nursery.heartbeat import beat
from atm.nursery.worker import LEASE_MARGIN
from atm.task import Status, Task
from nursery.bench import MakeBench


async def forever(ctx: Context, task: Task) -> None:
    await trio.sleep_forever()


async def test_each_renewal_moves_the_end_of_the_right(
    make_bench: MakeBench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": forever})
    bench.store.lease_lasts, bench.store.renewing_takes = 10, 0.5
    right = trio.CancelScope()
    async with bench.store_alone():
        await bench.worker.enrol()
        assert bench.worker.safe_until == pytest.approx(10 - LEASE_MARGIN)  # counted from before the asking
        nursery.start_soon(beat, bench.worker, bench.coordinator, right, 2.5)
        await trio.sleep(1)  # it is 1.5
        assert right.deadline == bench.worker.safe_until == pytest.approx(0.5 + 10 - LEASE_MARGIN)
        await trio.sleep(3)
        assert right.deadline == bench.worker.safe_until == pytest.approx(3.5 + 10 - LEASE_MARGIN)
        nursery.cancel_scope.cancel()


async def test_a_lease_that_cannot_be_lost_never_ends(
    make_bench: MakeBench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": forever})
    right = trio.CancelScope()
    async with bench.store_alone():
        await bench.worker.enrol()
        nursery.start_soon(beat, bench.worker, bench.coordinator, right, 2.5)
        await trio.sleep(100)
        assert right.deadline == math.inf
        nursery.cancel_scope.cancel()


async def test_a_short_lease_is_renewed_four_times_as_often_as_it_could_end(
    make_bench: MakeBench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": forever})
    bench.store.lease_lasts = 4
    async with bench.store_alone():
        await bench.worker.enrol()
        before = bench.store.calls["renew"]
        nursery.start_soon(beat, bench.worker, bench.coordinator, trio.CancelScope(), 2.5)
        await trio.sleep(20.5)
        assert bench.store.calls["renew"] - before == 21
        nursery.cancel_scope.cancel()


async def test_a_cancel_that_was_lost_in_an_outage_of_messages_is_found_when_they_get_through_again(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": forever}, heartbeat_interval=1000.0).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.coordinator.cut(True)
        await trio.sleep(5)
        await bench.cancel(task_id)
        await trio.sleep(5)
        assert (await bench.get(task_id)).status is Status.PROCESSING
        bench.coordinator.cut(False)
        assert (await bench.until(task_id, within=1)).status is Status.CANCELLED


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
        (before,) = (await bench.overview()).workers
        await trio.sleep(10)
        (after,) = (await bench.overview()).workers
        assert after.last_seen > before.last_seen
        assert (after.id, after.capacity, after.task_types) == ("w1", 10, frozenset({"x"}))
