"""The worker: takes, claims, runs, records, and hears of cancels. A whole small node, on a virtual clock."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.coordinator import CancelRequest, Hint
from atm.errors import NonRetryable
from atm.store import CancelState, NewTask
from atm.task import LogType, RetryStrategy, Status, Task, new_task_id
from nursery.bench import MakeBench, sleeping


class Diary:
    """Writes down who runs when."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.started: list[str] = []
        self.times: list[float] = []
        self.now = 0
        self.most = 0

    async def __call__(self, ctx: Context, task: Task) -> int:
        self.started.append(task.task_id)
        self.times.append(trio.current_time())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.now -= 1
        return ctx.attempt


async def failing(ctx: Context, task: Task) -> None:
    await trio.lowlevel.checkpoint()
    raise ValueError("no")


# from create to the end


async def test_a_task_runs_and_its_result_is_recorded(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": Diary()}).running() as bench:
        task = await bench.until(await bench.submit("x"))
        assert (task.status, task.result_json, task.attempt, task.worker_id) == (Status.SUCCESS, "1", 1, "w1")
        assert await bench.messages(task.task_id) == ["Task created", "Task assigned to worker", "Task succeeded"]


async def test_a_thousand_that_end_together_are_all_recorded(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(5)}, capacity=1200).running() as bench:
        tasks = [NewTask(task_id=new_task_id(), task_type="x", payload_json="{}") for _ in range(1200)]
        await bench.store.create(tasks)
        await bench.coordinator.push([Hint(t.task_id, "x", 0) for t in tasks])
        await bench.until(tasks[-1].task_id)
        statuses = [(await bench.get(task.task_id)).status for task in tasks]
        assert set(statuses) == {Status.SUCCESS}


