"""Lanes: groups of what arrived meanwhile, alike and small enough; callers that leave; an orderly end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from atm.errors import StoreUnavailable
from atm.lane import GRACE, Lane
from atm.serial import MAX_BYTES, Call


def verb() -> None: ...


def other() -> None: ...


class Hand:
    """Executes groups when told to, and notes what each held."""

    def __init__(self) -> None:
        self.groups: list[list[object]] = []
        self.running = 0
        self._go = trio.Semaphore(0)

    async def execute(self, calls: list[Call]) -> None:
        self.groups.append([call.argument if not call.rows else call.rows[0] for call in calls])
        self.running += 1
        try:
            await self._go.acquire()
        finally:
            self.running -= 1
        for call in calls:
            call.succeed(len(calls))

    async def go(self, count: int = 1) -> None:
        for _ in range(count):
            self._go.release()
            await wait_all_tasks_blocked()


@pytest.fixture
async def hand() -> Hand:
    return Hand()


@pytest.fixture
async def lane(hand: Hand) -> AsyncIterator[Lane]:
    lane = Lane(hand.execute)
    async with trio.open_nursery() as nursery:
        await nursery.start(lane.serve)
        yield lane
        nursery.cancel_scope.cancel()
        await hand.go(20)


async def _ask(lane: Lane, answers: list[object], *call: object) -> None:
    try:
        answers.append(await lane.call(*call))  # type: ignore[arg-type]
    except StoreUnavailable as error:
        answers.append(error)


async def test_what_arrives_meanwhile_is_the_next_group(lane: Lane, hand: Hand) -> None:
    answers: list[object] = []
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(_ask, lane, answers, verb, None, [number])
            await wait_all_tasks_blocked()
        assert hand.groups == [[0]]
        await hand.go(2)
    assert hand.groups == [[0], [1, 2, 3]]
    assert sorted(answers) == [1, 3, 3, 3]  # type: ignore[type-var]


async def test_groups_have_verb_and_argument_in_common_and_keep_the_order(lane: Lane, hand: Hand) -> None:
    async with trio.open_nursery() as nursery:
        for call in [(verb, "a"), (verb, "b"), (verb, "b"), (other, "b"), (verb, "b")]:
            nursery.start_soon(_ask, lane, [], *call)
            await wait_all_tasks_blocked()
        await hand.go(4)
    assert hand.groups == [["a"], ["b", "b"], ["b"], ["b"]]


async def test_a_group_ends_where_it_gets_too_large(lane: Lane, hand: Hand) -> None:
    async with trio.open_nursery() as nursery:
        for rows, size in [([0], 0), ([1] * 999, 0), ([2], 0), ([3], 0), ([4], MAX_BYTES), ([5], 1)]:
            nursery.start_soon(_ask, lane, [], verb, None, rows, size)
            await wait_all_tasks_blocked()
        await hand.go(4)
    assert hand.groups == [[0], [1, 2], [3, 4], [5]]


async def test_several_workers_have_groups_under_way_side_by_side(hand: Hand) -> None:
    lane = Lane(hand.execute, workers=2)
    async with trio.open_nursery() as nursery:
        await nursery.start(lane.serve)
        async with trio.open_nursery() as callers:
            for number in range(3):
                callers.start_soon(_ask, lane, [], verb, None, [number])
                await wait_all_tasks_blocked()
            assert hand.running == 2
            await hand.go(3)
        nursery.cancel_scope.cancel()
    assert hand.groups == [[0], [1], [2]]


async def test_a_caller_that_leaves_does_no_harm(lane: Lane, hand: Hand) -> None:
    answers: list[object] = []
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as leaving:
                leaving.start_soon(_ask, lane, answers, verb, None, ["left"])
                await wait_all_tasks_blocked()
                leaving.start_soon(_ask, lane, answers, verb, None, ["left waiting"])
                await wait_all_tasks_blocked()
                nursery.start_soon(_ask, lane, answers, verb, None, ["stayed"])
                await wait_all_tasks_blocked()
                scope.cancel()
        await hand.go(2)
    assert hand.groups == [["left"], ["left waiting", "stayed"]]
    assert answers == [2]


async def test_at_the_end_what_is_under_way_is_finished_and_what_waits_is_told(hand: Hand) -> None:
    lane = Lane(hand.execute)
    answers: list[object] = []
    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(lane.serve)
        for number in range(2):
            callers.start_soon(_ask, lane, answers, verb, None, [number])
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()
        with trio.CancelScope(shield=True):
            await hand.go()
    assert answers[0] == 1
    assert isinstance(answers[1], StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        await lane.call(verb, None)


async def test_the_end_waits_for_a_group_so_long_and_no_longer(hand: Hand, autojump_clock: MockClock) -> None:
    lane = Lane(hand.execute)
    answers: list[object] = []
    async with trio.open_nursery() as callers:
        async with trio.open_nursery() as nursery:
            await nursery.start(lane.serve)
            callers.start_soon(_ask, lane, answers, verb, None, [1])
            await wait_all_tasks_blocked()
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began == pytest.approx(GRACE)
    assert isinstance(answers[0], StoreUnavailable)


# lanes that take what they are given, and owe no answer


async def test_in_a_mixed_lane_those_that_one_event_wakes_in_turn_make_a_group(hand: Hand) -> None:
    lane = Lane(hand.execute, mixed=True)
    first, second = trio.Event(), trio.Event()

    async def ask(event: trio.Event, name: str) -> None:
        await event.wait()
        if event is first:
            second.set()
        await _ask(lane, [], verb, name)

    async with trio.open_nursery() as nursery:
        await nursery.start(lane.serve)
        async with trio.open_nursery() as callers:
            callers.start_soon(ask, first, "first")
            callers.start_soon(ask, second, "second")
            await wait_all_tasks_blocked()
            first.set()
            await wait_all_tasks_blocked()
            await hand.go()
        nursery.cancel_scope.cancel()
    assert hand.groups == [["first", "second"]]


async def test_a_mixed_lane_joins_what_is_not_alike(hand: Hand) -> None:
    lane = Lane(hand.execute, mixed=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(lane.serve)
        lane.post(verb, "first")
        await wait_all_tasks_blocked()
        lane.post(verb, "second")
        lane.post(other, "third")
        await hand.go(2)
        nursery.cancel_scope.cancel()
    assert hand.groups == [["first"], ["second", "third"]]


async def test_a_posted_call_keeps_its_place_and_its_result_is_told(lane: Lane, hand: Hand) -> None:
    told: list[object] = []
    answers: list[object] = []
    lane.post(verb, None, [1], told=lambda result: told.append(result.unwrap()))
    await wait_all_tasks_blocked()
    lane.post(verb, None, [2, 3])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ask, lane, answers, verb, None, [4])
        await wait_all_tasks_blocked()
        assert (lane.waiting_rows, told) == (4, [])
        await hand.go(2)
    assert (hand.groups, told, answers, lane.waiting_rows) == ([[1], [2, 4]], [1], [2], 0)


async def test_a_thorough_lane_carries_out_what_had_arrived_before_its_end(hand: Hand) -> None:
    lane = Lane(hand.execute, thorough=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(lane.serve)
        lane.post(verb, "first")
        await wait_all_tasks_blocked()
        lane.post(other, "second")
        nursery.cancel_scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()
        with trio.CancelScope(shield=True):
            await hand.go(2)
    assert hand.groups == [["first"], ["second"]]
    lane.post(verb, "late")
    assert hand.groups == [["first"], ["second"]]


async def test_who_comes_too_late_gets_the_error_of_the_house(hand: Hand) -> None:
    lane = Lane(hand.execute, closed=lambda: ConnectionError("closed"))
    with pytest.raises(ConnectionError, match="closed"):
        await lane.call(verb, None)
