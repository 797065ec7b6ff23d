"""Those who wait for a task's end: woken by the event, or by a look when the event was lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from atm.api.waiters import LOOK_INTERVAL, Waiters
from atm.coordinator import TaskEvent
from atm.coordinators.local import LocalCoordinator
from atm.health import Health
from atm.store import NewTask
from atm.stores.sqlite import SqliteStore
from atm.task import Status, new_task_id


class Bench:
    """A store without threads, so that the clock can be a virtual one."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(path, inline=True)
        self.coordinator = LocalCoordinator()
        self.health = Health()
        self.waiters = Waiters(self.store, self.coordinator, self.health)

    async def pending(self) -> str:
        task = NewTask(task_id=new_task_id(), task_type="a", payload_json="{}")
        await self.store.create([task])
        return task.task_id


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "atm.db")
    async with trio.open_nursery() as nursery:
        await nursery.start(made.store.run)
        await nursery.start(made.waiters.listen)
        yield made
        nursery.cancel_scope.cancel()


async def test_an_event_wakes_its_waiters_at_once(bench: Bench, autojump_clock: MockClock) -> None:
    task_id = await bench.pending()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            task = await bench.waiters.ended(task_id, 100)
            assert task is not None
            assert task.status is Status.CANCELLED

        for _ in range(3):
            nursery.start_soon(wait)
        await trio.sleep(0.25)
        await bench.store.cancel([task_id])
        # Somebody else's end, and a state that is no end, wake nobody.
        await bench.coordinator.publish([TaskEvent(new_task_id(), Status.SUCCESS)])
        await bench.coordinator.publish([TaskEvent(task_id, Status.PENDING)])
        await trio.sleep(0.25)
        assert bench.waiters._events
        await bench.coordinator.publish([TaskEvent(task_id, Status.CANCELLED)])
    assert trio.current_time() == began + 0.5
    assert bench.waiters._events == {}


async def test_a_lost_event_costs_one_look(bench: Bench, autojump_clock: MockClock) -> None:
    task_id = await bench.pending()
    async with trio.open_nursery() as nursery:
        began = trio.current_time()

        async def wait() -> None:
            task = await bench.waiters.ended(task_id, 100)
            assert task is not None
            assert task.is_terminal

        nursery.start_soon(wait)
        await trio.sleep(LOOK_INTERVAL / 2)
        await bench.store.cancel([task_id])
    assert trio.current_time() == began + LOOK_INTERVAL


@pytest.mark.parametrize("timeout", [0.0, 0.5, 2.75])
async def test_a_wait_ends_with_its_time(bench: Bench, autojump_clock: MockClock, timeout: float) -> None:
    task_id = await bench.pending()
    began = trio.current_time()
    task = await bench.waiters.ended(task_id, timeout)
    assert task is not None
    assert task.status is Status.PENDING
    assert trio.current_time() == pytest.approx(began + timeout)


async def test_what_has_ended_is_not_waited_for(bench: Bench, autojump_clock: MockClock) -> None:
    task_id = await bench.pending()
    await bench.store.cancel([task_id])
    began = trio.current_time()
    assert await bench.waiters.ended(task_id, 100) is not None
    assert await bench.waiters.ended(new_task_id(), 100) is None
    assert trio.current_time() == began


async def test_a_node_that_stops_sends_its_waiters_home(bench: Bench, autojump_clock: MockClock) -> None:
    task_id = await bench.pending()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.waiters.ended, task_id, 100)
        await trio.sleep(0.5)
        bench.health.stopping.set()
    assert trio.current_time() <= began + LOOK_INTERVAL


async def test_a_waiter_that_leaves_is_forgotten(bench: Bench, autojump_clock: MockClock) -> None:
    task_id = await bench.pending()
    with trio.move_on_after(0.5):
        await bench.waiters.ended(task_id, 100)
    assert bench.waiters._events == {}


async def test_an_event_for_nobody_is_no_matter(bench: Bench, autojump_clock: MockClock) -> None:
    await bench.coordinator.publish([TaskEvent(new_task_id(), Status.SUCCESS)])
    assert bench.waiters._events == {}
