"""What the suites of the coordinator stand on: one that leads, and short forms for its verbs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from atm.coordinator import Balance, Coordinator, Hint, WorkerInfo
from atm.nursery.balance import LeastTask

TYPES = ("a", "b", "c")
SOON = 0.001
"""Seconds to wait for what is there already or will not come."""


@dataclass
class Hall:
    """A coordinator whose node leads. Hints are named by their ids: "a1" is a task of type a."""

    coordinator: Coordinator
    balance: Balance = field(default_factory=LeastTask)

    async def worker(self, worker_id: str = "w", **fields: Any) -> None:
        """Register a worker, or what is new about it."""
        await self.coordinator.register(worker(worker_id, **fields))

    async def push(self, *names: str, priority: int = 0, delay: float = 0.0) -> None:
        await self.coordinator.push([hint(name, priority, delay) for name in names])

    async def dispatch(self, limit: int = 100) -> int:
        return await self.coordinator.dispatch(self.balance, limit)

    async def take(self, worker_id: str = "w") -> list[str]:
        """What has been handed to this worker, without waiting for more."""
        with trio.move_on_after(SOON):
            return [item.task_id for item in await self.coordinator.take(worker_id)]
        return []

    async def serve(self, worker_id: str = "w") -> list[str]:
        """Dispatch, and what came of it for this worker."""
        await self.dispatch()
        return await self.take(worker_id)

    async def serve_one_by_one(self, worker_id: str = "w") -> list[str]:
        """All that comes to this worker when each task ends before the next dispatch."""
        served: list[str] = []
        while names := await self.serve(worker_id):
            served += names
            await self.settle(*names, worker_id=worker_id)
        return served

    async def settle(self, *names: str, worker_id: str = "w", load: int = 0) -> None:
        await self.coordinator.settle(worker_id, [hint(name) for name in names], load)

    async def block(self, *names: str, worker_id: str = "w", priority: int = 0) -> None:
        await self.coordinator.block(worker_id, [hint(name, priority) for name in names])

    async def has_changed(self) -> bool:
        """Whether another dispatch may move something."""
        with trio.move_on_after(SOON) as patience:
            await self.coordinator.changed()
        return not patience.cancelled_caught

    async def settled_down(self) -> None:
        """Let nothing be new."""
        while await self.has_changed():
            pass

    def lengths(self) -> list[int]:
        return [queue.length for queue in self.coordinator.queues()]

    def parked(self) -> list[int]:
        return [queue.parked for queue in self.coordinator.queues()]


def hint(name: str, priority: int = 0, delay: float = 0.0) -> Hint:
    return Hint(name, name[0], priority, delay)


def worker(worker_id: str = "w", *, capacity: int = 10, types: Iterable[str] = TYPES, **fields: Any) -> WorkerInfo:
    known: dict[str, Any] = {"name": worker_id, "address": "", "load": 0, "last_seen": 0.0}
    return WorkerInfo(id=worker_id, capacity=capacity, task_types=frozenset(types), **(known | fields))


@asynccontextmanager
async def leading(coordinator: Coordinator) -> AsyncIterator[Hall]:
    """The coordinator while its node leads."""
    leads = trio.Event()

    async def duties() -> None:
        leads.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(coordinator.lead, "node-1", duties)
        await leads.wait()
        yield Hall(coordinator)
        nursery.cancel_scope.cancel()
