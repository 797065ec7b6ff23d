"""The leader's duties: lost workers, lost hints, the queues after a restart, the end of old tasks."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from atm.context import Context
from atm.coordinator import Hint, WorkerInfo
from atm.coordinators.local import LocalCoordinator
from atm.errors import StoreUnavailable
from atm.metrics import Metrics
from atm.nursery import balance, recovery
from atm.store import Recovered, Settled, Store
from atm.task import MAX_RECOVERIES, Status, Task
from nursery.bench import MakeBench, sleeping


class Starts:
    """Writes down which tasks start, in order."""

    def __init__(self) -> None:
        self.order: list[str] = []

    async def __call__(self, ctx: Context, task: Task) -> None:
        self.order.append(task.task_id)
        await trio.sleep(1)


# after a crash


async def test_what_ran_when_the_node_crashed_runs_again_at_once(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(1000)}).crashing() as bench:
        ids = [await bench.submit("x") for _ in range(3)]
        await bench.until(ids[-1], Status.PROCESSING)
    async with make_bench({"x": sleeping(1)}).running() as bench:
        for task_id in ids:
            task = await bench.until(task_id, within=3)
            assert (task.status, task.attempt, task.recoveries, task.retry_count) == (Status.SUCCESS, 2, 1, 0)
            assert "Recovered: its worker was lost" in await bench.messages(task_id)
        assert await bench.metric("atm_recoveries_total") == 3


async def test_a_task_cancelled_just_before_the_crash_does_not_run_again(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(1000)}).crashing() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await bench.cancel(task_id, message=False)
    starts = Starts()
    events: list[Any] = []
    bench = make_bench({"x": starts})
    bench.parts.listeners.append(
        lambda task_status: bench.coordinator.listen_events(events.extend, task_status=task_status)
    )
    async with bench.running():
        task = await bench.until(task_id, within=3)
        assert (task.status, starts.order) == (Status.CANCELLED, [])
        assert [(event.task_id, event.status) for event in events] == [(task_id, Status.CANCELLED)]
        await bench.log(task_id)


async def test_a_task_that_crashes_its_worker_again_and_again_is_taken_for_poison(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench()
    async with bench.store_alone():
        task_id = await bench.submit("x", max_retry=100)
    for crashes in range(1, MAX_RECOVERIES + 2):
        async with make_bench({"x": sleeping(1000)}).crashing() as bench:
            await bench.until_attempt(task_id, crashes)
    starts = Starts()
    async with make_bench({"x": starts}).running() as bench:
        task = await bench.until(task_id, within=3)
        assert (task.status, task.recoveries, task.retry_count) == (Status.FAILED, MAX_RECOVERIES + 1, 0)
        assert starts.order == []
        assert "poison" in (await bench.messages(task_id))[-1]


async def test_a_user_may_open_a_poisonous_task_again(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    bench = make_bench()
    async with bench.store_alone():
        task_id = await bench.submit("x")
    for crashes in range(1, MAX_RECOVERIES + 2):
        async with make_bench({"x": sleeping(1000)}).crashing() as bench:
            await bench.until_attempt(task_id, crashes)
    async with make_bench({"x": sleeping(1)}).running() as bench:
        await bench.until(task_id)
        await bench.store.reopen([task_id])
        await bench.coordinator.push([Hint(task_id, "x", 0)])
        task = await bench.until(task_id, Status.SUCCESS)
        assert (task.attempt, task.recoveries) == (MAX_RECOVERIES + 2, 0)


async def test_more_lost_tasks_than_a_page_are_all_taken_back(
    make_bench: MakeBench, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_bench({"x": sleeping(1000)}, capacity=10).crashing() as bench:
        ids = [await bench.submit("x") for _ in range(8)]
        await bench.until(ids[-1], Status.PROCESSING)
    monkeypatch.setattr(recovery, "PAGE", 3)
    bench = make_bench()
    async with bench.store_alone():
        await recovery.recover_lost(bench.parts.store, bench.coordinator, bench.metrics)
        assert {(await bench.get(task_id)).status for task_id in ids} == {Status.PENDING}
        assert (await bench.overview()).queues[1].length == 8
        assert bench.store.calls["recover"] == 3


# the queues after a restart


async def test_what_waited_before_a_restart_runs_in_its_order(
    make_bench: MakeBench, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    async with bench.store_alone():
        low = [await bench.submit("x", priority=-1, hint=False) for _ in range(3)]
        normal = [await bench.submit("x", hint=False) for _ in range(3)]
        high = [await bench.submit("x", priority=1, hint=False) for _ in range(3)]
        later = await bench.submit("x", delay=100.0, priority=1, hint=False)
    monkeypatch.setattr(recovery, "PAGE", 2)
    starts = Starts()
    async with make_bench({"x": starts}, capacity=1).running() as bench:
        await bench.until(low[-1], within=20)
        assert starts.order == [*high, *normal, *low]
        await bench.until(later)
        assert trio.current_time() == pytest.approx(101, abs=1)


async def test_a_rebuild_stops_at_its_limit_and_the_sweep_brings_the_rest(
    make_bench: MakeBench, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    async with bench.store_alone():
        ids = [await bench.submit("x", hint=False) for _ in range(10)]
        monkeypatch.setattr(recovery, "PAGE", 2)
        monkeypatch.setattr(recovery, "REBUILD_LIMIT", 4)
        await recovery.rebuild(bench.parts.store, bench.coordinator)
        assert (await bench.overview()).queues[1].length == 4
    async with make_bench({"x": sleeping(1)}, capacity=10).running() as bench:
        for task_id in ids:
            assert (await bench.until(task_id, within=60)).status is Status.SUCCESS


async def test_a_rebuild_of_nothing_is_quiet(
    make_bench: MakeBench, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench()
    async with bench.store_alone():
        await recovery.rebuild(bench.parts.store, bench.coordinator)
    assert "queued" not in caplog.text


# lost workers


class Losing:
    """A store that tells who was lost, look after look; everything else is nobody's business here."""

    def __init__(self, *looks: list[str]) -> None:
        self._looks = list(looks)
        self.recoveries: list[int] = []
        self._count = 0

    async def expire(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        self._count += 1
        return self._looks.pop(0) if self._looks else []

    async def recover(self, limit: int) -> list[Recovered]:
        await trio.lowlevel.checkpoint()
        self.recoveries.append(self._count)
        return []

    async def settle(self, limit: int) -> list[Settled]:
        await trio.lowlevel.checkpoint()
        return []


async def test_a_worker_whose_lease_ran_out_is_lost_and_what_was_handed_to_it_goes_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    coordinator = LocalCoordinator()
    gone, here = [
        WorkerInfo(id=name, name=name, address="", capacity=1, load=0, task_types=frozenset({"x"}), last_seen=0.0)
        for name in ("gone", "here")
    ]
    await coordinator.register(gone)
    await coordinator.push([Hint("t", "x", 0)])
    assert await coordinator.dispatch(balance.load("least_task"), 10) == 1
    await coordinator.register(here)
    store = Losing([], ["gone"])
    look = recovery.Recovery(cast("Store", store), coordinator, Metrics())
    await look()
    assert [info.id for info in (await coordinator.overview()).workers] == ["gone", "here"]
    await look()
    assert [info.id for info in (await coordinator.overview()).workers] == ["here"]
    assert await coordinator.dispatch(balance.load("least_task"), 10) == 1
    assert await coordinator.take("here") == [Hint("t", "x", 0)]
    assert "worker gone is lost: its lease ran out" in caplog.text


async def test_tasks_are_taken_back_at_once_from_who_is_lost_and_now_and_then_from_who_gave_up() -> None:
    store = Losing([], [], ["a"], [], [], [], ["b", "c"])
    look = recovery.Recovery(cast("Store", store), LocalCoordinator(), Metrics())
    for _ in range(12):
        await look()
    every = recovery.EXPIRIES_PER_RECOVERY
    assert store.recoveries == sorted({3, 7} | {1 + every * turn for turn in range(3)})


# lost hints


async def test_a_lost_hint_is_found_by_the_sweep(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(1)}).running() as bench:
        await trio.sleep(10)
        task_id = await bench.submit("x", hint=False)
        await bench.until(task_id, Status.PROCESSING, within=4)


