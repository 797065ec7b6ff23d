"""What user code raises and returns, however odd, fails its attempt alone: through the whole runtime."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.nursery.left_open import MOST_KEPT
from atm.nursery.run import MAX_DETAILS, MAX_NAME, MAX_RESULT, MAX_WIDTH
from atm.task import LogType, Status, Task
from nursery.bench import AttemptKit, Bench, MakeBench, sleeping

ENDS = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("base")]


async def error_of(bench: Bench, task_id: str) -> dict[str, Any]:
    task = await bench.until(task_id)
    assert task.status is Status.FAILED, task
    error: dict[str, Any] = json.loads(task.error_json or "")
    return error


async def raised(error: BaseException, ctx: Context, task: Task) -> None:
    raise error


async def in_a_child(error: BaseException, ctx: Context, task: Task) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raised, error, ctx, task)
        await trio.sleep_forever()


async def in_a_group(error: BaseException, ctx: Context, task: Task) -> None:
    raise BaseExceptionGroup("several", [ValueError("one"), BaseExceptionGroup("inner", [error])])


async def in_the_cleanup(error: BaseException, ctx: Context, task: Task) -> None:
    try:
        raise ValueError("first")
    finally:
        await trio.lowlevel.checkpoint()
        raise error


@pytest.mark.parametrize("way", [raised, in_a_child, in_a_group, in_the_cleanup])
async def test_no_exception_of_user_code_ends_the_worker(
    make_bench: MakeBench, autojump_clock: MockClock, way: Callable[..., Awaitable[None]]
) -> None:
    async def body(ctx: Context, task: Task) -> None:
        await way(ENDS[task.payload["which"]], ctx, task)

    async with make_bench({"x": body, "y": sleeping(5)}).running() as bench:
        beside = await bench.submit("y")
        for which, error in enumerate(ENDS):
            task_id = await bench.submit("x", payload_json=json.dumps({"which": which}), max_retry=0)
            told = await error_of(bench, task_id)
            assert told["type"] == (type(error).__name__ if way is not in_a_group else "ValueError")
            (row,) = [row for row in await bench.log(task_id) if row.log_type is LogType.ERROR]
            assert type(error).__name__ in row.message
        assert (await bench.until(beside)).status is Status.SUCCESS


class Mean:
    """Raises whatever is asked of it."""

    def __str__(self) -> str:
        raise SystemExit(1)

    __repr__ = __str__


class MeanError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class MeanDict(dict[str, Any]):
    def items(self) -> Any:
        raise SystemExit(2)


def looped() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    return loop


ODD_RESULTS: dict[str, Callable[[], Any]] = {
    "object": object,
    "set": lambda: {1},
    "NaN": lambda: [math.nan],
    "cyclic": looped,
    "key that is no text": lambda: {(1, 2): 3},
    "lone surrogate": lambda: {"a": "\ud800"},
    "too large": lambda: "x" * MAX_RESULT,
    "mean": Mean,
    "mean dict": lambda: MeanDict(a=1),
}


async def test_no_result_ends_the_worker(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def body(ctx: Context, task: Task) -> Any:
        await trio.lowlevel.checkpoint()
        return ODD_RESULTS[task.payload["kind"]]()

    async with make_bench({"x": body}).running() as bench:
        for kind in ODD_RESULTS:
            task_id = await bench.submit("x", payload_json=json.dumps({"kind": kind}), max_retry=0)
            told = await error_of(bench, task_id)
            assert told["type"] == ("SystemExit" if kind == "mean dict" else "InvalidResult"), kind


async def test_an_error_that_is_mean_when_it_is_told_fails_the_attempt_alone(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    odd_name = type("Long" * 1000, (Exception,), {})

    async def body(ctx: Context, task: Task) -> None:
        raise (odd_name("why") if task.payload["which"] else MeanError())

    async with make_bench({"x": body}).running() as bench:
        mean, odd = [
            await bench.submit("x", payload_json=json.dumps({"which": which}), max_retry=0) for which in (0, 1)
        ]
        assert (await error_of(bench, mean))["message"] == "(MeanError without a readable message)"
        told = await error_of(bench, odd)
        assert (told["type"][:8], len(told["type"])) == ("LongLong", MAX_NAME)


async def test_scopes_left_broken_fail_the_attempt(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def body(ctx: Context, task: Task) -> str:
        trio.CancelScope().__enter__()
        await trio.lowlevel.checkpoint()
        return "as if nothing were wrong"

    async with make_bench({"x": body, "y": sleeping(1)}).running() as bench:
        told = await error_of(bench, await bench.submit("x", max_retry=0))
        assert (told["type"], "corrupted" in told["message"]) == ("RuntimeError", True)
        assert (await bench.until(await bench.submit("y"))).status is Status.SUCCESS


# nurseries that are left open


async def ends_slowly(ended: list[int]) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.3)
        ended.append(1)


async def pages(ended: list[int]) -> AsyncGenerator[int]:
    """Holds a nursery, with a task that takes its time to end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends_slowly, ended)
        while True:
            await trio.lowlevel.checkpoint()
            yield 1


