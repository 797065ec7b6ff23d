"""Runs that ignore their cancel: found, named with their line, counted, and not waited for."""

from __future__ import annotations

import json
import linecache
import re
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from atm.context import Context
from atm.coordinator import Hint
from atm.nursery import places
from atm.nursery.run import Run
from atm.nursery.stuck import LOOK, STUCK_MARGIN
from atm.nursery.supervisor import STUCK_EXIT
from atm.nursery.worker import CANCEL_BATCH
from atm.store import LogRow, NewTask
from atm.task import LogType, Status, Task, new_task_id
from nursery.bench import AttemptKit, Bench, Body, MakeBench, sleeping

BUDGET = 5.0
UNTIL_TOLD = BUDGET + STUCK_MARGIN + 2 * LOOK


class Rude:
    """Bodies that ignore their cancel until they are let go. Each is marked where it waits."""

    def __init__(self) -> None:
        self.let_go = trio.Event()

    async def shielded(self, ctx: Context, task: Task) -> str:
        with trio.CancelScope(shield=True):
            await self.let_go.wait()  # waits here: shielded
        return "done"

    async def swallowing(self, ctx: Context, task: Task) -> str:
        while not self.let_go.is_set():
            try:
                with trio.move_on_after(0.05, shield=True):
                    await self.let_go.wait()  # waits here: swallowing
                await trio.lowlevel.checkpoint()
            except trio.Cancelled:
                pass
        return "done"

    async def in_a_child(self, ctx: Context, task: Task) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(self._child)
        return "done"

    async def _child(self) -> None:
        with trio.CancelScope(shield=True):
            await self.let_go.wait()  # waits here: in_a_child

    async def in_a_childless_library(self, ctx: Context, task: Task) -> str:
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as nursery:  # waits here: in_a_childless_library
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(self._end, scope)
        return "done"

    async def _end(self, scope: trio.CancelScope) -> None:
        await self.let_go.wait()  # waits here: in_a_childless_library
        scope.cancel()


def line_of(name: str) -> int:
    lines = linecache.getlines(__file__)
    return 1 + next(index for index, line in enumerate(lines) if line.rstrip().endswith(f"# waits here: {name}"))


async def errors_of(bench: Bench, task_id: str) -> list[LogRow]:
    return [row for row in await bench.log(task_id) if row.log_type is LogType.ERROR]