async def test_a_lost_hint_of_a_delayed_task_is_found_after_its_time(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(1)}).running() as bench:
        await trio.sleep(10)
        task_id = await bench.submit("x", delay=50.0, hint=False)
        await trio.sleep(49)
        assert (await bench.get(task_id)).status is Status.PENDING
        await bench.until(task_id, Status.PROCESSING, within=5)


async def test_the_sweep_looks_less_and_less_often_at_what_nobody_can_run(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench()
    looks: list[float] = []
    async with bench.store_alone():
        await bench.submit("x", hint=False)
        for _ in range(200):
            if await bench.store.sweep([1, 0, -1], 10):
                looks.append(trio.current_time())
            await trio.sleep(1)
    assert looks == pytest.approx([2, 4, 8, 16, 32, 64, 124, 184], abs=0.01)


async def test_the_sweep_leaves_long_queues_alone(
    make_bench: MakeBench, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAGE", 2)
    bench = make_bench()
    async with bench.store_alone():
        for priority in (1, 0, -1):
            for _ in range(2):
                await bench.submit("x", priority=priority, hint=False)
        await bench.coordinator.register(replace(bench.worker.info(), task_types=frozenset({"x"}), load=10))
        await bench.coordinator.push([Hint(f"n{i}", "x", 0) for i in range(2)])
        await trio.sleep(5)
        await recovery.sweep(bench.parts.store, bench.coordinator)
        lengths = {queue.name: queue.length for queue in (await bench.overview()).queues}
        assert lengths == {"high": 2, "normal": 2, "low": 2}


async def test_a_lost_word_of_free_room_is_made_good_by_the_sweep(
    make_bench: MakeBench, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody_tells(task_type: str, room: int | None) -> None:
        await trio.lowlevel.checkpoint()

    async with make_bench({"x": sleeping(3)}).running() as bench:
        await bench.configure("x", max_concurrent=1)
        unblock = bench.coordinator.unblock
        first, second = [await bench.submit("x") for _ in range(2)]
        await bench.until(first, Status.PROCESSING)
        await trio.sleep(1)
        monkeypatch.setattr(bench.coordinator, "unblock", nobody_tells)
        await bench.until(first)
        monkeypatch.setattr(bench.coordinator, "unblock", unblock)
        assert (await bench.until(second, within=20)).status is Status.SUCCESS


# retention


async def test_old_tasks_are_removed_in_slices(
    make_bench: MakeBench,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(recovery, "PAGE", 3)
    caplog.set_level("INFO", "atm.leader")
    bench = make_bench()
    async with bench.store_alone():
        old = [await bench.submit("x", hint=False) for _ in range(7)]
        await bench.store.cancel(old)
        waits = await bench.submit("x", hint=False)
        await trio.sleep(100)
        young = await bench.submit("x", hint=False)
        await bench.store.cancel([young])
        await trio.sleep(50)
        await recovery.purge(bench.parts.store, 100)
        assert [await bench.store.get(task_id) for task_id in old] == [None] * 7
        assert await bench.store.logs(old[0]) is None
        assert (await bench.get(young)).status is Status.CANCELLED
        assert (await bench.get(waits)).status is Status.PENDING
        assert bench.store.calls["purge"] == 3
        assert "removed 7 tasks" in caplog.text
        caplog.clear()
        await recovery.purge(bench.parts.store, 100)
        assert caplog.text == ""


async def test_a_duty_is_put_off_while_the_store_is_away(autojump_clock: MockClock) -> None:
    times: list[float] = []

    async def duty() -> None:
        times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if len(times) < 3:
            raise StoreUnavailable("away")

    with trio.move_on_after(45):
        await recovery.repeat(duty, 10)
    assert times == pytest.approx([0, 10, 20, 30, 40])
