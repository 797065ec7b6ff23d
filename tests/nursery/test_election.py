"""Who leads while no coordinator can be reached."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from atm.errors import StoreUnavailable
from atm.nursery.election import ROUND_INTERVAL, TERM, TERM_MARGIN, stand_in
from atm.store import Store
from nursery.bench import Cuttable


class Polls:
    """The store's side of an election: one candidate leads until its time is over."""

    def __init__(self) -> None:
        self.holder = ""
        self.until = 0.0
        self.asked: list[tuple[str, float]] = []
        self.away = False
        self.takes = 0.0

    async def campaign(self, candidate: str, seconds: float) -> bool:
        self.asked.append((candidate, trio.current_time()))
        now = trio.current_time()
        await trio.sleep(self.takes)
        if self.away:
            raise StoreUnavailable("the line is down")
        if self.holder != candidate and now < self.until:
            return False
        self.holder, self.until = candidate, now + seconds
        return True


class Candidate:
    """A node that stands in; writes down when a round of its duties began and ended."""

    def __init__(self, name: str, polls: Polls, coordinator: Cuttable, takes: float = 0.0) -> None:
        self.name = name
        self.takes = takes
        self.began: list[float] = []
        self.ended: list[float] = []
        self._polls = polls
        self._coordinator = coordinator

    async def stand(self) -> None:
        await stand_in(self._coordinator, cast("Store", self._polls), self.name, self._duties)

    async def _duties(self) -> None:
        self.began.append(trio.current_time())
        try:
            await trio.sleep(self.takes)
        finally:
            self.ended.append(trio.current_time())


Make = Callable[..., Candidate]


@pytest.fixture
def polls() -> Polls:
    return Polls()


@pytest.fixture
def coordinator() -> Cuttable:
    return Cuttable()


@pytest.fixture
async def make(polls: Polls, coordinator: Cuttable) -> AsyncIterator[Make]:
    """Makes a node that stands in from now on."""
    async with trio.open_nursery() as standing:

        def make(name: str, takes: float = 0.0) -> Candidate:
            made = Candidate(name, polls, coordinator, takes)
            standing.start_soon(made.stand)
            return made

        yield make
        standing.cancel_scope.cancel()


async def test_nobody_asks_the_store_while_messages_get_through(
    polls: Polls, make: Make, autojump_clock: MockClock
) -> None:
    candidate = make("a")
    await trio.sleep(100)
    assert (polls.asked, candidate.began) == ([], [])


async def test_in_an_outage_the_one_that_leads_does_a_round_each_second(
    coordinator: Cuttable, polls: Polls, make: Make, autojump_clock: MockClock
) -> None:
    first, second = make("a"), make("b")
    await trio.sleep(10)
    coordinator.cut(True)
    await trio.sleep(10.5)
    leader, other = (first, second) if first.began else (second, first)
    assert leader.began == pytest.approx([10 + ROUND_INTERVAL * turn for turn in range(11)])
    assert other.began == []
    assert {name for name, _ in polls.asked} == {"a", "b"}
    coordinator.cut(False)
    await trio.sleep(ROUND_INTERVAL)
    before = len(leader.began)
    await trio.sleep(10)
    assert len(leader.began) == before


async def test_another_one_follows_when_the_leaders_time_is_over(
    coordinator: Cuttable, polls: Polls, make: Make, autojump_clock: MockClock
) -> None:
    polls.holder, polls.until = "gone", 7.5
    coordinator.cut(True)
    candidate = make("a")
    await trio.sleep(20)
    assert candidate.began[0] == pytest.approx(8)


@pytest.mark.parametrize("asking_takes", [0.0, 1.5])
async def test_duties_that_take_too_long_end_before_the_store_lets_another_one_lead(
    coordinator: Cuttable, polls: Polls, make: Make, asking_takes: float, autojump_clock: MockClock
) -> None:
    polls.takes = asking_takes
    coordinator.cut(True)
    candidate = make("a", takes=1000)
    await trio.sleep(TERM)
    assert candidate.began == pytest.approx([asking_takes])
    assert candidate.ended == pytest.approx([TERM - TERM_MARGIN]), "counted from before the asking"
    assert candidate.ended[0] < polls.until


async def test_who_cannot_reach_the_store_either_goes_on_asking(
    coordinator: Cuttable, polls: Polls, make: Make, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    polls.away = True
    coordinator.cut(True)
    candidate = make("a")
    await trio.sleep(5.5)
    assert (len(polls.asked), candidate.began) == (6, [])
    assert "put off: the line is down" in caplog.text
    polls.away = False
    await trio.sleep(1)
    assert len(candidate.began) == 1
