"""One attempt: every way in which it can end, and what comes of it (docs/protocol.md, "Causes of an end")."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.errors import NonRetryable, RetryLater
from atm.executor import TaskResult
from atm.nursery.run import MAX_DETAILS, MAX_ERROR, MAX_RESULT, Run, attempt
from atm.store import Outcome
from atm.task import RetryStrategy, Status, Task, TaskType
from nursery.bench import AttemptKit, Body

FIXED = TaskType(task_type="x", retry_strategy=RetryStrategy.FIXED, retry_delay=10)


def returning(value: Any) -> Body:
    async def body(ctx: Context, task: Task) -> Any:
        await trio.lowlevel.checkpoint()
        return value

    return body


def raising(error: BaseException) -> Body:
    async def body(ctx: Context, task: Task) -> Any:
        await trio.lowlevel.checkpoint()
        raise error

    return body


async def forever(ctx: Context, task: Task) -> None:
    await trio.sleep_forever()


async def forever_then_fail_in_a_nursery(ctx: Context, task: Task) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        try:
            await trio.sleep_forever()
        finally:
            raise ConnectionResetError("cleanup went wrong")


async def forever_then_fail(ctx: Context, task: Task) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ConnectionResetError("cleanup went wrong")


async def forever_in_depth(ctx: Context, task: Task) -> None:
    async with trio.open_nursery() as outer:
        outer.start_soon(trio.sleep_forever)
        with trio.move_on_after(1000):
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep_forever)
                inner.start_soon(trio.sleep_forever)
                with trio.CancelScope():
                    await trio.sleep_forever()


def error_of(outcome: Outcome) -> dict[str, Any]:
    assert outcome.error_json is not None
    error: dict[str, Any] = json.loads(outcome.error_json)
    return error


def assert_text(text: str | None) -> None:
    """Whatever a store may be given: encodable, without NUL."""
    assert text is not None
    assert "\x00" not in text
    text.encode()


# success


@pytest.mark.parametrize(
    ("value", "result_json"),
    [
        (None, "null"),
        ({"message_id": "abc123"}, '{"message_id":"abc123"}'),
        ([1, 2.5, True, None, "ü\x00"], '[1,2.5,true,null,"ü\\u0000"]'),
        ("", '""'),
        (0, "0"),
        (False, "false"),
        ((1, 2), "[1,2]"),
        (TaskResult(success=True), "null"),
        (TaskResult(success=True, data={"a": []}), '{"a":[]}'),
    ],
)
async def test_what_an_executor_returns_is_the_result(attempts: AttemptKit, value: Any, result_json: str) -> None:
    outcome = await attempts.outcome(returning(value))
    assert (outcome.status, outcome.result_json, outcome.error_json) == (Status.SUCCESS, result_json, None)
    assert (outcome.retry_in, outcome.details) == (None, None)


async def test_the_outcome_names_task_and_attempt(attempts: AttemptKit) -> None:
    run = attempts.run(returning(None), retry_count=4)
    outcome = await attempts.end_of(run)
    assert (outcome.task_id, outcome.attempt) == (run.task.task_id, 5)


async def test_a_run_knows_how_long_its_executor_ran(attempts: AttemptKit, autojump_clock: MockClock) -> None:
    async def work(ctx: Context, task: Task) -> None:
        await trio.sleep(7)
        assert run.seconds == 7

    run = attempts.run(work)
    await attempts.end_of(run)
    await trio.sleep(100)
    assert run.seconds == 7


# results that cannot be kept


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        b"bytes",
        math.nan,
        {"deep": [math.inf]},
        "\ud800",
        {"\udfff": 1},
        {(1, 2): 3},
        TaskResult(success=True, data=object()),
    ],
    ids=["object", "set", "bytes", "nan", "infinity", "half a pair", "half a pair as key", "pair as key", "data"],
)
async def test_a_result_that_is_not_json_fails_for_good(attempts: AttemptKit, value: Any) -> None:
    outcome = await attempts.outcome(returning(value))
    assert outcome.status is Status.FAILED
    assert outcome.retry_in is None
    error = error_of(outcome)
    assert (error["type"], error["retryable"]) == ("InvalidResult", False)
    assert "not JSON" in error["message"]
    assert_text(outcome.message)


async def test_a_result_nested_without_end_fails_for_good(attempts: AttemptKit) -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    loop: dict[str, Any] = {}
    loop["self"] = loop
    for endless in (value, loop):
        outcome = await attempts.outcome(returning(endless))
        assert outcome.status is Status.FAILED
        assert error_of(outcome)["type"] == "InvalidResult"


@pytest.mark.parametrize("letter", ["x", "ü", "字"])
async def test_a_result_is_measured_in_bytes(attempts: AttemptKit, letter: str) -> None:
    fits = "x" * (MAX_RESULT - 2 - len(letter.encode())) + letter
    assert (await attempts.outcome(returning(fits))).status is Status.SUCCESS
    outcome = await attempts.outcome(returning("x" + fits))
    assert outcome.status is Status.FAILED
    assert outcome.retry_in is None
    assert f"too large: {MAX_RESULT + 1} bytes" in error_of(outcome)["message"]


async def test_a_result_whose_encoding_raises_fails_the_attempt_alone(attempts: AttemptKit) -> None:
    class Odd(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("no items today")

    outcome = await attempts.outcome(returning(Odd(a=1)))
    assert outcome.status is Status.FAILED
    assert "no items today" in error_of(outcome)["message"]


# failure


async def test_an_exception_fails_the_attempt_and_is_told(attempts: AttemptKit) -> None:
    outcome = await attempts.outcome(raising(ValueError("no such address")), settings=FIXED)
    assert outcome.status is Status.FAILED
    assert error_of(outcome) == {"type": "ValueError", "message": "no such address", "retryable": True}
    assert outcome.message == "ValueError: no such address"
    assert outcome.details is not None
    assert "Traceback" in outcome.details
    assert outcome.details.rstrip().endswith("ValueError: no such address")
    assert outcome.retry_in is not None
    assert 10 <= outcome.retry_in <= 11


async def test_an_exception_without_words_is_told_by_its_name(attempts: AttemptKit) -> None:
    outcome = await attempts.outcome(raising(KeyError()))
    assert error_of(outcome)["message"] == "KeyError"
    assert outcome.message == "KeyError"


async def test_a_result_without_success_fails_the_attempt(attempts: AttemptKit) -> None:
    outcome = await attempts.outcome(returning(TaskResult(success=False, error="mailbox is full")))
    assert outcome.status is Status.FAILED
    assert error_of(outcome) == {"type": "TaskFailed", "message": "mailbox is full", "retryable": True}
    assert outcome.retry_in is not None
    silent = await attempts.outcome(returning(TaskResult(success=False)))
    assert error_of(silent)["message"] == "the executor reported a failure"


@pytest.mark.parametrize("error", [ValueError("an exception"), 404, {"code": 7}, b"\xff"])
async def test_an_error_that_is_no_text_is_told_as_one(attempts: AttemptKit, error: Any) -> None:
    outcome = await attempts.outcome(returning(TaskResult(success=False, error=error)))
    assert outcome.status is Status.FAILED
    assert error_of(outcome)["message"] == str(error)


async def test_non_retryable_fails_at_once(attempts: AttemptKit) -> None:
    outcome = await attempts.outcome(raising(NonRetryable("no such user")), max_retry=100)
    assert outcome.status is Status.FAILED
    assert outcome.retry_in is None
    assert error_of(outcome) == {"type": "NonRetryable", "message": "no such user", "retryable": False}


async def test_a_subclass_of_non_retryable_fails_at_once_under_its_own_name(attempts: AttemptKit) -> None:
    class NoSuchUser(NonRetryable):
        pass

    outcome = await attempts.outcome(raising(NoSuchUser("bob")))
    assert outcome.retry_in is None
    assert error_of(outcome)["type"] == "NoSuchUser"


async def test_non_retryable_inside_a_group_fails_at_once(attempts: AttemptKit) -> None:
    inner = ExceptionGroup("inner", [OSError("reset"), NonRetryable("no such user")])
    outcome = await attempts.outcome(raising(ExceptionGroup("outer", [ValueError("first"), inner])))
    assert outcome.status is Status.FAILED
    assert outcome.retry_in is None
    assert error_of(outcome)["message"] == "no such user"


@pytest.mark.parametrize("wrap", [lambda error: error, lambda error: ExceptionGroup("", [OSError(), error])])
async def test_a_retry_comes_not_before_the_executor_wants_it(attempts: AttemptKit, wrap: Any) -> None:
    outcome = await attempts.outcome(raising(wrap(RetryLater("busy", after=60))))
    assert outcome.status is Status.FAILED
    assert 60.0 <= (outcome.retry_in or 0) <= 66.0


async def test_to_ask_for_a_delay_gives_no_retry_more(attempts: AttemptKit) -> None:
    outcome = await attempts.outcome(raising(RetryLater("busy", after=60)), max_retry=0)
    assert outcome.retry_in is None
    assert error_of(outcome) == {"type": "RetryLater", "message": "busy", "retryable": True}


@pytest.mark.parametrize("after", [-1.0, float("nan")])
def test_a_delay_that_is_none_is_refused(after: float) -> None:
    with pytest.raises(ValueError, match="0 or more seconds"):
        RetryLater("busy", after=after)


async def test_a_group_is_told_with_all_its_leaves(attempts: AttemptKit) -> None:
    async def fail_at_the_end(error: Exception) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise error

    async def two_fail(ctx: Context, task: Task) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_at_the_end, ValueError("left"))
            nursery.start_soon(fail_at_the_end, OSError("right"))
            nursery.cancel_scope.cancel()

    outcome = await attempts.outcome(two_fail)
    assert outcome.status is Status.FAILED
    assert error_of(outcome)["type"] in ("ValueError", "OSError")
    assert outcome.details is not None
    assert "ValueError: left" in outcome.details
    assert "OSError: right" in outcome.details


async def test_no_retry_is_asked_for_when_the_budget_is_spent(attempts: AttemptKit) -> None:
    last = await attempts.outcome(raising(ValueError()), retry_count=3, max_retry=3)
    assert (last.status, last.retry_in) == (Status.FAILED, None)
    never = await attempts.outcome(raising(ValueError()), max_retry=0)
    assert (never.status, never.retry_in) == (Status.FAILED, None)
    one_left = await attempts.outcome(raising(ValueError()), retry_count=2, max_retry=3)
    assert one_left.retry_in is not None


@pytest.mark.parametrize(("retry_count", "at_least"), [(0, 1), (1, 2), (5, 32), (12, 300)])
async def test_retries_come_later_and_later(attempts: AttemptKit, retry_count: int, at_least: float) -> None:
    outcome = await attempts.outcome(raising(ValueError()), retry_count=retry_count, max_retry=100)
    assert outcome.retry_in is not None
    assert at_least <= outcome.retry_in <= at_least * 1.1


# errors that are hard to tell


async def test_an_error_is_made_into_text_that_a_store_takes(attempts: AttemptKit) -> None:
    outcome = await attempts.outcome(raising(ValueError("nul \x00 and half a pair \ud83d.")))
    assert_text(outcome.message)
    assert_text(outcome.details)
    assert error_of(outcome)["message"] == "nul \ufffd and half a pair ?."


async def test_a_giant_error_is_cut(attempts: AttemptKit) -> None:
    outcome = await attempts.outcome(raising(ValueError("begin " + "x" * 1_000_000 + " end")))
    message = error_of(outcome)["message"]
    assert len(message) == MAX_ERROR
    assert message.startswith("begin xxx")
    assert message.endswith("…")
    assert outcome.details is not None
    assert len(outcome.details) == MAX_DETAILS
    assert outcome.details.startswith("…")
    assert outcome.details.endswith(" end\n")


async def test_an_error_that_cannot_tell_itself_fails_the_attempt_alone(attempts: AttemptKit) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise IndexError("tuple index out of range")

    outcome = await attempts.outcome(raising(Mute()))
    assert outcome.status is Status.FAILED
    assert error_of(outcome)["type"] == "Mute"


async def test_an_error_whose_notes_cannot_be_read_fails_the_attempt_alone(attempts: AttemptKit) -> None:
    class Odd(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise RuntimeError("no notes")

    outcome = await attempts.outcome(raising(Odd("the reason")))
    assert error_of(outcome) == {"type": "Odd", "message": "the reason", "retryable": True}
    assert "the reason" in (outcome.details or "")


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("base")], ids=repr
)
async def test_user_code_cannot_end_the_worker(attempts: AttemptKit, error: BaseException) -> None:
    outcome = await attempts.outcome(raising(error))
    assert outcome.status is Status.FAILED
    assert error_of(outcome)["type"] == type(error).__name__
    assert outcome.retry_in is not None


async def test_user_code_cannot_end_the_worker_from_within_a_nursery(attempts: AttemptKit) -> None:
    async def exit_in_a_child(ctx: Context, task: Task) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raising(SystemExit(0)), ctx, task)
            await trio.sleep_forever()

    outcome = await attempts.outcome(exit_in_a_child)
    assert outcome.status is Status.FAILED
    assert error_of(outcome)["type"] == "SystemExit"


async def test_a_cancel_kept_from_a_scope_of_the_executors_own_is_a_failure(attempts: AttemptKit) -> None:
    async def raise_it_later(ctx: Context, task: Task) -> None:
        kept: BaseException | None = None
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                kept = cancelled
                raise
        assert kept is not None
        raise kept

    run = attempts.run(raise_it_later)
    async with trio.open_nursery() as runs:
        runs.start_soon(attempts.end_of, run)
    assert not runs.cancel_scope.cancel_called
    assert run.outcome.status is Status.FAILED


def _time_out(run: Run) -> None:
    run.scope.deadline = trio.current_time()
    assert run.scope.cancel_called


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (Run.cancel, Status.CANCELLED),
        (_time_out, Status.TIMEOUT),
        (lambda run: run.stop("shutdown"), Status.PENDING),
    ],
    ids=["user", "timeout", "shutdown"],
)
@pytest.mark.parametrize("own", [{}, {"deadline": 0}], ids=["cancel", "deadline"])
async def test_a_cancel_that_meets_one_of_the_executors_own_ends_the_run(
    attempts: AttemptKit, own: dict[str, float], end: Callable[[Run], None], status: Status
) -> None:
    """Trio then tells the cause of the inner one, which its scope does not hold back any more."""

    async def meet(ctx: Context, task: Task) -> None:
        with trio.CancelScope(**own) as scope:
            if not own:
                scope.cancel(reason="enough")
            try:
                await trio.lowlevel.checkpoint()
            finally:
                end(run)

    run = attempts.run(meet)
    assert (await attempts.end_of(run)).status is status


# timeout


async def test_a_run_beyond_its_timeout_is_timed_out(attempts: AttemptKit, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    outcome = await attempts.outcome(forever, timeout=12.5, settings=FIXED)
    assert trio.current_time() - began == pytest.approx(12.5)
    assert outcome.status is Status.TIMEOUT
    assert error_of(outcome) == {
        "type": "Timeout",
        "message": "no end within its timeout of 12.5 s",
        "retryable": True,
    }
    assert outcome.retry_in is not None
    assert 10 <= outcome.retry_in <= 11
    assert outcome.details is None


async def test_a_timeout_with_the_budget_spent_is_the_end(attempts: AttemptKit, autojump_clock: MockClock) -> None:
    outcome = await attempts.outcome(forever, timeout=1, retry_count=3)
    assert (outcome.status, outcome.retry_in) == (Status.TIMEOUT, None)


async def test_the_timeout_reaches_nurseries_and_scopes_in_depth(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    assert (await attempts.outcome(forever_in_depth, timeout=3)).status is Status.TIMEOUT


@pytest.mark.parametrize("body", [forever_then_fail_in_a_nursery, forever_then_fail])
async def test_a_timeout_whose_cleanup_raises_is_still_a_timeout(
    attempts: AttemptKit, autojump_clock: MockClock, body: Body
) -> None:
    outcome = await attempts.outcome(body, timeout=3)
    assert outcome.status is Status.TIMEOUT
    assert outcome.details is not None
    assert "ConnectionResetError: cleanup went wrong" in outcome.details


async def test_the_executors_own_fail_after_is_a_plain_failure(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def own_limit(ctx: Context, task: Task) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            with trio.fail_after(2):
                await trio.sleep_forever()

    outcome = await attempts.outcome(own_limit, timeout=100)
    assert outcome.status is Status.FAILED
    assert error_of(outcome)["type"] == "TooSlowError"
    assert outcome.retry_in is not None


async def test_the_executors_own_move_on_after_is_its_own_business(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def own_limit(ctx: Context, task: Task) -> str:
        with trio.move_on_after(2):
            await trio.sleep_forever()
        return "went on"

    outcome = await attempts.outcome(own_limit, timeout=100)
    assert (outcome.status, outcome.result_json) == (Status.SUCCESS, '"went on"')


async def test_an_executor_that_swallows_the_timeout_has_its_own_outcome(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def swallow(ctx: Context, task: Task) -> str:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return "just in time"

    outcome = await attempts.outcome(swallow, timeout=3)
    assert (outcome.status, outcome.result_json) == (Status.SUCCESS, '"just in time"')


async def test_a_failure_of_its_own_after_the_deadline_is_a_failure(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def shielded_work_fails(ctx: Context, task: Task) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        raise ValueError("its own")

    outcome = await attempts.outcome(shielded_work_fails, timeout=3)
    assert outcome.status is Status.FAILED
    assert error_of(outcome)["type"] == "ValueError"


# a user's cancel


@pytest.mark.parametrize("body", [forever, forever_in_depth])
async def test_a_user_cancels_a_run(attempts: AttemptKit, autojump_clock: MockClock, body: Body) -> None:
    outcome = await attempts.outcome_when_cancelled(body, after=4)
    assert trio.current_time() == pytest.approx(4)
    assert (outcome.status, outcome.retry_in, outcome.details) == (Status.CANCELLED, None, None)
    assert outcome.error_json is None


async def test_a_run_cancelled_before_its_first_step_does_not_work(attempts: AttemptKit) -> None:
    steps: list[str] = []

    async def work(ctx: Context, task: Task) -> None:
        await trio.lowlevel.checkpoint()
        steps.append("worked")

    run = attempts.run(work)
    run.cancel()
    assert (await attempts.end_of(run)).status is Status.CANCELLED
    assert steps == []


@pytest.mark.parametrize("body", [forever_then_fail_in_a_nursery, forever_then_fail])
async def test_a_cancelled_run_whose_cleanup_raises_is_still_cancelled(
    attempts: AttemptKit, autojump_clock: MockClock, body: Body
) -> None:
    outcome = await attempts.outcome_when_cancelled(body)
    assert outcome.status is Status.CANCELLED
    assert outcome.retry_in is None
    assert outcome.details is not None
    assert "ConnectionResetError: cleanup went wrong" in outcome.details


async def test_a_cancelled_run_that_takes_long_to_clean_up_is_not_timed_out(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def slow_cleanup(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(4)

    outcome = await attempts.outcome_when_cancelled(slow_cleanup, after=1, timeout=2)
    assert trio.current_time() == pytest.approx(5)
    assert outcome.status is Status.CANCELLED


async def test_a_timed_out_run_cancelled_while_it_cleans_up_is_a_timeout(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def slow_cleanup(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(4)

    outcome = await attempts.outcome_when_cancelled(slow_cleanup, after=3, timeout=2)
    assert outcome.status is Status.TIMEOUT


async def test_a_cancelled_executor_that_returns_nevertheless_has_succeeded(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def finish_first(ctx: Context, task: Task) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return "done"

    outcome = await attempts.outcome_when_cancelled(finish_first, after=1)
    assert (outcome.status, outcome.result_json) == (Status.SUCCESS, '"done"')


async def test_a_cancel_that_comes_too_late_changes_nothing(attempts: AttemptKit) -> None:
    run = attempts.run(returning(1))
    outcome = await attempts.end_of(run)
    run.cancel()
    assert outcome.status is Status.SUCCESS


# a cancel from outside: shutdown, or the lease is lost


async def _stopped_from_outside(
    attempts: AttemptKit, body: Body, after: float = 1.0, **how: Any
) -> tuple[Any, Any]:
    """The outcome of a run that is stopped from outside, and what came out of the attempt."""
    run = attempts.run(body, **how)
    came_out: list[BaseException] = []

    async def watch() -> None:
        try:
            await attempts.end_of(run)
        except BaseException as error:
            came_out.append(error)
            raise

    async with trio.open_nursery() as runs:
        runs.start_soon(watch)
        await trio.sleep(after)
        runs.cancel_scope.cancel(reason="shutdown")
    (error,) = came_out
    return run.outcome, error


@pytest.mark.parametrize("body", [forever, forever_in_depth])
async def test_a_stopped_run_is_released(attempts: AttemptKit, autojump_clock: MockClock, body: Body) -> None:
    outcome, error = await _stopped_from_outside(attempts, body)
    assert outcome.status is Status.PENDING
    assert outcome.retry_in is None
    assert outcome.message == "Released by its worker: shutdown"
    assert not _others(error)


async def test_of_a_mixed_group_only_the_cancelled_part_goes_on(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    outcome, error = await _stopped_from_outside(attempts, forever_then_fail_in_a_nursery)
    assert outcome.status is Status.PENDING
    assert not _others(error)


async def test_a_stopped_run_may_clean_up_first(attempts: AttemptKit, autojump_clock: MockClock) -> None:
    async def clean_up(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(3)

    outcome, _ = await _stopped_from_outside(attempts, clean_up, after=1)
    assert outcome.status is Status.PENDING
    assert trio.current_time() == pytest.approx(4)


async def test_a_stop_without_a_reason_says_so(attempts: AttemptKit, autojump_clock: MockClock) -> None:
    run = attempts.run(forever)
    with trio.CancelScope() as scope:
        scope.cancel()
        await attempt(run, lambda run: None)
    assert run.outcome.message == "Released by its worker: stopped"


async def test_a_run_whose_right_is_over_is_released_because_the_lease_was_lost(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    run = attempts.run(forever)
    with trio.CancelScope(deadline=trio.current_time() + 1) as right:
        await attempt(run, lambda run: None)
    assert right.cancelled_caught
    assert run.outcome.status is Status.PENDING
    assert run.outcome.message == "Released by its worker: its lease was lost"


async def test_a_stopped_executor_that_returns_nevertheless_has_succeeded(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def finish_first(ctx: Context, task: Task) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return "done"

    run = attempts.run(finish_first)
    async with trio.open_nursery() as runs:
        runs.start_soon(attempts.end_of, run)
        await trio.sleep(1)
        runs.cancel_scope.cancel(reason="shutdown")
    assert (run.outcome.status, run.outcome.result_json) == (Status.SUCCESS, '"done"')


async def test_other_runs_go_on_when_one_fails(attempts: AttemptKit, autojump_clock: MockClock) -> None:
    run = attempts.run(raising(SystemExit(1)))
    other = attempts.run(returning("fine"))
    async with trio.open_nursery() as runs:
        runs.start_soon(attempts.end_of, run)
        await trio.sleep(1)
        runs.start_soon(attempts.end_of, other)
    assert (run.outcome.status, other.outcome.status) == (Status.FAILED, Status.SUCCESS)


def _others(error: BaseException) -> BaseException | None:
    """What of the error is no Cancelled."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1]
    return None if isinstance(error, trio.Cancelled) else error


