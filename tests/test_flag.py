"""The remembered wake-up."""

from __future__ import annotations

import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from atm.flag import Flag


async def _is_set(flag: Flag) -> bool:
    """Whether a wait returns at once; it clears the flag."""
    with trio.move_on_after(1) as patience:
        await flag.wait()
    return not patience.cancelled_caught


async def test_a_wait_ends_when_the_flag_is_set(autojump_clock: MockClock) -> None:
    flag = Flag()
    woken: list[float] = []

    async def wait() -> None:
        await flag.wait()
        woken.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        assert woken == []
        began = trio.current_time()
        flag.set()
    assert woken == [began]


async def test_a_flag_set_before_is_remembered(autojump_clock: MockClock) -> None:
    flag = Flag()
    assert not await _is_set(flag)
    flag.set()
    assert await _is_set(flag)


async def test_set_many_times_it_wakes_once(autojump_clock: MockClock) -> None:
    flag = Flag()
    for _ in range(3):
        flag.set()
    assert await _is_set(flag)
    assert not await _is_set(flag)


async def test_set_again_while_its_waiter_is_being_woken_it_wakes_once(autojump_clock: MockClock) -> None:
    flag = Flag()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flag.wait)
        await wait_all_tasks_blocked()
        flag.set()
        flag.set()
    assert not await _is_set(flag)


async def test_a_waiter_that_gives_up_takes_no_wake_up_with_it(autojump_clock: MockClock) -> None:
    flag = Flag()
    assert not await _is_set(flag)
    flag.set()
    assert await _is_set(flag)


async def test_a_wake_up_survives_a_waiter_that_is_cancelled_already(autojump_clock: MockClock) -> None:
    flag = Flag()
    flag.set()
    with trio.CancelScope() as scope:
        scope.cancel()
        await flag.wait()
    assert scope.cancelled_caught
    assert await _is_set(flag)


async def test_a_wait_for_a_flag_that_is_set_lets_others_run_all_the_same(autojump_clock: MockClock) -> None:
    flag = Flag()
    flag.set()
    with assert_checkpoints():
        await flag.wait()
