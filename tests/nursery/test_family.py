"""Parents and children on one node: one lifetime, one deadline, and slots that waiting parents do not keep."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.errors import ChildFailed, NonRetryable
from atm.store import TaskFilter
from atm.task import Status, Task
from nursery.bench import Bench, Body, MakeBench, sleeping
from nursery.test_worker import Diary, failing


async def parent(ctx: Context, task: Task) -> Any:
    """Starts children of type c, as many as its payload says, and gives their results."""
    children = [await ctx.spawn("c", {"number": n}) for n in range(task.payload.get("count", 1))]
    return [await child.result() for child in children]


async def number(ctx: Context, task: Task) -> Any:
    await trio.sleep(1)
    return task.payload["number"]


async def careless(ctx: Context, task: Task) -> str:
    """Does not wait for its child."""
    await ctx.spawn("c", {"number": 1})
    return "done"


async def tidy(ctx: Context, task: Task) -> None:
    """Takes three seconds to clean up."""
    try:
        await trio.sleep_forever()
    finally:
        with ctx.cleanup():
            await trio.sleep(3)


async def children_of(bench: Bench, task_id: str) -> list[Task]:
    """In the order in which they were started."""
    found: list[Task] = await bench.store.find(TaskFilter(parent_id=task_id), None, 100)
    return sorted(found, key=lambda task: task.task_id)


async def until_children(bench: Bench, task_id: str, status: Status, count: int = 1) -> list[Task]:
    """The children, as soon as so many are in this state."""
    with trio.fail_after(600):
        while len(found := [c for c in await children_of(bench, task_id) if c.status is status]) < count:
            await trio.sleep(0.01)
    return found


# results and slots


async def test_a_parent_gets_the_results_of_its_children(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"p": parent, "c": number}).running() as bench:
        task_id = await bench.submit("p", payload_json='{"count": 3}', priority=-1)
        task = await bench.until(task_id, within=10)
        assert (task.status, task.result_json) == (Status.SUCCESS, "[0,1,2]")
        children = await children_of(bench, task_id)
        assert [child.payload for child in children] == [{"number": 0}, {"number": 1}, {"number": 2}]
        assert {(child.parent_id, child.priority) for child in children} == {(task_id, 0)}
        assert await bench.metric("task_created_total", task_type="c") == 3


async def test_parents_that_wait_lend_their_slots(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary(seconds=2)
    async with make_bench({"p": parent, "c": diary}, capacity=1).running() as bench:
        ids = [await bench.submit("p") for _ in range(5)]
        for task_id in ids:
            assert (await bench.until(task_id, within=60)).status is Status.SUCCESS
        assert diary.most == 1


async def test_no_more_go_on_than_there_are_slots(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    after = Diary(seconds=5)

    async def waiting(ctx: Context, task: Task) -> None:
        await (await ctx.spawn("c", {"number": 1})).wait()
        assert bench.worker.load <= 2
        await after(ctx, task)

    async with make_bench({"p": waiting, "c": number}, capacity=2).running() as bench:
        ids = [await bench.submit("p") for _ in range(6)]
        for task_id in ids:
            assert (await bench.until(task_id, within=60)).status is Status.SUCCESS
        assert after.most == 2


async def test_grandchildren_end_on_one_slot(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def middle(ctx: Context, task: Task) -> Any:
        return await (await ctx.spawn("grandchild", {"number": 42})).result()

    async with make_bench({"p": parent, "c": middle, "grandchild": number}, capacity=1).running() as bench:
        task = await bench.until(await bench.submit("p"), within=20)
        assert task.result_json == "[42]"


async def test_many_tasks_of_a_run_may_wait_at_once(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def gathering(ctx: Context, task: Task) -> list[int]:
        results: list[int] = []

        async def fetch(n: int) -> None:
            results.append(await (await ctx.spawn("c", {"number": n})).result())

        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(fetch, n)
        return sorted(results)

    async with make_bench({"p": gathering, "c": number}, capacity=2).running() as bench:
        task = await bench.until(await bench.submit("p"), within=20)
        assert task.result_json == "[0,1,2,3,4]"
        await trio.sleep(1)
        assert bench.worker.load == 0


async def test_a_lost_event_costs_a_look(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"p": parent, "c": number}).running() as bench:
        bench.coordinator.deaf = True
        assert (await bench.until(await bench.submit("p"), within=6)).status is Status.SUCCESS


async def test_a_child_whose_start_is_refused_is_waited_for_by_nobody(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def bold(ctx: Context, task: Task) -> str:
        with contextlib.suppress(NonRetryable):
            await ctx.spawn("p")
        return "done"

    async with make_bench({"p": bold}).running() as bench:
        await bench.configure("p", max_concurrent=1)
        task = await bench.until(await bench.submit("p"), within=5)
        assert (task.status, task.result_json) == (Status.SUCCESS, '"done"')


# ends


async def test_a_success_counts_when_the_children_have_ended(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"p": careless, "c": sleeping(30)}, capacity=1).running() as bench:
        began = trio.current_time()
        task = await bench.until(await bench.submit("p"))
        assert (task.status, task.result_json) == (Status.SUCCESS, '"done"')
        assert trio.current_time() - began >= 30


async def test_a_failed_child_is_its_parents_business_only_when_asked_for(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def curious(ctx: Context, task: Task) -> Any:
        child = await ctx.spawn("c", max_retry=0)
        try:
            await child.result()
        except ChildFailed as failed:
            return [failed.task_id == child.task_id, failed.status, failed.error]

    async with make_bench({"p": careless, "q": curious, "c": failing}).running() as bench:
        assert (await bench.until(await bench.submit("p"))).status is Status.SUCCESS
        task = await bench.until(await bench.submit("q"))
        assert json.loads(task.result_json or "") == [
            True,
            "FAILED",
            {"type": "ValueError", "message": "no", "retryable": True},
        ]


async def test_a_parent_that_fails_for_good_ends_its_children(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def hasty(ctx: Context, task: Task) -> None:
        await ctx.spawn("c")
        await ctx.spawn("nobody")
        await trio.sleep(1)
        raise ValueError("no")

    async with make_bench({"p": hasty, "c": tidy}).running() as bench:
        task_id = await bench.submit("p", max_retry=0)
        task = await bench.until(task_id)
        assert task.status is Status.FAILED
        children = await children_of(bench, task_id)
        assert [child.status for child in children] == [Status.CANCELLED] * 2
        assert all(child.completed_ms <= task.completed_ms for child in children)  # type: ignore[operator]
        assert "2 children ended with it" in (await bench.messages(task_id))[-1]


async def test_a_timeout_ends_the_whole_family_by_one_deadline(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"p": parent, "c": tidy}, capacity=2).running() as bench:
        task_id = await bench.submit("p", timeout=20, max_retry=0, payload_json='{"count": 1}')
        task = await bench.until(task_id)
        assert task.status is Status.TIMEOUT
        (child,) = await children_of(bench, task_id)
        assert child.status is Status.TIMEOUT
        assert child.retry_count == 0
        assert task.completed_ms is not None
        assert child.completed_ms is not None
        assert task.completed_ms >= child.completed_ms >= (task.started_ms or 0) + 23_000
        await bench.log(task_id)


# cancel


async def test_a_cancelled_parent_is_cancelled_after_its_children(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"p": parent, "c": tidy}, capacity=2).running() as bench:
        task_id = await bench.submit("p", payload_json='{"count": 3}')
        await until_children(bench, task_id, Status.PROCESSING, 2)
        await bench.cancel(task_id)
        task = await bench.until(task_id, within=6)
        assert task.status is Status.CANCELLED
        children = await children_of(bench, task_id)
        assert [child.status for child in children] == [Status.CANCELLED] * 3
        assert all(child.completed_ms <= task.completed_ms for child in children)  # type: ignore[operator]
        assert "3 children ended with it" in (await bench.messages(task_id))[-1]
        await trio.sleep(1)
        assert bench.worker.load == 0


def ending(seconds: float) -> Body:
    """Runs until it is cancelled, and so many seconds longer."""

    async def body(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(seconds)

    return body


def parent_of(children: Sequence[str], body: Body) -> Body:
    """Starts a child of each of these types, and goes on like ``body``."""

    async def started(ctx: Context, task: Task) -> None:
        for task_type in children:
            await ctx.spawn(task_type)
        await body(ctx, task)

    return started


FAMILIES = {
    "before it": (["quick", "quick", "done"], "2 children"),
    "after it": (["slow", "slow", "done"], "2 children"),
    "before and after it": (["quick", "slow", "quick", "done"], "3 children"),
    "alone": (["slow"], "1 child"),
    "never started": (["nobody", "nobody"], "2 children"),
}
"""When the children end, what they are, and how many of them end with their parent, which takes a second."""


@pytest.mark.parametrize("way", ["cancel", "cancel without messages", "timeout"])
@pytest.mark.parametrize(("children", "count"), FAMILIES.values(), ids=FAMILIES)
async def test_a_receipt_counts_the_children_whichever_ended_first(
    make_bench: MakeBench, autojump_clock: MockClock, children: list[str], count: str, way: str
) -> None:
    bodies = {"p": parent_of(children, ending(1)), "quick": ending(0), "slow": ending(3), "done": sleeping(1)}
    async with make_bench(bodies, heartbeat_interval=2.0).running() as bench:
        task_id = await bench.submit("p", timeout=20, max_retry=0)
        await trio.sleep(10)
        if way != "timeout":
            await bench.cancel(task_id, message=way == "cancel")
        await bench.until(task_id)
        last = (await bench.messages(task_id))[-1]
        assert last.count(f"; {count} ended with it") == last.count("child") == 1, last
        assert "executor ended 1.0 s" in last


async def test_lost_messages_cost_a_cancel_a_beat(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"p": parent, "c": tidy}, heartbeat_interval=2.0).running() as bench:
        task_id = await bench.submit("p")
        await until_children(bench, task_id, Status.PROCESSING)
        await bench.cancel(task_id, message=False)
        assert (await bench.until(task_id, within=10)).status is Status.CANCELLED


async def test_a_grandchild_is_cancelled_too(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def middle(ctx: Context, task: Task) -> Any:
        return await (await ctx.spawn("grandchild")).result()

    async with make_bench({"p": parent, "c": middle, "grandchild": tidy}).running() as bench:
        task_id = await bench.submit("p")
        (child,) = await until_children(bench, task_id, Status.PROCESSING)
        (grandchild,) = await until_children(bench, child.task_id, Status.PROCESSING)
        await bench.cancel(task_id)
        ends = [await bench.until(name, within=10) for name in (task_id, child.task_id, grandchild.task_id)]
        assert [task.status for task in ends] == [Status.CANCELLED] * 3
        times = [task.completed_ms or 0 for task in ends]
        assert times == sorted(times, reverse=True)


async def test_a_parent_between_two_attempts_is_cancelled_by_the_leader(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def failing_parent(ctx: Context, task: Task) -> None:
        await ctx.spawn("c")
        await trio.sleep(1)
        raise ValueError("no")

    async with make_bench({"p": failing_parent, "c": tidy}).running() as bench:
        await bench.configure("p", retry_delay=100.0)
        task_id = await bench.submit("p")
        await bench.until_attempt(task_id, 1)
        await bench.until(task_id, Status.PENDING)
        verdict = await bench.cancel(task_id)
        assert verdict.worker_id is None
        task = await bench.until(task_id, within=10)
        assert task.status is Status.CANCELLED
        (child,) = await children_of(bench, task_id)
        assert child.status is Status.CANCELLED
        assert (child.completed_ms or 0) <= (task.completed_ms or 0)
        await bench.log(task_id)


async def test_who_spawns_after_the_cancel_gets_none(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def late(ctx: Context, task: Task) -> None:
        await trio.sleep(1)
        await ctx.spawn("c")

    async with make_bench({"p": late, "c": sleeping(1)}).running() as bench:
        task_id = await bench.submit("p")
        await bench.until_attempt(task_id, 1)
        await bench.cancel(task_id, message=False)
        assert (await bench.until(task_id, within=10)).status is Status.CANCELLED
        assert await children_of(bench, task_id) == []


# another attempt


async def test_a_retried_parent_does_not_start_a_child_twice(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary(seconds=60)

    async def forgetful(ctx: Context, task: Task) -> Any:
        first = await ctx.spawn("c", {"n": 0})
        if ctx.attempt == 1:
            raise ConnectionError("try again")
        second = await ctx.spawn("c", {"n": 1})
        return [await first.result(), await second.result()]

    async with make_bench({"p": forgetful, "c": diary}).running() as bench:
        task_id = await bench.submit("p")
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.result_json) == (Status.SUCCESS, 2, "[1,1]")
        assert diary.started == [child.task_id for child in await children_of(bench, task_id)]


async def test_a_retried_parent_tries_a_failed_child_again(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def second_time_lucky(ctx: Context, task: Task) -> int:
        await trio.lowlevel.checkpoint()
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return ctx.attempt

    async def once(ctx: Context, task: Task) -> Any:
        return await (await ctx.spawn("c", max_retry=0)).result()

    async with make_bench({"p": once, "c": second_time_lucky}).running() as bench:
        task = await bench.until(await bench.submit("p"))
        assert (task.status, task.attempt, task.result_json) == (Status.SUCCESS, 2, "2")


async def test_another_child_in_the_place_of_the_first_fails_the_parent_at_once(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def changed(ctx: Context, task: Task) -> None:
        await ctx.spawn("c", {"number": ctx.attempt})
        raise ConnectionError("try again")

    async with make_bench({"p": changed, "c": number}).running() as bench:
        task = await bench.until(await bench.submit("p"))
        assert (task.status, task.attempt) == (Status.FAILED, 2)
        assert task.error_json is not None
        error = json.loads(task.error_json)
        assert error["type"] == "SpawnRefused"
        assert error["message"].startswith("child 0 of type c cannot be started: task ")


async def test_a_child_that_would_wait_for_its_parents_slot_of_a_cap_is_refused(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def recursive(ctx: Context, task: Task) -> None:
        await ctx.spawn("p")

    async with make_bench({"p": recursive}).running() as bench:
        await bench.configure("p", max_concurrent=1)
        task = await bench.until(await bench.submit("p"), within=5)
        assert task.status is Status.FAILED
        assert "max_concurrent" in (task.error_json or "")


async def test_what_no_task_can_have_fails_the_parent_at_once(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    odd: list[dict[str, Any]] = [
        {"task_type": "no type!"},
        {"payload": {"x": float("nan")}},
        {"payload": {"x": object()}},
        {"payload": {"x": "x" * 1024 * 1024}},
        {"priority": 2},
        {"timeout": 0},
        {"max_retry": -1},
    ]

    async def wrong(ctx: Context, task: Task) -> None:
        await ctx.spawn(**({"task_type": "c"} | odd[task.payload["index"]]))

    async with make_bench({"p": wrong}).running() as bench:
        for index in range(len(odd)):
            task = await bench.until(await bench.submit("p", payload_json=f'{{"index": {index}}}'), within=5)
            assert (task.status, task.attempt) == (Status.FAILED, 1)
            assert "spawn: " in (task.error_json or "")
            assert await children_of(bench, task.task_id) == []


async def test_an_outage_of_the_store_starts_no_second_child(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"p": parent, "c": number}).running() as bench:
        bench.store.deaf.add("spawn")
        task_id = await bench.submit("p")
        await until_children(bench, task_id, Status.PENDING)
        await trio.sleep(5)
        bench.store.deaf.clear()
        task = await bench.until(task_id, within=60)
        assert task.result_json == "[0]"
        assert len(await children_of(bench, task_id)) == 1


async def test_a_node_that_crashed_while_a_parent_waited_goes_on_with_the_same_child(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary(seconds=60)
    async with make_bench({"p": parent, "c": diary}, capacity=1).crashing() as bench:
        task_id = await bench.submit("p")
        await until_children(bench, task_id, Status.PROCESSING)
    async with make_bench({"p": parent, "c": diary}, capacity=1).running() as bench:
        task = await bench.until(task_id)
        assert (task.status, task.recoveries) == (Status.SUCCESS, 1)
        (child,) = await children_of(bench, task_id)
        assert set(diary.started) == {child.task_id}
        assert child.recoveries == 1


async def test_a_cancel_survives_the_crash_of_the_whole_family(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"p": parent, "c": tidy}).crashing() as bench:
        task_id = await bench.submit("p")
        await until_children(bench, task_id, Status.PROCESSING)
        await bench.cancel(task_id, message=False)
    async with make_bench({"p": parent, "c": tidy}).running() as bench:
        task = await bench.until(task_id, within=10)
        assert task.status is Status.CANCELLED
        (child,) = await children_of(bench, task_id)
        assert child.status is Status.CANCELLED
        await bench.log(task_id)


async def test_a_drained_node_releases_parents_that_wait_and_forgets_no_slot(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"p": parent}, grace=2.0).running() as bench:
        task_id = await bench.submit("p")
        await until_children(bench, task_id, Status.PENDING)
    async with bench.store_alone() as store:
        task = await store.get(task_id)
        assert (task.status, task.releases) == (Status.PENDING, 1)
    assert bench.worker.busy == bench.worker.load == 0


async def test_many_children_are_cancelled_in_pages(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def prolific(ctx: Context, task: Task) -> None:
        for n in range(1100):
            await ctx.spawn("nobody", {"n": n})
        await trio.sleep_forever()

    async with make_bench({"p": prolific}).running() as bench:
        task_id = await bench.submit("p")
        with trio.fail_after(60):
            while (await bench.overview()).queues[0].length < 1100:
                await trio.sleep(0.5)
        await bench.cancel(task_id)
        assert (await bench.until(task_id, within=10)).status is Status.CANCELLED
        left = await bench.store.find(TaskFilter(status=Status.PENDING, parent_id=task_id), None, 10)
        assert left == []