@pytest.mark.parametrize("kind", ["shielded", "swallowing", "in_a_child", "in_a_childless_library"])
async def test_a_run_that_ignores_its_cancel_is_told_once_with_its_line(
    make_bench: MakeBench, autojump_clock: MockClock, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    rude = Rude()
    async with make_bench({"x": getattr(rude, kind), "y": sleeping(1)}, capacity=1).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        waiting = await bench.submit("y")
        await bench.cancel(task_id)
        await trio.sleep(BUDGET + STUCK_MARGIN - 0.1)
        assert (await errors_of(bench, task_id), await bench.metric("atm_stuck_runs")) == ([], 0)
        await trio.sleep(2 * LOOK + 0.1)
        assert await bench.metric("atm_stuck_runs") == 1
        (row,) = await errors_of(bench, task_id)
        place = f"{__file__}:{line_of(kind)} in "
        assert place in row.message
        assert re.match(r"Task does not end: a user cancelled it [78]\.\d s ago, executor Scripted", row.message)
        assert (row.worker_id, row.attempt) == ("w1", 1)
        await trio.sleep(60)
        assert len(await errors_of(bench, task_id)) == 1
        (told,) = [record for record in caplog.records if "does not end" in record.getMessage()]
        assert (vars(told)["task_id"], told.levelname) == (task_id, "ERROR")
        assert place in told.getMessage()
        task = await bench.get(task_id)
        assert (task.status, task.cancel_requested_ms is not None) == (Status.PROCESSING, True)
        assert (await bench.get(waiting)).status is Status.PENDING, "its slot stays taken"

        rude.let_go.set()
        assert (await bench.until(task_id, within=2)).status is Status.CANCELLED
        assert await bench.metric("atm_stuck_runs") == 0
        await bench.until(waiting)
        await trio.sleep(2 * LOOK)
        assert "task has ended after all" in caplog.text


async def test_a_run_that_ignores_its_timeout_is_told_and_its_true_end_is_written(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    rude = Rude()
    async with make_bench({"x": rude.shielded}).running() as bench:
        task_id = await bench.submit("x", timeout=20.0)
        await bench.until(task_id, Status.PROCESSING)
        await trio.sleep(20 + UNTIL_TOLD)
        (row,) = await errors_of(bench, task_id)
        assert row.message.startswith("Task does not end: its timeout of 20 s cancelled it")
        task = await bench.get(task_id)
        assert task.status is Status.PROCESSING
        assert json.loads(task.error_json or "") == {"type": "Stuck", "message": row.message, "retryable": True}
        rude.let_go.set()
        ended = await bench.until(task_id)
        assert (ended.status, ended.error_json) == (Status.SUCCESS, None)


async def test_a_cleanup_within_its_budget_is_nothing_to_tell(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def clean_up(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep_forever()

    async with make_bench({"x": clean_up}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await bench.cancel(task_id)
        await bench.until(task_id)
        await trio.sleep(UNTIL_TOLD)
        assert await errors_of(bench, task_id) == []
        assert await bench.metric("atm_stuck_runs") == 0


async def test_what_is_to_be_told_waits_for_the_store(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    rude, other = Rude(), Rude()
    async with make_bench({"x": rude.shielded, "y": other.shielded}).running() as bench:
        ids = [await bench.submit(name) for name in ("x", "y")]
        await bench.until(ids[1], Status.PROCESSING)
        for task_id in ids:
            await bench.cancel(task_id)
        bench.store.away = {"note"}
        await trio.sleep(UNTIL_TOLD + 10)
        rude.let_go.set()
        await bench.until(ids[0])
        assert len(await errors_of(bench, ids[0])) == 1, "it came with the outcome"
        assert await errors_of(bench, ids[1]) == []
        bench.store.away.clear()
        await trio.sleep(2 * LOOK)
        assert len(await errors_of(bench, ids[1])) == 1
        other.let_go.set()


class Exits(Exception):
    """Stands for the end of the process."""


async def test_where_a_stuck_run_is_to_end_the_node_it_drains_and_ends_with_70(
    make_bench: MakeBench, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    rude, codes = Rude(), list[int]()

    def exit_process(code: int) -> None:
        codes.append(code)
        rude.let_go.set()
        raise Exits

    bodies: dict[str, Body] = {"x": rude.shielded, "y": sleeping(20)}
    bench = make_bench(bodies, grace=300.0, exit_process=exit_process)
    bench.parts.exit_when_stuck = True
    with pytest.RaisesGroup(Exits, flatten_subgroups=True):
        async with bench.running():
            stuck, polite = await bench.submit("x"), await bench.submit("y")
            await bench.until(polite, Status.PROCESSING)
            began = trio.current_time()
            await bench.cancel(stuck)
            await trio.sleep(UNTIL_TOLD)
            assert bench.health.draining
            assert (await bench.until(polite)).status is Status.SUCCESS
            await trio.sleep_forever()
    assert codes == [STUCK_EXIT]
    assert trio.current_time() - began < 25, "nobody waits for it all the grace time"
    assert "worker.stuck is exit" in caplog.text


async def test_a_node_that_ends_for_a_stuck_run_has_written_of_it_first(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    rude, done = Rude(), list[str]()

    async def slowly() -> None:
        await trio.sleep(0.5)
        done.append("written")

    def exit_process(code: int) -> None:
        done.append("ended")
        rude.let_go.set()
        raise Exits

    bench = make_bench({"x": rude.shielded}, exit_process=exit_process)
    bench.parts.exit_when_stuck = True
    with pytest.RaisesGroup(Exits, flatten_subgroups=True):
        async with bench.running():
            task_id = await bench.submit("x")
            await bench.until(task_id, Status.PROCESSING)
            bench.store.on_the_way["note"] = slowly
            await bench.cancel(task_id)
            await trio.sleep_forever()
    assert done == ["written", "ended"]


async def test_a_stuck_run_that_ends_in_the_drain_does_not_keep_the_node_from_its_end(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    rude = Rude()
    bench = make_bench({"x": rude.shielded, "y": sleeping(30)})
    bench.parts.exit_when_stuck = True
    with pytest.RaisesGroup(SystemExit, flatten_subgroups=True) as caught:
        async with bench.running():
            task_id, polite = await bench.submit("x"), await bench.submit("y")
            await bench.until(polite, Status.PROCESSING)
            await bench.cancel(task_id)
            await trio.sleep(UNTIL_TOLD)
            rude.let_go.set()
            await bench.until(polite)
            assert (await bench.get(task_id)).status is Status.CANCELLED
            await trio.sleep_forever()
    assert _leaf(caught.value).args == (STUCK_EXIT,)
    assert bench.store.calls["retire"] == 1


async def test_what_the_shutdown_cannot_end_is_in_its_tasks_log(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    rude = Rude()

    def exit_process(code: int) -> None:
        rude.let_go.set()
        raise Exits

    bench = make_bench({"x": rude.shielded}, grace=1.0, exit_process=exit_process)
    with pytest.RaisesGroup(Exits, flatten_subgroups=True):
        async with bench.running():
            task_id = await bench.submit("x")
            await bench.until(task_id, Status.PROCESSING)
    async with bench.store_alone():
        (row,) = [row for row in await bench.store.logs(task_id) if row.log_type is LogType.ERROR]
        assert row.message.startswith("Task does not end: the shutdown cancelled it 7.0 s ago")
        assert f"{__file__}:{line_of('shielded')} in shielded" in row.message


def _leaf(error: BaseException) -> BaseException:
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


# storms


class Storm:
    """Counts how many runs have been cancelled and have not had their turn to end yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.under_way = self.most = 0
        for name in ("stop", "cancel"):
            monkeypatch.setattr(Run, name, self._counted(getattr(Run, name)))

    def _counted(self, real: Callable[..., None]) -> Callable[..., None]:
        def counted(run: Run, *reason: str) -> None:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            real(run, *reason)

        return counted

    async def body(self, ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.under_way -= 1


@pytest.mark.parametrize("cause", ["shutdown", "lease", "missed cancels"])
async def test_many_runs_are_cancelled_in_slices(
    make_bench: MakeBench, autojump_clock: MockClock, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storm, count = Storm(monkeypatch), 3 * CANCEL_BATCH
    bench = make_bench({"x": storm.body}, capacity=count, grace=1.0)
    async with bench.running():
        tasks = [NewTask(task_id=new_task_id(), task_type="x", payload_json="{}") for _ in range(count)]
        ids = [task.task_id for task in tasks]
        await bench.store.create(tasks)
        await bench.coordinator.push([Hint(task_id, "x", 0) for task_id in ids])
        while bench.worker.load < count:
            await trio.sleep(0.1)
        if cause == "lease":
            await bench.store.register("w1", count, ["x"])  # the old lease is over
            while bench.worker.load:
                await trio.sleep(0.1)
        if cause == "missed cancels":
            await bench.store.cancel(ids)
            await bench.until(ids[-1])
        bench.stop.set()
    # Those of a slice and the one who cancels take their turns in any order.
    assert 0 < storm.most <= 2 * CANCEL_BATCH
    async with bench.store_alone():
        found = [await bench.get(task_id) for task_id in ids]
        ended = Status.CANCELLED if cause == "missed cancels" else Status.PENDING
        assert {task.status for task in found} == {ended}
        if cause == "shutdown":
            assert (await bench.messages(ids[0]))[-1] == "Released by its worker: shutdown"


# where a run is


async def _suspended(attempts: AttemptKit, body: Body, look: Callable[[Run], Any]) -> Any:
    run = attempts.run(body)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempts.end_of, run)
        await trio.testing.wait_all_tasks_blocked()
        found = look(run)
        nursery.cancel_scope.cancel()
    return found


async def test_a_run_in_many_places_is_told_of_with_a_few(attempts: AttemptKit) -> None:
    async def first() -> None:
        await trio.sleep_forever()

    async def second() -> None:
        await trio.sleep_forever()

    async def third() -> None:
        await trio.sleep_forever()

    async def fourth() -> None:
        await trio.sleep_forever()

    async def body(ctx: Context, task: Task) -> None:
        async with trio.open_nursery() as nursery:
            for child in (first, second, third, fourth):
                for _ in range(100):
                    nursery.start_soon(child)

    told = await _suspended(attempts, body, places.whereabouts)
    assert len(re.findall(r" in (?:first|second|third|fourth): ", told)) == places.MAX_PLACES
    assert told.endswith(", and 1 more")


async def test_a_lane_may_know_better_where_its_run_is(attempts: AttemptKit) -> None:
    async def body(ctx: Context, task: Task) -> None:
        await trio.sleep_forever()

    class Told:
        whereabouts = staticmethod(lambda: "thread 7 at lib.py:3 in block")

    def look(run: Run) -> str:
        run.context = Told()  # type: ignore[assignment]
        return places.whereabouts(run)

    run = attempts.run(body)
    assert look(run) == "thread 7 at lib.py:3 in block"


async def test_a_run_that_has_not_begun_is_at_its_beginning(attempts: AttemptKit) -> None:
    run = attempts.run(sleeping(1))
    assert places.whereabouts(run) == "its beginning"


def test_a_thread_that_is_gone_is_nowhere() -> None:
    assert places.place_on_stack(None, None) == "an unknown place"
