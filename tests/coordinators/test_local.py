"""What is the single node's own: its memory has bounds."""

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
    assert (hall.lengths(), hall.coordinator.delayed()) == ([0, 2, 0], 1)
    await hall.worker()
    assert await hall.serve() == ["a1", "a2"]
    await hall.push("b4")
    assert hall.lengths() == [0, 0, 0], "what runs up to its claim counts"
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


async def test_a_worker_that_nobody_knows_has_nothing_to_take(hall: Hall, autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError):
        await hall.coordinator.take("unknown")
