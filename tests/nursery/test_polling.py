"""While no coordinator can be reached the worker looks for work in the store itself."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.coordinator import Hint
from atm.nursery import worker as worker_module
from atm.nursery.worker import POLL_INTERVAL
from atm.store import NewTask
from atm.task import Status, Task, new_task_id
from nursery.bench import Bench, MakeBench, sleeping


class Diary:
    """Writes down which tasks start, in order, and how many run at a time."""

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self.started: list[str] = []
        self.now = 0
        self.most = 0

    async def __call__(self, ctx: Context, task: Task) -> None:
        self.started.append(task.task_id)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(self._seconds)
        finally:
            self.now -= 1


async def create_many(bench: Bench, count: int) -> list[str]:
    tasks = [NewTask(task_id=new_task_id(), task_type="x", payload_json="{}") for _ in range(count)]
    return [created.task_id for created in await bench.store.create(tasks)]


async def test_tasks_run_though_nobody_hands_them_over(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary()
    async with make_bench({"x": diary}).running() as bench:
        bench.coordinator.cut(True)
        task_id = await bench.submit("x")
        late = await bench.submit("x", delay=5.0)
        assert (await bench.until(task_id, within=1 + 2 * POLL_INTERVAL)).status is Status.SUCCESS
        assert (await bench.until(late)).status is Status.SUCCESS
        assert trio.current_time() == pytest.approx(6, abs=4 * POLL_INTERVAL)
        assert await bench.messages(task_id) == ["Task created", "Task assigned to worker", "Task succeeded"]


async def test_retries_go_on_while_the_coordinator_is_away(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def second_time_lucky(ctx: Context, task: Task) -> None:
        await trio.lowlevel.checkpoint()
        if ctx.attempt == 1:
            raise ValueError("not yet")

    async with make_bench({"x": second_time_lucky}).running() as bench:
        bench.coordinator.cut(True)
        task = await bench.until(await bench.submit("x"), within=5)
        assert (task.status, task.attempt) == (Status.SUCCESS, 2)


async def test_nobody_polls_while_messages_get_through(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(1)}).running() as bench:
        await bench.until(await bench.submit("x"))
        await trio.sleep(30)
        assert "poll" not in bench.store.calls
        bench.coordinator.cut(True)
        await trio.sleep(5)
        assert bench.store.calls["poll"] == pytest.approx(5 / POLL_INTERVAL, abs=2)
        bench.coordinator.cut(False)
        await trio.sleep(POLL_INTERVAL)
        before = bench.store.calls["poll"]
        await trio.sleep(30)
        assert bench.store.calls["poll"] == before


async def test_polling_fills_the_slots_and_no_more(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary(seconds=10)
    async with make_bench({"x": diary}, capacity=3).running() as bench:
        bench.coordinator.cut(True)
        ids = await create_many(bench, 7)
        for task_id in ids:
            assert (await bench.until(task_id)).status is Status.SUCCESS
        assert diary.most == 3
        assert trio.current_time() == pytest.approx(30, abs=1)
        assert sorted(diary.started) == sorted(ids)


async def test_a_full_page_is_followed_by_the_next_one_at_once(
    make_bench: MakeBench, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "POLL_BATCH", 10)
    async with make_bench({"x": sleeping(100)}, capacity=95).running() as bench:
        ids = await create_many(bench, 95)
        bench.coordinator.cut(True)
        await trio.sleep(POLL_INTERVAL / 2)
        assert {(await bench.get(task_id)).status for task_id in ids} == {Status.PROCESSING}


async def test_polling_goes_on_when_the_store_comes_back(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(1)}).running() as bench:
        bench.coordinator.cut(True)
        bench.store.away = {"poll"}
        task_id = await bench.submit("x")
        await trio.sleep(30)
        assert (await bench.get(task_id)).status is Status.PENDING
        bench.store.away.clear()
        assert (await bench.until(task_id, within=4)).status is Status.SUCCESS


async def test_a_poll_whose_answer_was_lost_is_made_good(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary()
    async with make_bench({"x": diary}).running() as bench:
        bench.coordinator.cut(True)
        bench.store.deaf = {"poll"}
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.store.deaf.clear()
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.releases) == (Status.SUCCESS, 2, 1)
        assert diary.started == [task_id]


async def test_a_stopping_node_polls_no_more(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    bench = make_bench({"x": sleeping(10)})
    async with bench.running():
        bench.coordinator.cut(True)
        await bench.until(await bench.submit("x"), Status.PROCESSING)
        bench.stop.set()
        await trio.sleep(1)
        late = await bench.submit("x")
        await trio.sleep(5)
        assert (await bench.get(late)).status is Status.PENDING


async def test_lost_workers_are_recovered_while_the_coordinator_is_away(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(1000)}).crashing() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
    bench = make_bench({"x": sleeping(1)})
    bench.coordinator.cut(True)
    async with bench.running():
        task = await bench.until(task_id, within=10)
        assert (task.status, task.attempt, task.recoveries) == (Status.SUCCESS, 2, 1)
        assert bench.store.calls["campaign"] > 0


async def test_what_is_handed_over_though_polling_has_filled_the_slots_is_given_back(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary(seconds=10)
    async with make_bench({"x": diary}, capacity=3).running() as bench:
        await trio.sleep(1)
        polled = await create_many(bench, 2)
        hinted = await create_many(bench, 3)
        claimed = await bench.store.poll(bench.worker.lease, ["x"], 2)
        assert [verdict.task.task_id for verdict in claimed] == polled
        async with trio.open_nursery() as runs:
            await bench.worker._start_runs(claimed, runs)
            await bench.worker._claim_and_start([Hint(task_id, "x", 0) for task_id in hinted], runs)
            assert bench.worker.load == 3
            assert (await bench.get(hinted[0])).status is Status.PROCESSING
            assert [(await bench.get(task_id)).attempt for task_id in hinted[1:]] == [0, 0]
            assert (await bench.overview()).queues[1].length == 2, "they wait in the queue, for whoever is free"
        for task_id in (*polled, *hinted):
            assert (await bench.until(task_id)).status is Status.SUCCESS
        assert diary.most == 3
        assert len(diary.started) == 5