# the context: cleanup, progress, log


async def test_the_cleanup_budget_is_one_for_the_whole_run(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    steps: list[tuple[str, float]] = []

    async def clean_up_twice(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await trio.sleep(3)
                steps.append(("first", trio.current_time()))
            with ctx.cleanup():
                await trio.sleep(3)
                steps.append(("second", trio.current_time()))
            with ctx.cleanup():
                await trio.lowlevel.checkpoint()
                steps.append(("third", trio.current_time()))

    outcome = await attempts.outcome_when_cancelled(clean_up_twice, after=1)
    assert outcome.status is Status.CANCELLED
    assert steps == [("first", 4)]
    assert trio.current_time() == pytest.approx(6)


async def test_cleanup_outside_a_cancel_protects_and_is_limited_too(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def protected(ctx: Context, task: Task) -> str:
        with ctx.cleanup() as scope:
            await trio.sleep(2)
        assert not scope.cancelled_caught
        with ctx.cleanup() as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        return "done"

    outcome = await attempts.outcome_when_cancelled(protected, after=1, cleanup_budget=3)
    assert (outcome.status, outcome.result_json) == (Status.SUCCESS, '"done"')
    assert trio.current_time() == pytest.approx(5)


async def test_the_deadline_is_the_runs(attempts: AttemptKit, autojump_clock: MockClock) -> None:
    async def look(ctx: Context, task: Task) -> list[float]:
        await trio.sleep(2)
        try:
            return [ctx.deadline, ctx.time_left]
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(100)
            assert ctx.time_left == 0

    outcome = await attempts.outcome(look, timeout=10)
    assert outcome.result_json is not None
    assert json.loads(outcome.result_json) == pytest.approx([10, 8])


@pytest.mark.parametrize("fraction", [-0.01, 1.01, math.nan, math.inf])
async def test_progress_outside_0_to_1_is_refused(attempts: AttemptKit, fraction: float) -> None:
    async def report(ctx: Context, task: Task) -> None:
        await ctx.progress(fraction)

    outcome = await attempts.outcome(report)
    assert error_of(outcome)["type"] == "ValueError"
    assert attempts.notes == []


async def test_progress_is_written_at_most_so_often_and_the_last_comes_with_the_outcome(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def report(ctx: Context, task: Task) -> None:
        for hundredth in range(26):  # 0.00 s to 0.25 s
            await ctx.progress(hundredth / 100, f"step {hundredth}")
            await trio.sleep(0.01)

    outcome = await attempts.outcome(report)
    written = [json.loads(note.progress_json or "")["fraction"] for note in attempts.notes]
    assert written == pytest.approx([0, 0.1, 0.2], abs=0.011)
    assert outcome.progress_json is not None
    assert json.loads(outcome.progress_json) == {"fraction": 0.25, "message": "step 25"}
    assert [note.message for note in attempts.notes if note.message] == ["0%: step 0"]


async def test_progress_becomes_a_row_of_the_log_at_most_so_often(
    attempts: AttemptKit, autojump_clock: MockClock
) -> None:
    async def report(ctx: Context, task: Task) -> None:
        for second in range(25):
            await ctx.progress(second / 25, f"second {second}" if second % 2 == 0 else None)
            await trio.sleep(1)

    await attempts.outcome(report)
    assert len(attempts.notes) == 25
    told = [note.message for note in attempts.notes if note.message]
    assert told == ["0%: second 0", "40%: second 10", "80%: second 20"]


async def test_progress_already_written_is_not_written_again_with_the_outcome(attempts: AttemptKit) -> None:
    async def report(ctx: Context, task: Task) -> None:
        await ctx.progress(1)

    outcome = await attempts.outcome(report)
    assert outcome.progress_json is None
    assert [json.loads(note.progress_json or "") for note in attempts.notes] == [{"fraction": 1, "message": None}]


async def test_the_progress_of_a_failed_run_is_kept(attempts: AttemptKit) -> None:
    async def report(ctx: Context, task: Task) -> None:
        await ctx.progress(0.1)
        await ctx.progress(0.7, "half \ud800\x00")
        raise ValueError

    outcome = await attempts.outcome(report)
    assert_text(outcome.progress_json)
    assert json.loads(outcome.progress_json or "")["fraction"] == 0.7


async def test_a_log_message_is_a_note_of_this_attempt(attempts: AttemptKit) -> None:
    async def say(ctx: Context, task: Task) -> None:
        await ctx.log("hello")
        await ctx.log("y" * 10_000 + "\x00")
        await ctx.log("\x00\ud800")

    run = attempts.run(say, retry_count=2)
    await attempts.end_of(run)
    first, long, odd = attempts.notes
    assert (first.task_id, first.attempt, first.worker_id) == (run.task.task_id, 3, "w1")
    assert (first.message, first.progress_json) == ("hello", None)
    assert long.message == "y" * 4096
    assert odd.message == "\ufffd?"


async def test_a_cancelled_run_may_log_within_its_cleanup(attempts: AttemptKit, autojump_clock: MockClock) -> None:
    async def say_goodbye(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with ctx.cleanup():
                await ctx.log("goodbye")

    await attempts.outcome_when_cancelled(say_goodbye)
    assert [note.message for note in attempts.notes] == ["goodbye"]


async def test_the_context_names_its_run(attempts: AttemptKit) -> None:
    seen: list[object] = []

    async def look(ctx: Context, task: Task) -> None:
        seen.extend([ctx.task_id, ctx.idempotency_key, ctx.attempt, ctx.worker_id])

    run = attempts.run(look)
    await attempts.end_of(run)
    assert seen == [run.task.task_id, run.task.task_id, 1, "w1"]
