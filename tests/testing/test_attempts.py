"""``run_executor``: what a test of an executor is told is what a node would have recorded."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, ClassVar

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.errors import ConfigError, NonRetryable, RetryLater
from atm.executor import Executor, TaskResult
from atm.registry import executes
from atm.task import LogType, RetryStrategy, Status, Task, TaskType, legal_path
from atm.testing import Ended, run_executor


@executes("nap", "siesta")
async def nap(ctx: Context, task: Task) -> dict[str, Any]:
    await trio.sleep(task.payload["seconds"])
    return {"slept": task.payload["seconds"], "type": task.task_type, "attempt": ctx.attempt}


@executes("tidy")
async def tidy(ctx: Context, task: Task) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with ctx.cleanup():
            await trio.sleep(task.payload["seconds"])
            await ctx.log("tidied")


@executes("fail")
async def fail(ctx: Context, task: Task) -> None:
    await trio.lowlevel.checkpoint()
    raise {"later": RetryLater("busy", after=30), "never": NonRetryable("wrong")}.get(
        task.payload["how"], OSError("no")
    )


def steps(ended: Ended) -> list[tuple[str | None, str | None]]:
    return [(row.from_status, row.to_status) for row in ended.logs if row.log_type is not LogType.INFO]


def messages(ended: Ended) -> list[str]:
    return [row.message for row in ended.logs if row.log_type is LogType.INFO]


async def test_three_lines_are_enough(autojump_clock: MockClock) -> None:
    ended = await run_executor(nap, {"seconds": 200})
    assert ended.status == "SUCCESS"
    assert ended.result == {"slept": 200, "type": "nap", "attempt": 1}
    assert (ended.task_status, ended.error, ended.retry_in) == ("SUCCESS", None, None)
    assert ended.seconds == 200
    assert steps(ended) == [("PENDING", "PROCESSING"), ("PROCESSING", "SUCCESS")]
    assert ended.logs[-1].created_ms - ended.logs[0].created_ms == 200_000


async def test_the_type_and_the_number_of_the_attempt_can_be_chosen(autojump_clock: MockClock) -> None:
    ended = await run_executor(nap, {"seconds": 0}, task_type="siesta", attempt=4)
    assert ended.result == {"slept": 0, "type": "siesta", "attempt": 4}


async def test_a_timeout_comes_when_it_is_due_and_is_retried(autojump_clock: MockClock) -> None:
    settings = TaskType(task_type="nap", default_timeout=60, retry_strategy=RetryStrategy.FIXED, retry_delay=10)
    ended = await run_executor(nap, {"seconds": 3600}, settings=settings)
    assert (ended.status, ended.task_status, ended.seconds) == ("TIMEOUT", "PENDING", 60)
    assert ended.retry_in is not None
    assert 10 <= ended.retry_in <= 11
    assert ended.error is not None
    assert ended.error["type"] == "Timeout"
    assert legal_path([(None, "PENDING"), *steps(ended)]) == "PENDING"
    assert (await run_executor(nap, {"seconds": 3600}, timeout=7)).seconds == 7


@pytest.mark.parametrize(("how", "waits"), [("later", 30), ("never", None), ("so", 1)])
async def test_a_failure_is_retried_as_its_error_says(how: str, waits: float | None) -> None:
    ended = await run_executor(fail, {"how": how})
    assert ended.status == "FAILED"
    assert ended.task_status == ("FAILED" if waits is None else "PENDING")
    assert ended.details is not None
    assert ended.error is not None
    assert ended.error["retryable"] == (waits is not None)
    if waits is None:
        assert ended.retry_in is None
    else:
        assert ended.retry_in is not None
        assert waits <= ended.retry_in <= 1.1 * waits


async def test_the_last_attempt_is_not_retried() -> None:
    assert (await run_executor(fail, {"how": "so"}, attempt=4)).task_status == "FAILED"
    assert (await run_executor(fail, {"how": "so"}, attempt=4, max_retry=4)).task_status == "PENDING"


async def test_a_cancelled_run_has_tidied_up_before_it_is_cancelled(autojump_clock: MockClock) -> None:
    ended = await run_executor(tidy, {"seconds": 3}, cancel_after=100)
    assert (ended.status, ended.task_status, ended.seconds) == ("CANCELLED", "CANCELLED", 103)
    assert messages(ended) == ["Cancellation requested", "tidied"]


async def test_a_cleanup_ends_with_its_budget(autojump_clock: MockClock) -> None:
    ended = await run_executor(tidy, {"seconds": 3}, cancel_after=100, cleanup_budget=2)
    assert (ended.status, ended.seconds) == ("CANCELLED", 102)
    assert messages(ended) == ["Cancellation requested"]


async def test_a_cancel_can_come_before_the_beginning(autojump_clock: MockClock) -> None:
    ended = await run_executor(nap, {"seconds": 10}, cancel_after=0)
    assert (ended.status, ended.seconds) == ("CANCELLED", 0)


async def test_a_run_that_ends_before_its_cancel_is_not_cancelled(autojump_clock: MockClock) -> None:
    ended = await run_executor(nap, {"seconds": 10}, cancel_after=11)
    assert (ended.status, messages(ended)) == ("SUCCESS", [])


async def test_what_swallows_its_cancel_is_cancelled_all_the_same(autojump_clock: MockClock) -> None:
    @executes("deaf")
    async def deaf(ctx: Context, task: Task) -> str:
        with trio.CancelScope() as scope:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                scope.cancel()
        return "nothing happened"

    ended = await run_executor(deaf, cancel_after=1)
    assert (ended.status, ended.result) == ("CANCELLED", None)
    assert ended.message.startswith("Cancelled; Task succeeded")


async def test_a_shutdown_gives_the_task_back(autojump_clock: MockClock) -> None:
    ended = await run_executor(tidy, {"seconds": 1}, shutdown_after=10)
    assert (ended.status, ended.task_status, ended.retry_in) == (Status.PENDING, Status.PENDING, None)
    assert (ended.seconds, messages(ended)) == (11, ["tidied"])


async def test_progress_is_written_as_a_node_writes_it(autojump_clock: MockClock) -> None:
    @executes("count")
    async def count(ctx: Context, task: Task) -> None:
        await ctx.progress(0.1, "first")
        await ctx.progress(0.2, "too soon")
        await trio.sleep(1)
        await ctx.progress(0.5)
        await ctx.progress(1, "last")

    ended = await run_executor(count)
    assert [row["message"] for row in ended.progress] == ["first", None, "last"]


class Door(Executor):
    supported_task_types = ("knock",)
    told: ClassVar[list[str]]

    async def __aenter__(self) -> Door:
        self.told.append("opened")
        return self

    async def __aexit__(self, *error: object) -> None:
        self.told.append("closed")

    async def execute(self, ctx: Context, task: Task) -> TaskResult:
        await trio.lowlevel.checkpoint()
        self.told.append("run")
        return TaskResult(success=False, error="nobody at home")


async def test_a_class_is_opened_and_closed() -> None:
    Door.told = []
    ended = await run_executor(Door())
    assert ended.message == "TaskFailed: nobody at home"
    assert Door.told == ["opened", "run", "closed"]


async def test_a_class_that_is_open_stays_so() -> None:
    Door.told = []
    async with Door() as door:
        await run_executor(door, opened=True)
        await run_executor(door, opened=True)
    assert Door.told == ["opened", "run", "run", "closed"]


async def test_what_is_no_executor_is_named() -> None:
    async def plain(ctx: Context, task: Task) -> None:
        await trio.lowlevel.checkpoint()

    with pytest.raises(ConfigError, match=r"plain .*neither an Executor nor marked"):
        await run_executor(plain)


@executes("sum")
async def add_up(ctx: Context, task: Task) -> dict[str, Any]:
    children = [await ctx.spawn("nap", {"seconds": each}) for each in task.payload["naps"]]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(children[0].wait)
        results = [await child.result() for child in children]
    return {"slept": sum(result["slept"] for result in results)}


async def test_children_are_carried_out_by_the_executor_that_is_given(autojump_clock: MockClock) -> None:
    ended = await run_executor(add_up, {"naps": [10, 20]}, children={"nap": nap})
    assert (ended.status, ended.result, ended.seconds) == ("SUCCESS", {"slept": 30}, 30)
    assert ended.spawned == [("nap", {"seconds": 10}), ("nap", {"seconds": 20})]


async def test_children_are_cancelled_with_their_parent(autojump_clock: MockClock) -> None:
    ended = await run_executor(add_up, {"naps": [10, 20]}, children={"nap": nap}, cancel_after=15)
    assert (ended.status, ended.seconds) == ("CANCELLED", 15)


async def test_children_can_be_given_by_their_result() -> None:
    ended = await run_executor(add_up, {"naps": [1, 2]}, children={"nap": {"slept": 5}})
    assert ended.result == {"slept": 10}


async def test_children_can_be_made_to_fail() -> None:
    ended = await run_executor(add_up, {"naps": [1]}, children={"nap": NonRetryable("no bed")})
    assert ended.status == "FAILED"
    assert "no bed" in ended.message


async def test_children_that_nobody_expects_are_named() -> None:
    ended = await run_executor(add_up, {"naps": [1]})
    assert (ended.status, "no children of type 'nap'" in ended.message) == ("FAILED", True)


async def pages() -> AsyncGenerator[int]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        yield 1


async def test_a_nursery_left_open_is_told_as_on_a_node(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    @executes("leaves_it")
    async def leaves_it(ctx: Context, task: Task) -> None:
        async for _ in pages():
            break
        await trio.sleep(1)

    ended = await run_executor(leaves_it)
    assert (ended.status, (ended.error or {})["type"]) == ("FAILED", "NurseryLeftOpen")
    assert caplog.records == [], "it has been closed where it was opened"
