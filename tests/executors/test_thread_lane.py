"""The thread lane: blocking code that sees its cancel where it looks for it, else is waited for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from atm.executor import FunctionExecutor
from atm.executors.command import CommandRunner
from atm.executors.guarded import Guards
from atm.executors.plain import PlainContext
from atm.executors.thread import ThreadExecutor
from atm.nursery.run import Run
from atm.store import Outcome
from atm.task import Status, Task
from nursery.bench import AttemptKit

Body = Callable[[PlainContext, Task], Any]


def run_of(attempts: AttemptKit, body: Body, **how: Any) -> Run:
    run = attempts.run(ThreadExecutor(FunctionExecutor(body, ("x",), "thread")), **how)
    run.context._commands = CommandRunner(Guards())
    return run


async def outcome(attempts: AttemptKit, body: Body, **how: Any) -> Outcome:
    return await attempts.end_of(run_of(attempts, body, **how))


async def result(attempts: AttemptKit, body: Body) -> Any:
    ended = await outcome(attempts, body)
    assert ended.status is Status.SUCCESS, ended
    return json.loads(ended.result_json or "null")


async def cut_off(
    attempts: AttemptKit, body: Body, begun: threading.Event, how: str = "cancel", cleanup_budget: float = 5.0
) -> Run:
    """The run, cancelled, timed out or shut down as soon as the body has begun, and ended."""
    run = run_of(attempts, body, timeout=3600, cleanup_budget=cleanup_budget)
    with trio.CancelScope() as node:
        run.context._around = (node,)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempts.end_of, run)
            await trio.to_thread.run_sync(begun.wait, 10)
            assert begun.is_set()
            if how == "cancel":
                run.cancel()
            elif how == "timeout":
                run.scope.deadline = trio.current_time()
            else:
                node.cancel(reason="shutdown")
    return run


async def test_the_loop_goes_on_while_a_thread_blocks(attempts: AttemptKit) -> None:
    release = threading.Event()
    async with trio.open_nursery() as nursery:
        run = run_of(attempts, lambda ctx, task: release.wait(10))
        nursery.start_soon(attempts.end_of, run)
        await trio.sleep(0.01)
        release.set()
    assert run.outcome.result_json == "true"


async def test_its_context_has_the_verbs_of_any_context(attempts: AttemptKit) -> None:
    def body(ctx: PlainContext, task: Task) -> Any:
        ctx.check_cancelled()
        ctx.log("a line")
        ctx.progress(0.5, "half")
        with ctx.cleanup():
            ctx.log("another")
        with pytest.raises(ValueError, match="between 0 and 1"):
            ctx.progress(2)
        return [
            ctx.is_cancelled,
            ctx.attempt,
            0 < ctx.time_left <= 300,
            ctx.run_process(["echo", "a"]).stdout.decode(),
        ]

    assert await result(attempts, body) == [False, 1, True, "a\n"]
    assert [note.message for note in attempts.notes if note.message] == ["a line", "50%: half", "another"]


async def test_threads_of_its_own_may_use_the_verbs_until_it_ends(attempts: AttemptKit) -> None:
    kept: list[PlainContext] = []

    def body(ctx: PlainContext, task: Task) -> Any:
        kept.append(ctx)
        helper = threading.Thread(target=ctx.log, args=("from a helper",))
        helper.start()
        helper.join()

    await result(attempts, body)
    assert [note.message for note in attempts.notes] == ["from a helper"]
    with pytest.raises(RuntimeError, match="the run has ended"):
        await trio.to_thread.run_sync(kept[0].log, "too late")


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_whatever_is_raised_fails_the_attempt_alone(attempts: AttemptKit, error: BaseException) -> None:
    def body(ctx: PlainContext, task: Task) -> None:
        raise error

    ended = await outcome(attempts, body)
    assert ended.status is Status.FAILED
    assert json.loads(ended.error_json or "null")["type"] == type(error).__name__
    assert "in body" in (ended.details or "")


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("cancel", Status.CANCELLED, "cancelled"),
        ("timeout", Status.TIMEOUT, "timeout"),
        ("shutdown", Status.PENDING, "shutdown"),
    ],
)
async def test_a_polite_thread_ends_where_it_looks_for_its_cancel(
    attempts: AttemptKit, how: str, status: Status, reason: str
) -> None:
    begun = threading.Event()
    told: list[Any] = []

    def body(ctx: PlainContext, task: Task) -> None:
        begun.set()
        try:
            while True:
                ctx.check_cancelled()
                time.sleep(0.001)
        finally:
            with ctx.cleanup():
                ctx.log("bye")
                told.extend([ctx.is_cancelled, ctx.cancel_reason])

    run = await cut_off(attempts, body, begun, how)
    assert (run.outcome.status, run.context.cancel_reason) == (status, reason)
    assert told == [True, reason]
    assert [note.message for note in attempts.notes] == ["bye"]
    assert run.context.reaped == {"threads": 1}


async def test_a_cleanup_ends_with_its_budget(attempts: AttemptKit) -> None:
    begun = threading.Event()

    def body(ctx: PlainContext, task: Task) -> None:
        begun.set()
        try:
            while True:
                ctx.check_cancelled()
                time.sleep(0.001)
        finally:
            with ctx.cleanup():
                ctx.run_process(["sleep", "1000"])

    run = await cut_off(attempts, body, begun, cleanup_budget=0.05)
    assert run.outcome.status is Status.CANCELLED


async def test_a_rude_thread_is_waited_for_and_the_place_where_it_is_can_be_told(attempts: AttemptKit) -> None:
    begun, release = threading.Event(), threading.Event()

    def body(ctx: PlainContext, task: Task) -> str:
        begun.set()
        release.wait(30)
        return "done"

    run = run_of(attempts, body)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempts.end_of, run)
        await trio.to_thread.run_sync(begun.wait, 10)
        run.cancel()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert run.ended_at is None
        assert run.context.whereabouts is not None
        assert "test_thread_lane.py" in run.context.whereabouts()
        assert " in body" in run.context.whereabouts()
        release.set()
    assert run.outcome.status is Status.SUCCESS, "the store makes CANCELLED of it: the cancel was first"


async def test_a_cancel_swallowed_once_comes_again(attempts: AttemptKit) -> None:
    begun = threading.Event()
    swallowed: list[BaseException] = []

    def body(ctx: PlainContext, task: Task) -> None:
        begun.set()
        while True:
            try:
                ctx.check_cancelled()
                time.sleep(0.001)
            except BaseException as error:
                swallowed.append(error)
                if len(swallowed) == 3:
                    raise

    run = await cut_off(attempts, body, begun)
    assert run.outcome.status is Status.CANCELLED
    assert len(swallowed) == 3


async def test_many_threads_block_at_once(attempts: AttemptKit) -> None:
    """More than Trio's own limiter would let run."""
    count = 60
    barrier = threading.Barrier(count)
    async with trio.open_nursery() as nursery:
        runs = [run_of(attempts, lambda ctx, task: barrier.wait(20)) for _ in range(count)]
        for run in runs:
            nursery.start_soon(attempts.end_of, run)
    assert {run.outcome.status for run in runs} == {Status.SUCCESS}
