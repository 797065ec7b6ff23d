"""What the suites of the store stand on: a store that serves, a hand on its clock, and a few short forms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import trio

from atm.store import Claimed, Lease, LogRow, NewChild, NewTask, Outcome, Store, TaskFilter
from atm.task import Status, Task, TaskType, legal_path, new_task_id


@dataclass
class Bench:
    """A store under test. ``advance`` moves the store's clock on, by seconds."""

    store: Store
    advance: Callable[[float], Awaitable[None]]
    _leases: dict[str, Lease] = field(default_factory=dict)
    _registering: trio.Lock = field(default_factory=trio.Lock)

    async def lease(self, worker_id: str = "worker-1") -> Lease:
        """The lease of this worker, registered at the first call."""
        async with self._registering:
            if worker_id not in self._leases:
                await self.lose(worker_id)
        return self._leases[worker_id]

    async def lose(self, worker_id: str = "worker-1") -> None:
        """End this worker's lease behind its back, as a crash and a new start of it would."""
        self._leases[worker_id] = await self.store.register(worker_id, 10, ["echo"])

    async def create(self, **fields: Any) -> str:
        """A new task; its id."""
        (created,) = await self.store.create([new_task(**fields)])
        return created.task_id

    async def create_many(self, count: int, **fields: Any) -> list[str]:
        return [created.task_id for created in await self.store.create([new_task(**fields) for _ in range(count)])]

    async def claim(self, task_id: str, worker_id: str = "worker-1") -> Task:
        """Claim a task that can be claimed."""
        (verdict,) = await self.store.claim(await self.lease(worker_id), [task_id])
        assert isinstance(verdict, Claimed), verdict
        return verdict.task

    async def claims(self, task_ids: list[str], worker_id: str = "worker-1") -> list[str]:
        """What becomes of claiming all these: "claimed", or why not."""
        verdicts = await self.store.claim(await self.lease(worker_id), task_ids)
        return ["claimed" if isinstance(verdict, Claimed) else str(verdict.reason) for verdict in verdicts]

    async def running(self, **fields: Any) -> Task:
        """A new task, claimed."""
        return await self.claim(await self.create(**fields))

    async def configure(self, task_type: str, **changes: Any) -> TaskType:
        """Change these settings of the type; all of them as they are then."""
        return await self.store.change_task_type(task_type, changes)

    async def finish(self, task: Task, status: Status, **fields: Any) -> Status | None:
        """The verdict's status."""
        (verdict,) = await self.store.finish(await self.lease(), [outcome(task, status, **fields)])
        return verdict.status

    async def ended(self, status: Status, **fields: Any) -> Task:
        """A new task, run to this end."""
        task = await self.running(**fields)
        assert await self.finish(task, status) is status
        return await self.get(task.task_id)

    async def get(self, task_id: str) -> Task:
        task = await self.store.get(task_id)
        assert task is not None
        return task

    async def status(self, task_id: str) -> Status:
        return (await self.get(task_id)).status

    async def logs(self, task_id: str) -> list[LogRow]:
        rows = await self.store.logs(task_id)
        assert rows is not None
        return rows

    async def steps(self, task_id: str) -> list[str]:
        """The log's state changes as texts; checked to be a legal path that ends in the row's state."""
        rows = await self.logs(task_id)
        assert legal_path((row.from_status, row.to_status) for row in rows) is await self.status(task_id)
        return [f"{row.from_status} {row.to_status}" for row in rows if row.to_status is not None]


OpenBench = Callable[..., AbstractAsyncContextManager[Bench]]
"""Opens a store for as long as the context lasts."""


def new_task(task_type: str = "echo", payload_json: str = "{}", **fields: Any) -> NewTask:
    fields.setdefault("task_id", new_task_id())
    return NewTask(task_type=task_type, payload_json=payload_json, **fields)


def child_of(parent: Task, ordinal: int = 0, task_type: str = "echo", **fields: Any) -> NewChild:
    return NewChild(
        task=new_task(task_type, **fields),
        parent_id=parent.task_id,
        ordinal=ordinal,
        attempt=parent.attempt,
        worker_id=parent.worker_id or "",
    )


async def family_life(bench: Bench) -> None:
    """All that can happen to a family."""
    store = bench.store
    parent = await bench.running()
    children = [child_of(parent, n) for n in range(3)]
    await store.spawn(children)
    await store.spawn([child_of(parent, 0), child_of(parent, 3, "capped")])
    running = await bench.claim(children[0].task.task_id)
    await store.spawn([child_of(running)])
    await store.find(TaskFilter(parent_id=parent.task_id), None, 5)
    await store.ended([child.task.task_id for child in children])
    await bench.finish(parent, Status.FAILED, retry_in=100.0)
    await store.cancel([parent.task_id])
    assert await store.settle(10)
    assert await store.cancel_children([parent.task_id], 100)
    await bench.finish(running, Status.CANCELLED)
    assert "1 child ended with it" in (await bench.logs(running.task_id))[-1].message
    assert await store.settle(10)


def outcome(task: Task, status: Status, **fields: Any) -> Outcome:
    fields.setdefault("attempt", task.attempt)
    fields.setdefault("message", f"ended {status}")
    return Outcome(task_id=task.task_id, status=status, **fields)


async def failure_of(verb: Awaitable[object]) -> Exception | None:
    """What the verb raises, for errors whose class is the driver's own."""
    try:
        await verb
    except Exception as error:  # noqa: BLE001 - any error is the answer
        return error
    return None
