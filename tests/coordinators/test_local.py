"""What is the single node's own: it knows its hints and their ages, and its memory has bounds."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from atm.coordinators import local
from atm.coordinators.local import LocalCoordinator
from contracts.hall import Hall


@pytest.fixture
def hall() -> Hall:
    return Hall(LocalCoordinator())


async def test_hints_beyond_the_most_are_left_to_the_sweep(
    hall: Hall, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MAX_HINTS", 3)
    await hall.push("a1", "a2")
    await hall.push("b3", delay=10)
    await hall.push("b4")
    assert (await hall.lengths(), await hall.delayed()) == ([0, 2, 0], 1)
    await hall.worker()
    assert await hall.serve() == ["a1", "a2"]
    await hall.push("b4")
    assert await hall.lengths() == [0, 0, 0], "what runs up to its claim counts"
    await hall.settle("a1")
    await hall.push("b4", "b5")
    assert await hall.serve() == ["b4"]


async def test_when_full_a_known_hint_may_still_come_earlier(
    hall: Hall, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MAX_HINTS", 1)
    await hall.worker()
    await hall.push("a1", delay=3600)
    await hall.push("a1")
    assert await hall.serve() == ["a1"]


async def test_room_remembered_for_a_type_that_is_not_blocked_has_a_bound(
    hall: Hall, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MAX_CREDIT", 2)
    await hall.worker()
    await hall.push("a1", "a2", "a3", "a4")
    names = await hall.serve()
    for _ in range(10):
        await hall.coordinator.unblock("a", 1)
    await hall.block(*names)
    assert await hall.serve() == ["a1", "a2"]


async def test_nothing_is_kept_of_what_is_dealt_with(hall: Hall, autojump_clock: MockClock) -> None:
    coordinator = hall.coordinator
    assert isinstance(coordinator, LocalCoordinator)
    await hall.worker(capacity=100)
    for _ in range(5):
        names = [f"{kind}{number}" for number in range(5) for kind in "abc"]
        await hall.push(*names, delay=5)
        await hall.push(*names[:7])
        await trio.sleep(6)
        taken = await hall.serve()
        assert sorted(taken) == sorted(names)
        await hall.settle(*taken)
    assert not coordinator._known
    assert not coordinator._delayed
    assert not any(coordinator._lines.values())


async def test_nothing_is_kept_of_what_is_withdrawn(hall: Hall, autojump_clock: MockClock) -> None:
    coordinator = hall.coordinator
    assert isinstance(coordinator, LocalCoordinator)
    for number in range(100):
        await hall.push(f"a{number}")
        await hall.push(f"b{number}", delay=3600)
        await hall.withdraw(f"a{number}", f"b{number}")
        assert len(coordinator._delayed) <= 1
    await hall.push("a1", "a2", "a3", delay=10)
    await hall.withdraw("a2")
    await hall.push("a2", delay=10)
    await hall.withdraw("a1", "a3")
    assert await hall.delayed() == 1
    await trio.sleep(11)
    await hall.worker()
    assert await hall.serve() == ["a2"]
    await hall.settle("a2")
    assert await hall.delayed() == 0
    assert not coordinator._known
    assert not coordinator._delayed
    assert not any(coordinator._lines.values())


async def test_a_known_hint_is_not_doubled(hall: Hall, autojump_clock: MockClock) -> None:
    await hall.worker()
    await hall.push("a1", "a1")
    await hall.push("a1", "b2")
    assert await hall.lengths() == [0, 2, 0]
    assert await hall.dispatch() == 2
    await hall.push("a1")
    assert await hall.take() == ["a1", "b2"]
    await hall.push("a1", "b2", delay=5)
    await hall.push("a1", "b2")
    assert await hall.lengths() == [0, 0, 0]
    assert await hall.serve() == []


async def test_the_age_is_that_of_the_head(hall: Hall, autojump_clock: MockClock) -> None:
    await hall.push("a1")
    await hall.sleep(10)
    await hall.push("b2")
    await hall.push("b3", delay=5)
    await hall.sleep(20)
    assert (await hall.queues())[1].oldest_age == pytest.approx(30, abs=1)
    await hall.worker(capacity=1)
    await hall.serve()
    assert (await hall.queues())[1].oldest_age == pytest.approx(20, abs=1)
    await hall.settle("a1")
    await hall.serve()
    assert (await hall.queues())[1].oldest_age == pytest.approx(15, abs=1)


async def test_what_comes_back_is_as_old_as_before(hall: Hall, autojump_clock: MockClock) -> None:
    await hall.worker()
    await hall.push("a1")
    await hall.sleep(10)
    await hall.serve()
    await hall.coordinator.unregister("w")
    assert (await hall.queues())[1].oldest_age == pytest.approx(10, abs=1)


async def test_what_went_back_is_known_and_not_doubled(hall: Hall, autojump_clock: MockClock) -> None:
    await hall.worker()
    await hall.push("a1")
    await hall.serve()
    await hall.coordinator.unregister("w")
    await hall.push("a1")
    assert await hall.lengths() == [0, 1, 0]


async def test_what_a_block_leaves_waiting_counts_as_parked_at_once(hall: Hall, autojump_clock: MockClock) -> None:
    await hall.worker(types=["a", "b"])
    await hall.push("a1")
    await hall.serve()
    await hall.push("a2", "b3", "x4")
    await hall.block("a1")
    assert (await hall.lengths(), await hall.parked()) == ([0, 4, 0], [0, 3, 0])


async def test_a_worker_that_nobody_knows_has_nothing_to_take(hall: Hall, autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError):
        await hall.coordinator.take("unknown")
