"""The worker's lease: what ends with it, how the worker gets the next one, who must not have it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.errors import StoreUnavailable, WorkerIdTaken
from atm.nursery.supervisor import ENROL_INTERVAL, ENROL_MARGIN, RECORD_PATIENCE
from atm.nursery.worker import LEASE_MARGIN
from atm.task import Status, Task
from nursery.bench import MakeBench, sleeping

LASTS = 10.0


class Runs:
    """Writes down when each attempt began and ended, and who ran it: the lease's epoch."""

    def __init__(self, first: float = 1000.0, later: float = 1.0) -> None:
        self._seconds = {1: first}
        self._later = later
        self.began: list[float] = []
        self.ended: list[float] = []
        self.now = 0
        self.most = 0

    async def __call__(self, ctx: Context, task: Task) -> int:
        self.began.append(trio.current_time())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(self._seconds.get(ctx.attempt, self._later))
        finally:
            self.ended.append(trio.current_time())
            self.now -= 1
        return ctx.attempt


# a lease that is lost


async def test_a_superseded_worker_ends_its_runs_gets_a_new_lease_and_works_on(
    make_bench: MakeBench, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs()
    async with make_bench({"x": runs}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        first = bench.worker.lease
        other = await bench.store.register("w1", 10, ["x"])  # another start of this worker
        lost_at = trio.current_time()
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.retry_count) == (Status.SUCCESS, 2, 0)
        assert task.releases + task.recoveries == 1
        assert runs.ended[0] - lost_at <= bench.parts.heartbeat_interval + 0.1
        assert runs.most == 1
        assert first.epoch < other.epoch < bench.worker.lease.epoch
        assert await bench.store.renew(bench.worker.lease) > 0
        assert await bench.metric("atm_lease_losses_total") == 1
        assert "lease was lost" in caplog.text
        await bench.log(task_id)


async def test_runs_end_when_the_lease_could_not_be_renewed_in_time(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    runs = Runs()
    bench = make_bench({"x": runs})
    bench.store.lease_lasts = LASTS
    async with bench.running():
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await trio.sleep(30)
        assert runs.ended == [], "renewed again and again"
        safe_until = bench.worker.safe_until
        bench.store.away = {"renew"}
        await trio.sleep(30)
        assert runs.ended == pytest.approx([safe_until])
        assert safe_until <= 30 + LASTS - LEASE_MARGIN
        waiting = await bench.get(task_id)
        assert (waiting.status, waiting.releases, waiting.recoveries) == (Status.PENDING, 1, 0)
        assert "Released by its worker: its lease was lost" in await bench.messages(task_id)
        bench.store.away.clear()
        task = await bench.until(task_id, within=10)
        assert (task.status, task.attempt) == (Status.SUCCESS, 2)
        assert await bench.metric("atm_lease_losses_total") == 1


async def test_a_store_that_is_away_beyond_the_lease_gets_the_work_back_when_it_returns(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    runs = Runs()
    bench = make_bench({"x": runs})
    bench.store.lease_lasts = LASTS
    async with bench.running():
        ids = [await bench.submit("x") for _ in range(3)]
        for task_id in ids:
            await bench.until(task_id, Status.PROCESSING)
        bench.store.away = {"all"}
        await trio.sleep(100)
        assert len(runs.ended) == 3
        assert max(runs.ended) <= LASTS
        bench.store.away.clear()
        for task_id in ids:
            task = await bench.until(task_id, within=20)
            assert (task.status, task.attempt, task.retry_count) == (Status.SUCCESS, 2, 0)
            assert task.releases + task.recoveries == 1
            await bench.log(task_id)
        assert runs.most == 3


async def test_a_result_that_was_reached_under_the_lease_counts_though_it_is_recorded_after_its_end(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    runs = Runs(first=3)
    bench = make_bench({"x": runs})
    bench.store.lease_lasts = LASTS
    async with bench.running():
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.store.away = {"finish", "renew", "recover"}
        await trio.sleep(60)
        assert (await bench.get(task_id)).status is Status.PROCESSING
        bench.store.away = {"recover"}
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.result_json) == (Status.SUCCESS, 1, "1")
        assert len(runs.began) == 1


async def test_rows_of_the_former_lease_that_nobody_runs_are_released(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    runs = Runs(first=1)
    bench = make_bench({"x": runs})
    async with bench.running():
        bench.store.away = {"recover"}
        task_id = await bench.submit("x", hint=False)
        await bench.store.claim(bench.worker.lease, [task_id])  # its answer was lost
        await bench.store.register("w1", 10, ["x"])
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.releases, task.recoveries) == (Status.SUCCESS, 2, 1, 0)


async def test_what_was_handed_over_when_the_lease_was_lost_is_handed_over_again(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": sleeping(1)}, capacity=2)
    bench.store.lease_lasts = LASTS
    async with bench.running():
        await trio.sleep(1)
        bench.store.away = {"claim", "renew"}
        ids = [await bench.submit("x") for _ in range(4)]
        await trio.sleep(30)
        bench.store.away.clear()
        for task_id in ids:
            assert (await bench.until(task_id, within=10)).status is Status.SUCCESS


async def test_a_run_that_is_cancelled_with_the_lease_may_clean_up(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    cleaned: list[float] = []

    async def body(ctx: Context, task: Task) -> None:
        try:
            if ctx.attempt == 1:
                await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(4)
                cleaned.append(trio.current_time())

    async with make_bench({"x": body}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await bench.store.register("w1", 10, ["x"])
        assert (await bench.until(task_id)).status is Status.SUCCESS
        assert len(cleaned) == 2


async def test_a_lease_lost_during_the_drain_ends_it(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    bench = make_bench({"x": Runs()}, grace=1000.0)
    bench.store.lease_lasts = LASTS
    async with bench.running():
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.stop.set()
        await trio.sleep(5)
        bench.store.away = {"renew"}
        await trio.sleep(1)
        safe_until = bench.worker.safe_until
    assert trio.current_time() == pytest.approx(safe_until, abs=0.1)
    bench.store.away.clear()
    async with bench.store_alone():
        task = await bench.get(task_id)
        assert (task.status, task.releases) == (Status.PENDING, 1)


async def test_a_node_that_has_lost_lease_and_store_can_still_be_stopped(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": Runs()})
    bench.store.lease_lasts = LASTS
    async with bench.running():
        await bench.until(await bench.submit("x"), Status.PROCESSING)
        bench.store.away = {"all"}
        await trio.sleep(LASTS + 1)
        stopped_at = trio.current_time()
    assert trio.current_time() - stopped_at <= 2 * RECORD_PATIENCE


# an id that is in use


async def test_a_worker_waits_for_the_lease_of_its_former_process_to_end_while_its_node_serves(
    make_bench: MakeBench, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench({"x": sleeping(1)})
    bench.store.broken["register"] = WorkerIdTaken("w1", 3.0)
    async with bench.running():
        assert bench.health.started
        task_id = await bench.submit("x")
        await trio.sleep(3)
        assert (await bench.get(task_id)).status is Status.PENDING
        assert (await bench.overview()).workers == []
        del bench.store.broken["register"]
        await bench.until(task_id, Status.PROCESSING, within=ENROL_INTERVAL + 0.1)
        assert "worker.id: w1 is in use by another node" in caplog.text
        assert await bench.metric("atm_lease_losses_total") == 0


async def test_an_id_that_stays_in_use_ends_the_node(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    bench = make_bench({"x": sleeping(1)})
    bench.store.broken["register"] = WorkerIdTaken("w1", 3.0)
    with pytest.RaisesGroup(WorkerIdTaken, flatten_subgroups=True):
        async with bench.running():
            await trio.sleep(60)
    assert 3 + ENROL_MARGIN <= trio.current_time() <= 3 + ENROL_MARGIN + 2 * ENROL_INTERVAL


async def test_a_process_whose_id_was_taken_over_ends_its_runs_and_never_gets_it_again(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    runs = Runs()
    bench = make_bench({"x": runs})
    with pytest.RaisesGroup(WorkerIdTaken, flatten_subgroups=True):
        async with bench.running():
            task_id = await bench.submit("x")
            await bench.until(task_id, Status.PROCESSING)
            await bench.store.register("w1", 10, ["x"])
            bench.store.broken["register"] = WorkerIdTaken("w1", None)
            await trio.sleep(60)
    assert runs.ended
    assert trio.current_time() <= bench.parts.heartbeat_interval + 1
    del bench.store.broken["register"]
    async with bench.store_alone():
        assert (await bench.get(task_id)).status is Status.PENDING


async def test_a_node_that_waits_for_its_id_can_be_stopped(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": sleeping(1)})
    bench.store.broken["register"] = WorkerIdTaken("w1", 300.0)
    async with bench.running():
        await trio.sleep(10)
    assert trio.current_time() == pytest.approx(10, abs=0.1)
    assert "retire" not in bench.store.calls


async def test_a_node_starts_though_the_store_gives_no_lease_yet(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": sleeping(1)})
    bench.store.broken["register"] = StoreUnavailable("away")
    async with bench.running():
        task_id = await bench.submit("x")
        await trio.sleep(30)
        assert (await bench.get(task_id)).status is Status.PENDING
        del bench.store.broken["register"]
        assert (await bench.until(task_id, within=3)).status is Status.SUCCESS


# what a lease is


async def test_a_worker_takes_its_lease_for_over_a_little_before_the_store_does(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": sleeping(1)})
    bench.store.lease_lasts, bench.store.renewing_takes = LASTS, 2.0
    async with bench.store_alone():
        assert bench.worker.safe_until < trio.current_time(), "without a lease nothing is safe"
        await bench.worker.enrol()
        assert bench.worker.safe_until == pytest.approx(LASTS - LEASE_MARGIN), "counted from before the asking"
        assert bench.worker.enrolled
        asked_at = trio.current_time()
        assert await bench.worker.renew() == LASTS
        assert bench.worker.safe_until == pytest.approx(asked_at + LASTS - LEASE_MARGIN)
