"""Families under whatever happens: no task ends before its children, and every one of them ends."""

from __future__ import annotations

import random

import pytest

from atm.store import Outcome, SpawnState, TaskFilter
from atm.task import Status, Task
from contracts.bench import Bench, child_of, outcome

STEPS = 200
WORKERS = ("worker-1", "worker-2")


class Clan:
    """Tasks, their children and theirs, driven at random by two workers that may be lost."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.random = random.Random(seed)
        self.ids: list[str] = []
        self.running: dict[str, Task] = {}
        self.spawned: dict[tuple[str, int], int] = {}

    async def create(self) -> None:
        if len(self.ids) < 60:
            self.ids.append(await self.bench.create(timeout=self.random.choice([30, 300])))

    async def claim(self) -> None:
        worker = self.random.choice(WORKERS)
        task_id = self.random.choice(self.ids)
        if await self.bench.claims([task_id], worker) == ["claimed"]:
            task = await self.bench.get(task_id)
            self.running[task_id] = task

    async def spawn(self) -> None:
        if not self.running or len(self.ids) > 80:
            return
        parent = self.random.choice(list(self.running.values()))
        key = (parent.task_id, parent.attempt)
        ordinal = self.spawned.get(key, 0)
        [spawned] = await self.bench.store.spawn([child_of(parent, ordinal)])
        if spawned.state not in (SpawnState.STALE, SpawnState.CANCELLED):
            self.spawned[key] = ordinal + 1
            if spawned.task_id not in self.ids:
                assert spawned.state is SpawnState.CREATED
                self.ids.append(spawned.task_id)

    def _end(self, task: Task) -> Outcome:
        status = self.random.choice([Status.SUCCESS, Status.FAILED, Status.TIMEOUT, Status.PENDING])
        retries = status in (Status.FAILED, Status.TIMEOUT) and self.random.random() < 0.5
        return outcome(task, status, retry_in=self.random.choice([0.0, 40.0]) if retries else None)

    async def finish(self) -> None:
        for task in self.random.sample(list(self.running.values()), min(2, len(self.running))):
            [verdict] = await self.bench.store.finish(
                await self.bench.lease(task.worker_id or ""), [self._end(task)]
            )
            if not verdict.children:
                del self.running[task.task_id]

    async def cancel(self) -> None:
        await self.bench.store.cancel([self.random.choice(self.ids)])

    async def cancel_children(self) -> None:
        task = await self.bench.get(self.random.choice(self.ids))
        if task.cancel_requested_ms is not None:
            await self.bench.store.cancel_children([task.task_id], self.random.choice([1, 100]))

    async def settle(self) -> None:
        await self.bench.store.settle(10)

    async def lose(self) -> None:
        if self.random.random() < 0.3:
            await self.bench.lose(self.random.choice(WORKERS))
            await self.bench.store.recover(100)

    async def wait(self) -> None:
        await self.bench.advance(self.random.choice([0.5, 5, 50]))

    async def step(self) -> None:
        does = [
            self.create, self.claim, self.claim, self.claim, self.spawn, self.spawn, self.finish, self.finish,
            self.spawn, self.spawn, self.claim, self.cancel, self.cancel_children, self.settle, self.lose,
            self.wait,
        ]  # fmt: skip
        await self.random.choice(does)()

    async def check(self) -> None:
        tasks = {task.task_id: task for task in await self.bench.store.find(TaskFilter(), None, 500)}
        for task in tasks.values():
            if task.parent_id is not None and not task.is_terminal:
                assert not tasks[task.parent_id].is_terminal, (task, tasks[task.parent_id])
            if task.status is Status.PENDING:
                assert task.cancel_requested_ms is None

    async def end_all(self) -> None:
        """All workers are lost, and everything is cancelled."""
        for worker in WORKERS:
            await self.bench.lose(worker)
        await self.bench.store.recover(100)
        await self.bench.store.cancel(self.ids)
        for _ in range(10):
            await self.bench.store.settle(100)
        assert await self.bench.store.ended(self.ids) == set(self.ids)
        for task_id in self.ids:
            await self.bench.steps(task_id)


@pytest.mark.parametrize("seed", range(4))
async def test_a_family_ends_from_below_whatever_happens(bench: Bench, seed: int) -> None:
    for worker in WORKERS:
        await bench.lease(worker)
    clan = Clan(bench, seed)
    await clan.create()
    for _ in range(STEPS):
        await clan.step()
        await clan.check()
    assert len(clan.spawned) > 2, "there are families"
    await clan.end_all()
    await clan.check()