async def leaves_the_loop(ended: list[int]) -> None:
    async for _ in pages(ended):
        break


async def leaves_it_and_goes_on(ended: list[int]) -> None:
    await leaves_the_loop(ended)
    for _ in range(10):
        await trio.sleep(0.1)


async def leaves_it_in_a_child(ended: list[int]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leaves_it_and_goes_on, ended)


async def leaves_it_in_a_nursery(ended: list[int]) -> None:
    async with trio.open_nursery():
        await leaves_the_loop(ended)


async def fails_in_the_loop(ended: list[int]) -> None:
    async for _ in pages(ended):
        raise ValueError("in the loop")


async def enters_without_leaving(ended: list[int]) -> None:
    outer = await trio.open_nursery().__aenter__()
    inner = await trio.open_nursery().__aenter__()
    outer.start_soon(ends_slowly, ended)
    inner.start_soon(trio.sleep_forever)
    await trio.lowlevel.checkpoint()


LEAVING = {
    leaves_the_loop: "NurseryLeftOpen",
    leaves_it_and_goes_on: "NurseryLeftOpen",
    leaves_it_in_a_child: "RuntimeError",
    leaves_it_in_a_nursery: "AssertionError",
    fails_in_the_loop: "ValueError",
    enters_without_leaving: "NurseryLeftOpen",
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("way", LEAVING)
async def test_a_nursery_left_open_fails_the_attempt_alone(
    make_bench: MakeBench, autojump_clock: MockClock, way: Callable[[list[int]], Awaitable[None]]
) -> None:
    ended: list[int] = []

    async def body(ctx: Context, task: Task) -> None:
        await way(ended)

    async with make_bench({"x": body, "y": sleeping(5)}).running() as bench:
        beside = await bench.submit("y")
        told = await error_of(bench, await bench.submit("x", max_retry=0))
        assert told["type"] == LEAVING[way], told
        assert ended == [1], "what it has started has ended first"
        assert (await bench.until(beside)).status is Status.SUCCESS


async def test_a_run_that_is_cancelled_in_such_a_loop_is_cancelled(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    ended: list[int] = []

    async def body(ctx: Context, task: Task) -> None:
        async for _ in pages(ended):
            await trio.sleep_forever()

    async with make_bench({"x": body, "y": sleeping(1)}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await bench.cancel(task_id)
        assert (await bench.until(task_id)).status is Status.CANCELLED
        assert ended == [1]
        assert (await bench.until(await bench.submit("y"))).status is Status.SUCCESS


async def test_a_generator_that_holds_nothing_is_closed_with_the_run(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    closed: list[int] = []

    async def plain() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            await trio.sleep(1)
            closed.append(1)

    async def body(ctx: Context, task: Task) -> None:
        async with trio.open_nursery():
            async for _ in plain():
                break

    async with make_bench({"x": body}).running() as bench:
        assert (await bench.until(await bench.submit("x"))).status is Status.SUCCESS
        assert closed == [1]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_of_many_generators_the_oldest_do_not_wait_for_the_end_of_the_run(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    closed: list[int] = []

    async def plain(number: int) -> AsyncGenerator[int]:
        try:
            yield number
        finally:
            closed.append(number)

    async def body(ctx: Context, task: Task) -> list[int]:
        async with trio.open_nursery():
            for number in range(MOST_KEPT + 5):
                async for _ in plain(number):
                    break
            await trio.sleep(1)
            return sorted(closed)

    async with make_bench({"x": body}).running() as bench:
        task = await bench.until(await bench.submit("x"))
        assert json.loads(task.result_json or "") == [0, 1, 2, 3, 4]
        assert sorted(closed) == list(range(MOST_KEPT + 5))


# groups


async def test_a_group_is_told_as_a_tree(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def body(ctx: Context, task: Task) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raised, ExceptionGroup("two", [ValueError("a"), OSError("b")]), ctx, task)
            nursery.start_soon(trio.sleep_forever)

    async with make_bench({"x": body}).running() as bench:
        task_id = await bench.submit("x", max_retry=0)
        assert await error_of(bench, task_id) == {
            "type": "ValueError",
            "message": "a",
            "retryable": True,
            "group": {
                "type": "ExceptionGroup",
                "message": "Exceptions from Trio nursery",
                "exceptions": [
                    {
                        "type": "ExceptionGroup",
                        "message": "two",
                        "exceptions": [
                            {"type": "ValueError", "message": "a"},
                            {"type": "OSError", "message": "b"},
                        ],
                    }
                ],
            },
        }
        (row,) = [row for row in await bench.log(task_id) if row.log_type is LogType.ERROR]
        for branch in ("+-+-", "| ExceptionGroup: two", "ValueError: a", "OSError: b"):
            assert branch in row.message


async def test_a_wide_group_is_told_in_part(attempts: AttemptKit) -> None:
    group = ExceptionGroup("many", [ValueError(f"number {index}") for index in range(50_000)])

    async def body(ctx: Context, task: Task) -> None:
        raise group

    outcome = await attempts.outcome(body)
    tree = json.loads(outcome.error_json or "")["group"]
    assert (len(tree["exceptions"]), tree["more"]) == (MAX_WIDTH, 50_000 - MAX_WIDTH)
    assert "number 14" in (outcome.details or "")
    assert f"and {50_000 - MAX_WIDTH} more" in (outcome.details or "")


async def test_a_deep_group_fails_the_attempt_alone(attempts: AttemptKit) -> None:
    deep: Exception = ValueError("at the bottom")
    for _ in range(20_000):
        deep = ExceptionGroup("and deeper", [deep])

    async def body(ctx: Context, task: Task) -> None:
        raise deep

    outcome = await attempts.outcome(body)
    assert json.loads(outcome.error_json or "")["message"] == "at the bottom"
    assert len(outcome.details or "") <= MAX_DETAILS


async def test_a_deep_group_at_the_shutdown_releases_the_attempt(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def body(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            deep: BaseException = cancelled
            for _ in range(20_000):
                deep = BaseExceptionGroup("and deeper", [deep])
            raise deep from None

    run = attempts.run(body)
    async with trio.open_nursery() as runs:
        runs.start_soon(attempts.end_of, run)
        await trio.sleep(1)
        runs.cancel_scope.cancel(reason="shutdown")
    assert run.outcome.status is Status.PENDING


# receipts


async def test_a_timeouts_row_tells_when_the_executor_ended(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def body(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(0.25)

    async with make_bench({"x": body}).running() as bench:
        task_id = await bench.submit("x", timeout=2.0, max_retry=0)
        assert (await bench.until(task_id)).status is Status.TIMEOUT
        assert (await bench.messages(task_id))[-1] == (
            "Timeout: no end within its timeout of 2 s; the executor ended 250 ms after its deadline"
        )


async def test_a_success_after_the_deadline_says_how_late_it_was(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def body(ctx: Context, task: Task) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return "done"

    async with make_bench({"x": body}).running() as bench:
        task_id = await bench.submit("x", timeout=2.0)
        assert (await bench.until(task_id)).status is Status.SUCCESS
        message = (await bench.messages(task_id))[-1]
        assert message == "Task succeeded; the executor ended 3.0 s after its deadline"


async def test_a_cancel_that_came_late_says_so(make_bench: MakeBench, autojump_clock: MockClock) -> None:
    async def body(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(0.5)

    async with make_bench({"x": body}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await bench.cancel(task_id, message=False)
        asked_at = trio.current_time()
        await bench.until(task_id)
        way = trio.current_time() - asked_at - 0.5
        message = (await bench.messages(task_id))[-1]
        assert message.startswith("Task cancelled (asked → node ")
        assert message.endswith("→ executor ended 500 ms)")
        told = float(message.removeprefix("Task cancelled (asked → node ").split()[0])
        assert told == pytest.approx(way, abs=0.3)


async def test_a_cancel_that_the_executor_did_not_heed_says_how_long_it_took(
    make_bench: MakeBench, autojump_clock: MockClock
) -> None:
    async def body(ctx: Context, task: Task) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
        return "done"

    async with make_bench({"x": body}).running() as bench:
        task_id = await bench.submit("x")
        await bench.until(task_id, Status.PROCESSING)
        await bench.cancel(task_id)
        await bench.until(task_id)
        message = (await bench.messages(task_id))[-1]
        assert message.startswith("Cancelled; Task succeeded (asked → node 0 ms → executor ended 3.0 s")
        assert await bench.metric("task_duration_seconds_count", task_type="x", status="cancelled") == 1


async def test_a_receipt_tells_what_was_reaped(attempts: AttemptKit) -> None:
    run = attempts.run(sleeping(0))
    run.context = SimpleNamespace(reaped={"children": 1, "threads": 2, "processes": 0})  # type: ignore[assignment]
    run.cancelled_at, run.ended_at = trio.current_time(), trio.current_time()
    receipt = run.receipt()
    assert receipt is not None
    assert receipt.reaped == "; reaped 1 child, 2 threads"


async def test_a_cancel_of_the_executors_own_is_not_a_users(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def body(ctx: Context, task: Task) -> None:
        with trio.CancelScope(shield=True) as own:
            own.cancel()
            try:
                await trio.sleep(1)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(10)
                raise ValueError("its own")

    outcome = await attempts.outcome(body, timeout=3)
    assert outcome.status is Status.FAILED
    assert json.loads(outcome.error_json or "")["type"] == "ValueError"
