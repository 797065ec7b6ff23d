"""What the suites of the coordinator stand on: one that leads, and short forms for its verbs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
import trio

from atm.coordinator import Balance, Coordinator, Hint, Overview, QueueInfo, WorkerInfo
from atm.coordinators.local import LocalCoordinator
from atm.coordinators.redis import RedisCoordinator, RedisSettings
from atm.nursery.balance import LeastTask
from servers import RedisServer

TYPES = ("a", "b", "c")
UNIT = 0.02
"""Real seconds that stand for a unit of time where it has to pass."""

PATIENCE = 20.0
"""Real seconds that what must come may take on a loaded machine."""

PATIENT_TTL = 10.0
"""Seconds of a term that no loaded machine ends too early."""


@dataclass
class Hall:
    """A coordinator whose node leads. Hints are named by their ids: "a1" is a task of type a.

    Time is counted in units: seconds on a virtual clock, much less where it has to pass really.
    """

    coordinator: Coordinator
    unit: float = 1.0
    soon: float = 0.001
    """Seconds until what has happened is heard of."""

    has_handed: Callable[[str], bool] = lambda worker_id: True
    """Whether there may be something to take for this worker."""

    balance: Balance = field(default_factory=LeastTask)
    taken: dict[str, Hint] = field(default_factory=dict)
    """By name, as it was handed over."""

    async def sleep(self, units: float) -> None:
        await trio.sleep(units * self.unit)

    def now(self) -> float:
        return trio.current_time() / self.unit

    async def eventually(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not holds():
                await trio.sleep(0.002)

    async def worker(self, worker_id: str = "w", **fields: Any) -> None:
        """Register a worker, or what is new about it."""
        await self.coordinator.register(worker(worker_id, **fields))

    async def push(self, *names: str, priority: int = 0, delay: float = 0.0) -> None:
        await self.coordinator.push([hint(name, priority, delay * self.unit) for name in names])

    async def requeue(self, *names: str) -> int:
        return await self.coordinator.requeue([hint(name) for name in names])

    async def withdraw(self, *names: str, priority: int = 0) -> None:
        await self.coordinator.withdraw([hint(name, priority) for name in names])

    async def dispatch(self, limit: int = 100) -> int:
        return await self.coordinator.dispatch(self.balance, limit)

    async def take(self, worker_id: str = "w") -> list[str]:
        """What has been handed to this worker, without waiting for more."""
        await self.coordinator.overview()
        if not self.has_handed(worker_id):
            return []
        with trio.move_on_after(self.soon):
            hints = await self.coordinator.take(worker_id)
            self.taken |= {item.task_id: item for item in hints}
            return [item.task_id for item in hints]
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
        await self.coordinator.settle(worker_id, [self._as_taken(name) for name in names], load)

    async def block(self, *names: str, worker_id: str = "w") -> None:
        await self.coordinator.block(worker_id, [self._as_taken(name) for name in names])

    def _as_taken(self, name: str) -> Hint:
        return self.taken.get(name) or hint(name)

    async def has_changed(self) -> bool:
        """Whether another dispatch may move something."""
        with trio.move_on_after(self.soon) as patience:
            await self.coordinator.changed()
        return not patience.cancelled_caught

    async def settled_down(self) -> None:
        """Let nothing be new, and everything that has a time be known to the leader."""
        await self.dispatch()
        while await self.has_changed():
            await self.dispatch()

    async def overview(self) -> Overview:
        overview = await self.coordinator.overview()
        assert overview is not None
        return overview

    async def queues(self) -> list[QueueInfo]:
        return (await self.overview()).queues

    async def lengths(self) -> list[int]:
        return [queue.length for queue in await self.queues()]

    async def parked(self) -> list[int]:
        return [queue.parked for queue in await self.queues()]

    async def delayed(self) -> int:
        return (await self.overview()).delayed

    async def workers(self) -> list[WorkerInfo]:
        return (await self.overview()).workers


def hint(name: str, priority: int = 0, delay: float = 0.0) -> Hint:
    return Hint(name, name[0], priority, delay)


def worker(worker_id: str = "w", *, capacity: int = 10, types: Iterable[str] = TYPES, **fields: Any) -> WorkerInfo:
    known: dict[str, Any] = {"name": worker_id, "address": "", "load": 0, "last_seen": 0.0}
    return WorkerInfo(id=worker_id, capacity=capacity, task_types=frozenset(types), **(known | fields))


@asynccontextmanager
async def local_hall() -> AsyncIterator[Hall]:
    yield Hall(LocalCoordinator())


@asynccontextmanager
async def redis_hall(server: RedisServer) -> AsyncIterator[Hall]:
    coordinator = RedisCoordinator(RedisSettings(addr=f"{server.host}:{server.port}"), leader_ttl=PATIENT_TTL)
    client = redis.Redis(port=server.port, protocol=2)
    try:
        client.flushall()
        yield Hall(
            coordinator,
            UNIT,
            soon=0.2,
            has_handed=lambda worker_id: bool(client.llen(f"worker:{worker_id}:queue")),
        )
    finally:
        client.close()


@asynccontextmanager
async def serving(coordinator: Coordinator) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(coordinator.run)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def leading(coordinator: Coordinator, candidate: str = "node-1") -> AsyncIterator[None]:
    """While its node leads."""
    leads = trio.Event()

    async def duties() -> None:
        leads.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(coordinator.lead, candidate, duties)
        with trio.fail_after(PATIENCE):
            await leads.wait()
        yield
        nursery.cancel_scope.cancel()
