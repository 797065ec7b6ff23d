"""The thread behind a store: groups, order, urgency, waiters that leave, and the end."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from atm import serial
from atm.errors import StoreUnavailable
from atm.serial import Call, SerialThread
from contracts.bench import failure_of


def _work() -> None:
    """A verb; what it does is up to Hand."""


class Hand:
    """Executes groups for a SerialThread, one at a time when told to, and notes what each held."""

    def __init__(self) -> None:
        self.groups: list[list[object]] = []
        self.error: BaseException | None = None
        self._entered = threading.Semaphore(0)
        self._may_go = threading.Semaphore(0)

    def execute(self, calls: list[Call]) -> None:
        self.groups.append([call.argument for call in calls])
        self._entered.release()
        assert self._may_go.acquire(timeout=30)
        if self.error is not None:
            raise self.error
        for call in calls:
            call.succeed(("done", call.argument))

    async def entered(self) -> None:
        """Return when the next group is under way."""
        assert await trio.to_thread.run_sync(lambda: self._entered.acquire(timeout=30))

    def let_go(self, groups: int = 1) -> None:
        """Let so many groups finish."""
        self._may_go.release(groups)


@asynccontextmanager
async def _serving(hand: Hand, **options: Any) -> AsyncIterator[SerialThread]:
    thread = SerialThread(hand.execute, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(thread.serve)
        try:
            yield thread
        finally:
            hand.let_go(100)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _behind_a_first(hand: Hand, thread: SerialThread) -> AsyncIterator[Callable[..., None]]:
    """A first call is under way; yields a function that starts another one, which has to wait."""

    async def call(argument: object, rows: int, size: int) -> None:
        assert await thread.call(_work, argument, range(rows), size) == ("done", argument)

    def start(argument: object, rows: int = 1, size: int = 0) -> None:
        nursery.start_soon(call, argument, rows, size)

    async with trio.open_nursery() as nursery:
        start("first")
        await hand.entered()
        yield start
        await trio.testing.wait_all_tasks_blocked()
        hand.let_go(100)


async def _groups_behind_a_first(*waiting: dict[str, Any]) -> list[list[object]]:
    """The groups that these calls, waiting together and named by their place, are carried out in."""
    hand = Hand()
    async with _serving(hand) as thread, _behind_a_first(hand, thread) as start:
        for number, fields in enumerate(waiting):
            start(number, **fields)
            await trio.testing.wait_all_tasks_blocked()  # so that they arrive in this order
    assert hand.groups[0] == ["first"]
    return hand.groups[1:]


# groups


async def test_whatever_waits_while_a_group_runs_is_the_next_group() -> None:
    assert await _groups_behind_a_first({}, {}, {}) == [[0, 1, 2]]


async def test_a_group_holds_no_more_rows_than_a_transaction() -> None:
    half = {"rows": serial.MAX_ROWS // 2}
    assert await _groups_behind_a_first(half, half, {"rows": 1}, half) == [[0, 1], [2, 3]]


async def test_a_group_holds_no_more_bytes_than_a_transaction() -> None:
    half = {"size": serial.MAX_BYTES // 2}
    assert await _groups_behind_a_first(half, half, {"size": 1}, half) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("large", [{"rows": serial.MAX_ROWS + 1}, {"size": serial.MAX_BYTES + 1}])
async def test_a_call_that_is_larger_than_a_group_goes_alone(large: dict[str, int]) -> None:
    assert await _groups_behind_a_first({}, large, large, {}, {}) == [[0], [1], [2], [3, 4]]


async def test_calls_without_rows_take_no_room() -> None:
    full = {"rows": serial.MAX_ROWS}
    assert await _groups_behind_a_first(full, {"rows": 0}, {"rows": 0}) == [[0, 1, 2]]


# urgency


# answers


async def test_each_caller_gets_its_own_answer_in_the_order_of_the_calls() -> None:
    answers: list[object] = []

    async def call(thread: SerialThread, argument: int) -> None:
        answers.append(await thread.call(_work, argument))

    hand = Hand()
    hand.let_go(100)
    async with _serving(hand) as thread, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(call, thread, number)
    assert sorted(answers) == [("done", number) for number in range(20)]  # type: ignore[type-var]
    assert sorted(argument for group in hand.groups for argument in group) == list(range(20))  # type: ignore[type-var]


async def test_a_call_that_fails_fails_its_caller() -> None:
    def execute(calls: list[Call]) -> None:
        for call in calls:
            call.fail(ValueError(call.argument)) if call.argument == "bad" else call.succeed(call.rows)

    thread = SerialThread(execute)
    async with trio.open_nursery() as nursery:
        await nursery.start(thread.serve)
        with pytest.raises(ValueError, match="bad"):
            await thread.call(_work, "bad")
        assert await thread.call(_work, "good", [1, 2]) == [1, 2]
        nursery.cancel_scope.cancel()


async def test_a_waiter_that_leaves_takes_nothing_with_it() -> None:
    hand = Hand()
    async with _serving(hand) as thread, _behind_a_first(hand, thread) as start:
        start(1)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(thread.call, _work, "left")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        start(2)
    assert sorted(map(str, hand.groups[1])) == ["1", "2", "left"], "it is carried out all the same"


async def test_a_waiter_that_leaves_while_its_group_runs_misses_only_the_answer() -> None:
    hand = Hand()
    async with _serving(hand) as thread:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(thread.call, _work, "left")
                await hand.entered()
                scope.cancel()
        hand.let_go()
        hand.let_go()
        assert await thread.call(_work, "next") == ("done", "next")
    assert hand.groups == [["left"], ["next"]]


async def test_a_caller_that_is_cancelled_already_asks_nothing() -> None:
    hand = Hand()
    async with _serving(hand) as thread:
        with trio.CancelScope() as scope:
            scope.cancel()
            await thread.call(_work, "never")
        assert scope.cancelled_caught
        hand.let_go()
        await thread.call(_work, "next")
    assert hand.groups == [["next"]]


# the end


async def test_what_has_arrived_is_carried_out_before_the_end() -> None:
    hand = Hand()
    answers: list[object] = []
    thread = SerialThread(hand.execute)

    async def call(argument: object, rows: int) -> None:
        answers.append(await thread.call(_work, argument, range(rows)))

    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(thread.serve)
        callers.start_soon(call, 0, 1)
        await hand.entered()
        for number in (1, 2):
            callers.start_soon(call, number, serial.MAX_ROWS)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        hand.let_go(100)
    assert sorted(answers) == [("done", number) for number in range(3)]  # type: ignore[type-var]
    assert len(hand.groups) == 3


async def test_calls_before_the_start_and_behind_the_end_are_refused() -> None:
    for inline in (False, True):
        thread = SerialThread(lambda calls: calls[0].succeed(1), inline=inline)
        assert isinstance(await failure_of(thread.call(_work, 0)), StoreUnavailable)
        async with trio.open_nursery() as nursery:
            await nursery.start(thread.serve)
            assert await thread.call(_work, 0) == 1
            nursery.cancel_scope.cancel()
        with pytest.raises(StoreUnavailable, match="closed"):
            await thread.call(_work, 0)


async def _serve_until_it_dies(
    thread: SerialThread, deaths: list[str], *, task_status: trio.TaskStatus[None]
) -> None:
    try:
        await thread.serve(task_status=task_status)
    except* RuntimeError as group:
        deaths += [str(error) for error in group.exceptions]


async def test_the_death_of_the_thread_comes_out_and_fails_all_that_wait() -> None:
    hand = Hand()
    hand.error = RuntimeError("dead")
    thread = SerialThread(hand.execute)
    deaths: list[str] = []
    failures: dict[str, Exception | None] = {}

    async def call(name: str, rows: int = 1) -> None:
        failures[name] = await failure_of(thread.call(_work, name, range(rows)))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_until_it_dies, thread, deaths)
            nursery.start_soon(call, "under way")
            await hand.entered()
            nursery.start_soon(call, "waiting")
            nursery.start_soon(call, "too much for its group", serial.MAX_ROWS)
            await trio.testing.wait_all_tasks_blocked()
            hand.let_go()
    assert deaths == ["dead"]
    assert failures.keys() == {"under way", "waiting", "too much for its group"}
    assert all(isinstance(failure, StoreUnavailable) for failure in failures.values())
    assert isinstance(await failure_of(thread.call(_work, "later")), StoreUnavailable)


async def test_the_death_of_the_thread_fails_also_those_left_out_of_its_last_group() -> None:
    hand = Hand()
    thread = SerialThread(hand.execute)
    failures: list[Exception | None] = []

    async def call(rows: int) -> None:
        failures.append(await failure_of(thread.call(_work, rows, range(rows))))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_until_it_dies, thread, [])
            nursery.start_soon(thread.call, _work, "first")
            await hand.entered()
            for rows in (1, serial.MAX_ROWS, 2):
                nursery.start_soon(call, rows)
                await trio.testing.wait_all_tasks_blocked()
            hand.let_go()
            await hand.entered()
            hand.error = RuntimeError("dead")
            hand.let_go()
    assert hand.groups == [["first"], [1]]
    assert [type(failure) for failure in failures] == [StoreUnavailable] * 3


async def test_what_a_failed_group_had_decided_is_told() -> None:
    def execute(calls: list[Call]) -> None:
        calls[0].fail(ValueError("why"))
        raise RuntimeError("dead")

    thread = SerialThread(execute)
    async with trio.open_nursery() as nursery:
        await nursery.start(_serve_until_it_dies, thread, [])
        with pytest.raises(ValueError, match="why"):
            await thread.call(_work, 0)


# inline


async def test_inline_calls_are_carried_out_where_they_are_made(autojump_clock: trio.testing.MockClock) -> None:
    threads: list[threading.Thread] = []

    def execute(calls: list[Call]) -> None:
        threads.append(threading.current_thread())
        calls[0].succeed(calls[0].rows)

    thread = SerialThread(execute, inline=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(thread.serve)
        before = trio.current_time()
        assert await thread.call(_work, None, [1]) == [1]
        assert trio.current_time() == before
        nursery.cancel_scope.cancel()
    assert threads == [threading.current_thread()]