async def test_no_more_run_than_there_are_slots(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary(seconds=10)
    async with make_bench({"x": diary}, capacity=3).running() as bench:
        ids = [await bench.submit("x") for _ in range(7)]
        for task_id in ids:
            await bench.until(task_id)
        assert diary.most == 3
        assert [round(at) for at in diary.times] == [0, 0, 0, 10, 10, 10, 20]


async def test_high_goes_before_normal_before_low(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary()
    async with make_bench({"x": diary}, capacity=1).running() as bench:
        await bench.submit("x")
        await trio.sleep(0.5)
        low = [await bench.submit("x", priority=-1) for _ in range(2)]
        normal = [await bench.submit("x") for _ in range(2)]
        high = [await bench.submit("x", priority=1) for _ in range(2)]
        await bench.until(low[-1])
        assert diary.started[1:] == [*high, *normal, *low]


async def test_a_type_without_an_executor_waits_and_holds_up_nobody(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(1)}, capacity=1).running() as bench:
        unknown = [await bench.submit("unknown", priority=1) for _ in range(20)]
        await bench.until(await bench.submit("x", priority=-1), within=2)
        assert {(await bench.get(task_id)).status for task_id in unknown} == {Status.PENDING}
        assert (await bench.overview()).queues[0].parked == 20


async def test_a_delayed_task_runs_at_its_time(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary()
    async with make_bench({"x": diary}).running() as bench:
        await bench.until(await bench.submit("x", delay=60.0))
        assert diary.times == pytest.approx([60], abs=0.1)


async def test_a_hint_that_comes_too_early_waits_for_the_tasks_time(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary()
    async with make_bench({"x": diary}).running() as bench:
        task_id = await bench.submit("x", delay=60.0, hint=False)
        await bench.coordinator.push([Hint(task_id, "x", 0)])
        await bench.until(task_id)
        assert diary.times == pytest.approx([60], abs=0.1)


async def test_a_hint_without_a_task_is_dropped(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(1)}, capacity=1).running() as bench:
        await bench.coordinator.push([Hint(new_task_id(), "x", 0)])
        await bench.until(await bench.submit("x"), within=2)
        assert (await bench.overview()).queues[1].length == 0


async def test_two_hints_for_one_task_run_it_once(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary()
    async with make_bench({"x": diary}).running() as bench:
        task_id = await bench.submit("x")
        await trio.sleep(0.5)
        await bench.coordinator.push([Hint(task_id, "x", 0)])
        await bench.until(task_id)
        await trio.sleep(5)
        assert diary.started == [task_id]


# caps and switches of a type


async def test_a_cap_is_never_exceeded(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary(seconds=10)
    async with make_bench({"x": diary, "free": sleeping(1)}).running() as bench:
        await bench.configure("x", max_concurrent=2)
        ids = [await bench.submit("x") for _ in range(6)]
        await bench.until(await bench.submit("free", priority=-1), within=2)
        for task_id in ids:
            assert (await bench.until(task_id)).status is Status.SUCCESS
        assert diary.most == 2
        assert [round(at) for at in diary.times] == [0, 0, 10, 10, 20, 20]


async def test_a_cap_set_while_tasks_run_holds_from_then_on(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary(seconds=10)
    async with make_bench({"x": diary}, capacity=5).running() as bench:
        ids = [await bench.submit("x") for _ in range(8)]
        await trio.sleep(5)
        await bench.configure("x", max_concurrent=1)
        for task_id in ids:
            await bench.until(task_id)
        assert [round(at) for at in diary.times] == [0, 0, 0, 0, 0, 10, 20, 30]


async def test_a_cap_that_is_lifted_lets_the_rest_run(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary(seconds=10)
    async with make_bench({"x": diary}, capacity=5).running() as bench:
        await bench.configure("x", max_concurrent=1)
        ids = [await bench.submit("x") for _ in range(4)]
        await trio.sleep(5)
        await bench.configure("x", max_concurrent=None)
        for task_id in ids:
            await bench.until(task_id)
        assert [round(at) for at in diary.times] == [0, 5, 5, 5]


@pytest.mark.parametrize("ending", ["failure", "timeout", "cancel"])
async def test_a_capped_slot_comes_free_however_its_run_ends(
    make_bench: MakeBench, autojump_clock: MockClock, ending: str
) -> None:
    async def body(ctx: Context, task: Task) -> None:
        if ending == "failure":
            raise NonRetryable("no")
        await trio.sleep_forever()

    async with make_bench({"x": body}).running() as bench:
        await bench.configure("x", max_concurrent=1)
        first = await bench.submit("x", timeout=1.0, max_retry=0)
        second = await bench.submit("x", timeout=1.0, max_retry=0)
        if ending == "cancel":
            await bench.until(first, Status.PROCESSING)
            await bench.cancel(first)
        await bench.until(first)
        await bench.until(second, Status.PROCESSING, Status.FAILED, within=2)
        await bench.cancel(second)


async def test_a_disabled_type_waits_until_it_is_enabled(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary()
    async with make_bench({"x": diary, "other": sleeping(1)}, capacity=1).running() as bench:
        await bench.configure("x", enabled=False)
        task_id = await bench.submit("x", priority=1)
        await bench.until(await bench.submit("other", priority=-1), within=2)
        await trio.sleep(120)
        assert diary.times == []
        await bench.configure("x", enabled=True)
        await bench.until(task_id, within=2)


async def test_a_type_disabled_while_its_tasks_run_lets_them_end(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary(seconds=10)
    async with make_bench({"x": diary}, capacity=1).running() as bench:
        first, second = [await bench.submit("x") for _ in range(2)]
        await trio.sleep(5)
        await bench.configure("x", enabled=False)
        assert (await bench.until(first)).status is Status.SUCCESS
        await trio.sleep(100)
        assert (await bench.get(second)).status is Status.PENDING


# retries


async def test_retries_wait_as_the_fixed_strategy_says(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    times: list[float] = []

    async def body(ctx: Context, task: Task) -> None:
        times.append(trio.current_time())
        raise ValueError("no")

    async with make_bench({"x": body}).running() as bench:
        await bench.configure("x", retry_strategy=RetryStrategy.FIXED, retry_delay=30)
        task = await bench.until(await bench.submit("x", max_retry=3))
        assert (task.status, task.attempt, task.retry_count) == (Status.FAILED, 4, 3)
        assert [30 <= b - a <= 33.1 for a, b in pairwise(times)] == [True] * 3


async def test_retries_wait_longer_and_longer_by_default(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    times: list[float] = []

    async def body(ctx: Context, task: Task) -> None:
        times.append(trio.current_time())
        raise ValueError("no")

    async with make_bench({"x": body}).running() as bench:
        await bench.until(await bench.submit("x", max_retry=10))
        gaps = [b - a for a, b in pairwise(times)]
        asked = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
        assert [want <= got <= want * 1.1 + 0.1 for want, got in zip(asked, gaps, strict=True)] == [True] * 10


async def test_a_retry_is_told_in_the_log(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def second_time_lucky(ctx: Context, task: Task) -> str:
        if ctx.attempt == 1:
            raise ValueError("not yet")
        await trio.lowlevel.checkpoint()
        return "ok"

    async with make_bench({"x": second_time_lucky}).running() as bench:
        task = await bench.until(await bench.submit("x"))
        assert (task.status, task.attempt, task.retry_count, task.error_json) == (Status.SUCCESS, 2, 1, None)
        rows = [(row.log_type, row.from_status, row.to_status) for row in await bench.log(task.task_id)]
        assert rows == [
            (LogType.STATE_CHANGE, None, Status.PENDING),
            (LogType.STATE_CHANGE, Status.PENDING, Status.PROCESSING),
            (LogType.ERROR, None, None),
            (LogType.STATE_CHANGE, Status.PROCESSING, Status.FAILED),
            (LogType.RETRY, Status.FAILED, Status.PENDING),
            (LogType.STATE_CHANGE, Status.PENDING, Status.PROCESSING),
            (LogType.STATE_CHANGE, Status.PROCESSING, Status.SUCCESS),
        ]
        assert await bench.metric("atm_retries_total") == 1


async def test_non_retryable_is_the_end_at_once(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def body(ctx: Context, task: Task) -> None:
        raise NonRetryable("no such user")

    async with make_bench({"x": body}).running() as bench:
        task = await bench.until(await bench.submit("x", max_retry=100))
        assert (task.status, task.attempt, task.retry_count) == (Status.FAILED, 1, 0)


async def test_the_timeout_is_per_attempt(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary(seconds=1000)
    async with make_bench({"x": diary}).running() as bench:
        task = await bench.until(await bench.submit("x", timeout=10.0, max_retry=2))
        assert (task.status, task.attempt, task.retry_count) == (Status.TIMEOUT, 3, 2)
        first, second, third = diary.times
        assert 11 <= second - first <= 11.3
        assert 12 <= third - second <= 12.4
        assert diary.now == 0


async def test_a_slot_is_free_while_its_task_waits_for_a_retry(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"bad": failing, "good": sleeping(1)}, capacity=1).running() as bench:
        await bench.configure("bad", retry_strategy=RetryStrategy.FIXED, retry_delay=1000)
        bad = await bench.submit("bad")
        await bench.until(await bench.submit("good"), within=2)
        assert (await bench.get(bad)).status is Status.PENDING


# a user's cancel


async def test_a_waiting_task_that_is_cancelled_never_runs(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary(seconds=10)
    async with make_bench({"x": diary}, capacity=1).running() as bench:
        first, second, third = [await bench.submit("x") for _ in range(3)]
        await bench.until(first, Status.PROCESSING)
        assert (await bench.cancel(second)).state is CancelState.CANCELLED
        await bench.until(third)
        assert diary.started == [first, third]
        assert (await bench.get(second)).attempt == 0


async def test_a_task_that_waits_for_its_retry_can_be_cancelled(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": failing}).running() as bench:
        await bench.configure("x", retry_strategy=RetryStrategy.FIXED, retry_delay=100)
        task_id = await bench.submit("x")
        while (await bench.get(task_id)).retry_count == 0:
            await trio.sleep(0.1)
        assert (await bench.cancel(task_id)).state is CancelState.CANCELLED
        await trio.sleep(200)
        task = await bench.get(task_id)
        assert (task.status, task.attempt) == (Status.CANCELLED, 1)
        await bench.log(task_id)


async def test_a_running_task_is_cancelled_only_when_its_executor_has_ended(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    ended_at: list[float] = []

    async def slow_goodbye(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(3)
            ended_at.append(trio.current_time())

    async with make_bench({"x": slow_goodbye}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        assert (await bench.cancel(task_id)).state is CancelState.REQUESTED
        await trio.sleep(2.9)
        task = await bench.get(task_id)
        assert (task.status, task.cancel_requested_ms is not None, ended_at) == (Status.PROCESSING, True, [])
        task = await bench.until(task_id, within=1)
        assert task.status is Status.CANCELLED
        assert ended_at
        assert bench.worker.runs == {}
        assert await bench.messages(task_id) == [
            "Task created",
            "Task assigned to worker",
            "Cancellation requested",
            "Task cancelled (asked → node 0 ms → executor ended 3.0 s)",
        ]


async def test_a_cancel_that_comes_between_claim_and_start_is_not_missed(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary(seconds=1000)
    bench = make_bench({"x": diary})

    async def cancel_on_the_way() -> None:
        assert (await bench.cancel(task_id)).state is CancelState.REQUESTED

    async with bench.running():
        task_id = await bench.submit("x", hint=False)
        bench.store.on_the_way["claim"] = cancel_on_the_way
        await bench.coordinator.push([Hint(task_id, "x", 0)])
        task = await bench.until(task_id, within=1)
        assert (task.status, task.attempt) == (Status.CANCELLED, 1)
        assert diary.now == 0


async def test_a_cancel_whose_message_was_lost_costs_one_beat(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(1000)}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await bench.cancel(task_id, message=False)
        task = await bench.until(task_id, within=bench.parts.heartbeat_interval + 0.5)
        assert task.status is Status.CANCELLED


async def test_a_cancel_meant_for_another_attempt_hits_nobody(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(10)}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.worker.on_cancel(CancelRequest(task_id, 2))
        bench.worker.on_cancel(CancelRequest(new_task_id(), 1))
        assert (await bench.until(task_id)).status is Status.SUCCESS


@pytest.mark.parametrize("answer", ["value", "failure", "non-retryable"])
async def test_a_cancel_wins_over_whatever_the_executor_still_says(
    make_bench: MakeBench, autojump_clock: MockClock, answer: str
) -> None:
    async def stubborn(ctx: Context, task: Task) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        if answer == "value":
            return "done"
        raise ValueError("no") if answer == "failure" else NonRetryable("no")

    async with make_bench({"x": stubborn}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await bench.cancel(task_id)
        task = await bench.until(task_id)
        assert (task.status, task.result_json, task.retry_count) == (Status.CANCELLED, None, 0)
        await bench.log(task_id)


async def test_a_cancelled_task_that_is_opened_again_runs_under_a_new_attempt(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary(seconds=10)
    async with make_bench({"x": diary}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await bench.cancel(task_id)
        await bench.until(task_id)
        await bench.store.reopen([task_id])
        await bench.coordinator.push([Hint(task_id, "x", 0)])
        task = await bench.until(task_id, Status.SUCCESS)
        assert (task.attempt, task.cancel_requested_ms) == (2, None)


# the store is away for a while


async def test_an_outcome_waits_for_the_store(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary(seconds=1)
    async with make_bench({"x": diary}).running() as bench:
        ids = [await bench.submit("x") for _ in range(3)]
        await bench.until(ids[0], Status.PROCESSING)
        bench.store.away = {"finish", "renew", "held", "recover", "sweep"}
        await trio.sleep(60)
        assert {(await bench.get(task_id)).status for task_id in ids} == {Status.PROCESSING}
        bench.store.away.clear()
        tasks = [await bench.until(task_id, within=3) for task_id in ids]
        assert [(task.status, task.attempt) for task in tasks] == [(Status.SUCCESS, 1)] * 3
        assert len(diary.started) == 3


async def test_a_claim_waits_for_the_store(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    diary = Diary()
    async with make_bench({"x": diary}).running() as bench:
        bench.store.away = {"claim"}
        task_id = await bench.submit("x")
        await trio.sleep(60)
        assert diary.started == []
        bench.store.away.clear()
        task = await bench.until(task_id, within=4)
        assert (task.status, task.attempt, task.releases) == (Status.SUCCESS, 1, 0)


async def test_an_outcome_whose_receipt_was_lost_counts_once(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": Diary(seconds=1)}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.store.deaf = {"finish"}
        await trio.sleep(5)
        bench.store.deaf.clear()
        await trio.sleep(5)
        task = await bench.get(task_id)
        assert (task.status, task.attempt) == (Status.SUCCESS, 1)
        assert bench.store.calls["finish"] > 1
        assert len(await bench.log(task_id)) == 3
        assert await bench.metric("atm_stale_results_total") == 0
        assert bench.worker.runs == {}


async def test_a_claim_whose_answer_was_lost_is_released_and_runs_later(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary()
    async with make_bench({"x": diary}).running() as bench:
        bench.store.deaf = {"claim"}
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.store.deaf.clear()
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.releases, task.retry_count) == (Status.SUCCESS, 2, 1, 0)
        assert diary.started == [task_id]
        assert "Released by its worker: not running there" in await bench.messages(task_id)


async def test_a_stray_that_was_cancelled_is_cancelled_not_released(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    events: list[Any] = []
    async with make_bench({"x": sleeping(1)}).running() as bench, trio.open_nursery() as nursery:
        await nursery.start(bench.coordinator.listen_events, events.extend)
        task_id = await bench.submit("x", hint=False)
        await bench.store.claim(bench.worker.lease, [task_id])
        await bench.cancel(task_id)
        task = await bench.until(task_id, within=10)
        assert (task.status, task.releases) == (Status.CANCELLED, 0)
        assert [(event.task_id, event.status) for event in events] == [(task_id, Status.CANCELLED)]
        nursery.cancel_scope.cancel()


async def test_a_row_claimed_just_now_is_no_stray(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(1)}).running() as bench:
        task_id = await bench.submit("x", hint=False)
        await bench.store.claim(bench.worker.lease, [task_id])
        await bench.worker.reconcile(older_than=2.5)
        assert (await bench.get(task_id)).status is Status.PROCESSING


async def test_the_result_of_a_run_that_was_given_away_is_refused(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def first_is_slow(ctx: Context, task: Task) -> int:
        await trio.sleep(30 if ctx.attempt == 1 else 60)
        return ctx.attempt

    async with make_bench({"x": first_is_slow}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.worker.lease = await bench.store.register("w1", 10, ["x"])  # the lease was lost, here is another
        task = await bench.until(task_id)
        assert (task.status, task.attempt, task.recoveries, task.result_json) == (Status.SUCCESS, 2, 1, "2")
        assert await bench.metric("atm_stale_results_total") == 1
        assert bench.worker.runs == {}
        await bench.log(task_id)


async def test_a_worker_without_a_lease_claims_nothing_until_it_has_one(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    diary = Diary()
    async with make_bench({"x": diary}).running() as bench:
        await trio.sleep(bench.parts.heartbeat_interval + 0.1)  # between two beats
        lease = await bench.store.register("w1", 10, ["x"])  # another start of this worker: the old lease is over
        task_id = await bench.submit("x")
        await trio.sleep(1)
        assert diary.started == []
        assert (await bench.get(task_id)).attempt == 0
        bench.worker.lease = lease
        assert (await bench.until(task_id, within=3)).status is Status.SUCCESS


# what executors say while they run


async def test_progress_and_log_reach_the_task(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def talk(ctx: Context, task: Task) -> None:
        await ctx.progress(0.4, "nearly half")
        await ctx.log("a word")
        await trio.sleep(10)
        await ctx.progress(0.9)
        await ctx.progress(1.0, "all")

    async with make_bench({"x": talk}).running() as bench:
        task_id = await bench.submit("x")
        await trio.sleep(5)
        assert (await bench.get(task_id)).progress_json == '{"fraction":0.4,"message":"nearly half"}'
        task = await bench.until(task_id)
        assert task.progress_json == '{"fraction":1.0,"message":"all"}'
        said = [row for row in await bench.log(task_id) if row.log_type is LogType.INFO]
        assert [row.message for row in said] == ["40%: nearly half", "a word"]
        assert {(row.worker_id, row.attempt) for row in said} == {("w1", 1)}


async def test_progress_while_the_store_is_away_does_not_harm_the_run(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def talk(ctx: Context, task: Task) -> str:
        for step in range(10):
            await ctx.progress(step / 10)
            await trio.sleep(1)
        return "done"

    async with make_bench({"x": talk}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.store.away = {"note"}
        task = await bench.until(task_id)
        assert (task.status, task.attempt) == (Status.SUCCESS, 1)
        assert task.progress_json == '{"fraction":0.9,"message":null}'


async def test_a_log_message_waits_for_the_store(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def talk(ctx: Context, task: Task) -> None:
        await trio.sleep(1)
        await ctx.log("a word")

    async with make_bench({"x": talk}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        bench.store.away = {"note"}
        await trio.sleep(10)
        bench.store.away.clear()
        task = await bench.until(task_id)
        assert (task.status, task.attempt) == (Status.SUCCESS, 1)
        assert "a word" in await bench.messages(task_id)


# what it tells of itself


async def test_metrics_tell_how_attempts_ended(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(2), "bad": failing}, capacity=1).running() as bench:
        await trio.sleep(1)  # the queues are rebuilt: nothing is queued twice from now on
        first = await bench.submit("x")
        second = await bench.submit("bad", max_retry=0)
        await bench.until(first, Status.PROCESSING)
        assert await bench.metric("worker_load", worker_id="w1") == 1
        assert await bench.metric("queue_length", queue="normal") == 1
        await bench.until(second)
        assert await bench.metric("worker_load", worker_id="w1") == 0
        count = "task_duration_seconds_count"
        assert await bench.metric(count, task_type="x", status="success") == 1
        assert await bench.metric(count, task_type="bad", status="failed") == 1
        seconds = await bench.metric("task_duration_seconds", task_type="x", status="success", quantile="0.5")
        assert seconds == pytest.approx(2)
        assert await bench.metric("atm_task_wait_seconds_count") == 2
        assert await bench.metric("atm_task_wait_seconds_sum") == pytest.approx(2, abs=0.1)


async def test_released_attempts_are_not_measured_as_if_they_had_ended(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async with make_bench({"x": sleeping(1000)}, grace=1.0).running() as bench:
        await bench.until(await bench.submit("x"), Status.PROCESSING)
    assert await bench.metric("task_duration_seconds_count", task_type="x", status="pending") is None


async def test_an_idle_worker_says_so_at_once(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async with make_bench({"x": sleeping(5)}).running() as bench:
        await bench.worker.idle()
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        assert [run.task.task_id for run in bench.worker.unended()] == [task_id]
        await bench.worker.idle()
        await bench.worker.all_recorded()
        assert bench.worker.unended() == []
        assert (await bench.get(task_id)).status is Status.SUCCESS
        assert trio.current_time() == pytest.approx(5, abs=0.1)
