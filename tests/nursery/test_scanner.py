"""The leader's dispatch."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from atm.coordinator import Balance, Hint, WorkerInfo
from atm.coordinators.local import LocalCoordinator
from atm.nursery import balance
from atm.nursery.scanner import scan


class Watched(LocalCoordinator):
    """Counts dispatches; ``deaf``: its wake-ups are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatched: list[tuple[float, int]] = []
        self.deaf = False

    async def changed(self) -> None:
        if self.deaf:
            await trio.sleep_forever()
        await super().changed()

    async def dispatch(self, balance: Balance, limit: int) -> int:
        moved = await super().dispatch(balance, limit)
        self.dispatched.append((trio.current_time(), moved))
        return moved


def worker(capacity: int) -> WorkerInfo:
    return WorkerInfo(
        id="w", name="w", address="", capacity=capacity, load=0, task_types=frozenset({"x"}), last_seen=0.0
    )


def hints(numbers: Iterable[int], delay: float = 0.0) -> list[Hint]:
    return [Hint(f"t{number}", "x", 0, delay) for number in numbers]


async def test_a_push_is_dispatched_without_waiting_for_the_interval(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    coordinator = Watched()
    await coordinator.register(worker(5))
    nursery.start_soon(scan, coordinator, balance.load("least_task"), 1000.0, 500)
    await trio.sleep(1)
    await coordinator.push(hints(range(3)))
    assert len(await coordinator.take("w")) == 3
    assert trio.current_time() == pytest.approx(1)
    nursery.cancel_scope.cancel()


async def test_full_batches_follow_each_other_at_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    coordinator = Watched()
    await coordinator.register(worker(100))
    await coordinator.push(hints(range(10)))
    nursery.start_soon(scan, coordinator, balance.load("least_task"), 1000.0, 4)
    await wait_all_tasks_blocked()
    assert coordinator.dispatched == [(0, 4), (0, 4), (0, 2)]
    nursery.cancel_scope.cancel()


async def test_a_lost_wake_up_costs_one_interval(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    coordinator = Watched()
    coordinator.deaf = True
    await coordinator.register(worker(5))
    nursery.start_soon(scan, coordinator, balance.load("least_task"), 0.1, 500)
    await trio.sleep(1.02)
    await coordinator.push(hints(range(3)))
    assert len(await coordinator.take("w")) == 3
    assert trio.current_time() == pytest.approx(1.1)
    nursery.cancel_scope.cancel()


async def test_a_due_time_is_met_without_waiting_for_the_interval(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    coordinator = Watched()
    await coordinator.register(worker(5))
    nursery.start_soon(scan, coordinator, balance.load("least_task"), 1000.0, 500)
    await coordinator.push(hints(range(3), delay=7.5))
    assert len(await coordinator.take("w")) == 3
    assert trio.current_time() == pytest.approx(7.5)
    nursery.cancel_scope.cancel()
