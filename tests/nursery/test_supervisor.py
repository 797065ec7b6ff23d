"""The supervisor: what lives with the node, in which order it ends, and what happens to those that do not end."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.errors import StartError, StoreDamaged, StoreUnavailable
from atm.executor import Executor
from atm.nursery.stuck import STUCK_MARGIN
from atm.nursery.supervisor import CLAIM_PATIENCE, RECORD_PATIENCE, STUCK_EXIT
from atm.task import Status, Task
from nursery.bench import MakeBench, sleeping


class ExitCalled(Exception):
    """Stands for the end of the process."""


class Server:
    """A service as the HTTP servers are: tells when it was asked to stop."""

    def __init__(self) -> None:
        self.asked_at: float | None = None

    async def __call__(self, *, stop: Callable[[], Awaitable[Any]], task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await stop()
        self.asked_at = trio.current_time()


def rows_on_disk(path: Path) -> list[tuple[Any, ...]]:
    """What another process would find at this moment."""
    connection = sqlite3.connect(path)
    try:
        sql = "SELECT task_id, status, retry_count, releases FROM task ORDER BY created_at, task_id"
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


# drain


async def test_an_idle_node_stops_at_once(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(1)}).running():
        await trio.sleep(5)
    assert trio.current_time() == pytest.approx(5)


async def test_runs_may_finish_within_the_grace_time(
    make_bench: MakeBench, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with make_bench({"x": sleeping(20)}, grace=30.0).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        stopped_at = trio.current_time()
    assert trio.current_time() - stopped_at == pytest.approx(20, abs=0.5)
    assert rows_on_disk(tmp_path / "atm.db") == [(task_id, "SUCCESS", 0, 0)]


async def test_what_has_not_ended_by_the_end_of_the_grace_time_is_released_for_free(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": sleeping(1000), "short": sleeping(3)}, grace=10.0)
    async with bench.running():
        long = await bench.submit("x")
        short = await bench.submit("short")
        await bench.until(long, Status.PROCESSING)
        stopped_at = trio.current_time()
    assert trio.current_time() - stopped_at == pytest.approx(10, abs=0.1)
    async with bench.store_alone():
        task = await bench.get(long)
        counters = (task.status, task.attempt, task.retry_count, task.releases, task.recoveries)
        assert counters == (Status.PENDING, 1, 0, 1, 0)
        assert (await bench.messages(long))[-1] == "Released by its worker: shutdown"
        assert (await bench.get(short)).status is Status.SUCCESS


async def test_a_released_task_runs_again_after_a_restart(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(1000)}, grace=1.0).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
    async with make_bench({"x": sleeping(1)}).running() as bench:
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.releases) == (Status.SUCCESS, 2, 1)
        await bench.log(task_id)


async def test_a_released_run_may_clean_up(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    cleaned: list[bool] = []

    async def body(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(4)
                cleaned.append(True)

    bench = make_bench({"x": body}, grace=1.0)
    async with bench.running():
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
    assert cleaned == [True]
    async with bench.store_alone():
        assert (await bench.get(task_id)).status is Status.PENDING


async def test_a_cleanup_that_raises_at_shutdown_does_not_harm_the_others(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def raises(ctx: Context, task: Task) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ConnectionResetError("cleanup went wrong")

    bench = make_bench({"bad": raises, "good": sleeping(1000)}, grace=1.0)
    async with bench.running():
        ids = [await bench.submit("bad"), await bench.submit("good")]
        await bench.until(ids[1], Status.PROCESSING)
    async with bench.store_alone():
        tasks = [await bench.get(task_id) for task_id in ids]
        assert [(task.status, task.releases) for task in tasks] == [(Status.PENDING, 1)] * 2


async def test_a_task_cancelled_during_the_drain_is_cancelled_not_released(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": sleeping(1000)}, grace=10.0)
    async with bench.running():
        now, late = await bench.submit("x"), await bench.submit("x")
        await bench.until(late, Status.PROCESSING)
        bench.stop.set()
        await trio.sleep(5)
        await bench.cancel(now)
        assert (await bench.until(now, within=1)).status is Status.CANCELLED
        await bench.cancel(late, message=False)
    async with bench.store_alone():
        assert (await bench.get(late)).status is Status.CANCELLED


async def test_nothing_new_is_taken_once_the_node_stops(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    bench = make_bench({"x": sleeping(10)})
    async with bench.running():
        await bench.until(await bench.submit("x"), Status.PROCESSING)
        bench.stop.set()
        await trio.sleep(1)
        (worker,) = (await bench.overview()).workers
        assert worker.draining
        late = await bench.submit("x")
        await trio.sleep(5)
        assert (await bench.get(late)).status is Status.PENDING
    async with make_bench({"x": sleeping(1)}).running() as bench:
        assert (await bench.until(late)).status is Status.SUCCESS


@pytest.mark.parametrize(
    ("takes", "end"),
    [(CLAIM_PATIENCE / 2, (Status.SUCCESS, 1, 0)), (CLAIM_PATIENCE + 1, (Status.PENDING, 1, 1))],
    ids=["answered in time, it runs", "not answered in time, it is given back"],
)
async def test_a_claim_under_way_when_the_node_stops(
    make_bench: MakeBench, autojump_clock: MockClock, takes: float, end: tuple[Status, int, int]
) -> None:
    bench = make_bench({"x": sleeping(10)})

    async def stop_on_the_way() -> None:
        bench.stop.set()
        await trio.sleep(takes)

    async with bench.running():
        bench.store.on_the_way["claim"] = stop_on_the_way
        task_id = await bench.submit("x")
        await bench.stop.wait()
    async with bench.store_alone():
        task = await bench.get(task_id)
        assert (task.status, task.attempt, task.releases) == end


async def test_a_claim_that_the_store_does_not_answer_cannot_hold_up_the_stop(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    bench = make_bench({"x": sleeping(10)})
    async with bench.running():
        bench.store.away = {"claim"}
        task_id = await bench.submit("x")
        await trio.sleep(1)
        stopped_at = trio.current_time()
    assert trio.current_time() - stopped_at == pytest.approx(CLAIM_PATIENCE, abs=0.1)
    bench.store.away.clear()
    async with bench.store_alone():
        assert (await bench.get(task_id)).attempt == 0


# the order of the end


async def test_servers_answer_until_the_runs_are_done(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    server = Server()
    bench = make_bench({"x": sleeping(20)}, servers=[server])
    async with bench.running():
        assert bench.health.started
        assert not bench.health.draining
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        began = trio.current_time()
        bench.stop.set()
        await trio.sleep(0.01)
        assert bench.health.draining
        await trio.sleep(10)
        assert (server.asked_at, bench.health.stopping.is_set()) == (None, False)
        assert (await bench.get(task_id)).status is Status.PROCESSING
    assert server.asked_at is not None
    assert server.asked_at - began == pytest.approx(20, abs=0.5)
    assert bench.health.stopping.is_set()


async def test_the_store_stops_last_when_all_is_written(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    bench = make_bench({"x": sleeping(5)}, servers=[Server()])
    async with bench.running():
        await bench.until(await bench.submit("x"), Status.PROCESSING)
    assert bench.store.calls["retire"] == 1
    assert (await bench.overview()).workers == []
    assert bench.coordinator.leader() is None
    with pytest.raises(StoreUnavailable):
        await bench.store.register("w1", 1, [])


async def test_the_heart_beats_until_the_runs_are_done(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(20)}).running() as bench:
        await bench.until(await bench.submit("x"), Status.PROCESSING)
        before = bench.store.calls["renew"]
    assert bench.store.calls["renew"] - before >= 7


# what does not end


class Stuck:
    """An executor that ignores being cancelled until the test lets it go."""

    def __init__(self) -> None:
        self.let_go = trio.Event()

    async def __call__(self, ctx: Context, task: Task) -> None:
        with trio.CancelScope(shield=True):
            await self.let_go.wait()


async def test_a_run_that_does_not_end_cannot_hold_up_the_shutdown(
    make_bench: MakeBench, autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck()
    exits: list[tuple[int, float, list[tuple[Any, ...]]]] = []

    def exit_process(code: int) -> None:
        exits.append((code, trio.current_time(), rows_on_disk(tmp_path / "atm.db")))
        stuck.let_go.set()
        raise ExitCalled

    bodies = {"stuck": stuck, "good": sleeping(1000), "short": sleeping(3)}
    bench = make_bench(bodies, grace=10.0, cleanup_budget=4.0, exit_process=exit_process)
    with pytest.RaisesGroup(ExitCalled, flatten_subgroups=True):
        async with bench.running():
            ids = [await bench.submit(name) for name in bodies]
            await bench.until(ids[2], Status.PROCESSING)
            began = trio.current_time()
    ((code, at, rows),) = exits
    assert code == STUCK_EXIT == 70
    assert at - began == pytest.approx(10 + 4 + STUCK_MARGIN, abs=0.1)
    assert rows == [(ids[0], "PROCESSING", 0, 0), (ids[1], "PENDING", 0, 1), (ids[2], "SUCCESS", 0, 0)]
    (told,) = [record for record in caplog.records if "does not end" in record.message]
    assert vars(told)["task_id"] == ids[0]


async def test_a_task_whose_run_did_not_end_runs_again_after_a_restart(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    stuck = Stuck()

    def exit_process(code: int) -> None:
        bench.store.away.add("all")
        stuck.let_go.set()
        raise ExitCalled

    bench = make_bench({"x": stuck}, grace=1.0, exit_process=exit_process)
    with pytest.RaisesGroup(ExitCalled, flatten_subgroups=True):
        async with bench.running():
            task_id = await bench.submit("x")
            await bench.until(task_id, Status.PROCESSING)
    async with make_bench({"x": sleeping(1)}).running() as bench:
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.recoveries, task.releases) == (Status.SUCCESS, 2, 1, 0)


async def test_a_store_that_stays_away_cannot_hold_up_the_shutdown(
    make_bench: MakeBench, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with make_bench({"x": sleeping(5)}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.store.away = {"all"}
        began = trio.current_time()
    assert trio.current_time() - began <= 5 + RECORD_PATIENCE + 1
    assert rows_on_disk(tmp_path / "atm.db") == [(task_id, "PROCESSING", 0, 0)]
    async with make_bench({"x": sleeping(1)}).running() as bench:
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.recoveries) == (Status.SUCCESS, 2, 1)


async def test_a_store_that_comes_back_in_time_gets_the_last_outcomes(
    make_bench: MakeBench, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with make_bench({"x": sleeping(5)}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.store.away = {"all"}
        bench.stop.set()
        await trio.sleep(10)
        bench.store.away.clear()
    assert rows_on_disk(tmp_path / "atm.db") == [(task_id, "SUCCESS", 0, 0)]


async def test_a_damaged_store_ends_the_node(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    ended: list[str] = []

    async def body(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(task.task_id)

    bench = make_bench({"x": body})
    with pytest.RaisesGroup(StoreDamaged, flatten_subgroups=True):
        async with bench.running():
            task_id = await bench.submit("x")
            await bench.until(task_id, Status.PROCESSING)
            bench.store.broken["claim"] = StoreDamaged("the store is damaged")
            await bench.submit("x")
            await trio.sleep(60)
    assert ended == [task_id]


# the executors' own opening and closing


class Keeper(Executor):
    """Writes down when it is opened and closed, and when a run of it ends."""

    type = "keeper"
    supported_task_types = ("x",)

    def __init__(self, closing_takes: float = 0.0) -> None:
        self.events: list[tuple[str, float]] = []
        self._closing_takes = closing_takes

    def note(self, what: str) -> None:
        self.events.append((what, trio.current_time()))

    async def __aenter__(self) -> Keeper:
        await trio.sleep(1)
        self.note("opened")
        return self

    async def __aexit__(self, *error: object) -> None:
        self.note("closing")
        await trio.sleep(self._closing_takes)
        self.note("closed")

    async def execute(self, ctx: Context, task: Task) -> None:
        await trio.sleep(10)
        self.note("ran")


async def test_an_executor_is_open_before_the_first_run_and_until_the_last(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    keeper = Keeper(closing_takes=2)
    async with make_bench({"x": keeper}).running() as bench:
        await bench.until(await bench.submit("x"), Status.PROCESSING)
    assert [what for what, _ in keeper.events] == ["opened", "ran", "closing", "closed"]
    assert [round(at) for _, at in keeper.events] == [1, 11, 11, 13]


async def test_an_executor_that_takes_too_long_to_close_is_left(
    make_bench: MakeBench, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(closing_takes=1000)
    async with make_bench({"x": keeper}, cleanup_budget=3.0).running():
        await trio.sleep(1)
    assert trio.current_time() == pytest.approx(1 + 1 + 3)
    assert "executor keeper was not closed within 3 s" in caplog.text


async def test_an_executor_that_cannot_be_opened_ends_the_start_and_the_others_are_closed(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    class Broken(Keeper):
        supported_task_types = ("y",)

        async def __aenter__(self) -> Broken:
            raise ConnectionRefusedError("no letter box")

    keeper = Keeper()
    with pytest.RaisesGroup(StartError, flatten_subgroups=True) as caught:
        async with make_bench({"x": keeper, "y": Broken()}).running():
            raise AssertionError("it must not start")
    assert "executor keeper cannot be opened: ConnectionRefusedError: no letter box" in str(_leaf(caught.value))
    assert [what for what, _ in keeper.events] == ["opened", "closing"]


def _leaf(error: BaseException) -> BaseException:
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


# roles that are off


async def test_a_node_without_a_worker_accepts_and_lets_wait(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({}, works=False).running() as bench:
        task_id = await bench.submit("x")
        await trio.sleep(60)
        assert (await bench.get(task_id)).status is Status.PENDING
        assert bench.coordinator.leader() == "w1"
        assert (await bench.overview()).workers == []
    assert trio.current_time() == pytest.approx(60)


async def test_a_node_without_a_scheduler_does_not_lead(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(1)}, leads=False).running() as bench:
        task_id = await bench.submit("x")
        await trio.sleep(60)
        assert (await bench.get(task_id)).status is Status.PENDING
        assert bench.coordinator.leader() is None
        assert [worker.id for worker in (await bench.overview()).workers] == ["w1"]


# the leader's duties


async def test_a_leader_starts_though_the_store_is_away(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(1)}).crashing() as bench:
        task_id = await bench.submit("x", delay=30.0)
    bench = make_bench({"x": sleeping(1)})
    bench.store.away = {"waiting", "recover", "sweep", "held", "purge"}
    async with bench.running():
        await trio.sleep(10)
        assert (await bench.overview()).delayed == 0
        bench.store.away.clear()
        assert (await bench.until(task_id)).status is Status.SUCCESS


async def test_old_tasks_are_removed_while_the_node_lives(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(1)}, retention=1000.0).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id)
        await trio.sleep(900)
        assert await bench.store.get(task_id) is not None
        await trio.sleep(200)
        assert await bench.store.get(task_id) is None


async def test_without_retention_nothing_is_removed(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(1)}, retention=None).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id)
        await trio.sleep(500)
        assert await bench.store.get(task_id) is not None
        assert "purge" not in bench.store.calls
