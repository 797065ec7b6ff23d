"""A small node without HTTP: real store, coordinator, worker and supervisor, on a virtual clock."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import trio

from atm import families
from atm.context import Context
from atm.coordinator import Balance, CancelRequest, Hint, Overview, TaskEvent
from atm.coordinators.local import LocalCoordinator
from atm.errors import StoreUnavailable
from atm.executor import Executor
from atm.health import Health
from atm.metrics import Metrics
from atm.nursery import balance
from atm.nursery.run import Run, attempt
from atm.nursery.supervisor import Parts, supervise
from atm.nursery.worker import Worker
from atm.store import CancelVerdict, Lease, LogRow, NewTask, Note, Outcome, Store
from atm.stores.sqlite import SqliteStore
from atm.task import Status, Task, TaskType, legal_path, new_task_id

EPOCH_MS = 1_700_000_000_000
LOOKS = (0.01, 0.2)
"""Virtual seconds between two looks: at first, and at the most."""

Body = Callable[[Context, Task], Awaitable[Any]]


def virtual_now() -> int:
    return EPOCH_MS + round(trio.current_time() * 1000)


def sleeping(seconds: float) -> Body:
    """An executor's function that takes so long."""

    async def body(ctx: Context, task: Task) -> None:
        await trio.sleep(seconds)

    return body


class Scripted(Executor):
    """An executor whose types and function are given by the test."""

    type = "scripted"

    def __init__(self, body: Body, *task_types: str) -> None:
        self.supported_task_types = task_types
        self._body = body

    async def execute(self, ctx: Context, task: Task) -> Any:
        return await self._body(ctx, task)


class AttemptKit:
    """Makes attempts without store and worker, as the worker would."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    async def note(self, note: Note) -> None:
        await trio.lowlevel.checkpoint()
        self.notes.append(note)

    def run(
        self,
        body: Body | Executor,
        *,
        payload: object = None,
        timeout: float = 300.0,
        retry_count: int = 0,
        max_retry: int = 3,
        settings: TaskType | None = None,
        cleanup_budget: float = 5.0,
    ) -> Run:
        task = Task(
            task_id=new_task_id(),
            task_type="x",
            status=Status.PROCESSING,
            priority=0,
            payload_json=json.dumps({} if payload is None else payload),
            timeout=timeout,
            max_retry=max_retry,
            attempt=retry_count + 1,
            retry_count=retry_count,
            recoveries=0,
            releases=0,
            worker_id="w1",
            created_ms=EPOCH_MS,
            due_ms=EPOCH_MS,
            scheduled_ms=None,
            started_ms=EPOCH_MS,
            completed_ms=None,
            cancel_requested_ms=None,
            result_json=None,
            error_json=None,
            progress_json=None,
        )
        executor = body if isinstance(body, Executor) else Scripted(body, "x")
        run = Run(task, settings or TaskType(task_type="x"), executor, trio.current_time())
        run.context = Context(task, "w1", run.scope, self.note, cleanup_budget)
        return run

    async def end_of(self, run: Run) -> Outcome:
        """The outcome, told exactly once."""
        ended: list[Run] = []
        await attempt(run, ended.append)
        assert ended == [run]
        return run.outcome

    async def outcome(self, body: Body | Executor, **how: Any) -> Outcome:
        return await self.end_of(self.run(body, **how))

    async def outcome_when_cancelled(self, body: Body | Executor, after: float = 1.0, **how: Any) -> Outcome:
        """A user cancels the run ``after`` that many seconds."""
        run = self.run(body, **how)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_later, run, after)
            return await self.end_of(run)


async def _cancel_later(run: Run, after: float) -> None:
    await trio.sleep(after)
    run.cancel()


VERBS = frozenset(
    name for name, verb in vars(Store).items() if callable(verb) and not name.startswith("_") and name != "run"
)


class Cuttable(LocalCoordinator):
    """The real coordinator behind a line that may be cut: what is said then is lost, nothing is handed out."""

    def __init__(self) -> None:
        super().__init__()
        self._is_cut = False
        self._turned = trio.Event()
        self.deaf = False  # no event is heard

    async def publish(self, events: Sequence[TaskEvent]) -> None:
        if not self.deaf:
            await super().publish(events)

    def cut(self, is_cut: bool) -> None:
        self._is_cut = is_cut
        self._turned.set()
        self._turned = trio.Event()

    async def away(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._is_cut:
            await self._turned.wait()

    async def back(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._is_cut:
            await self._turned.wait()

    async def push(self, hints: Sequence[Hint]) -> None:
        if not self._is_cut:
            await super().push(hints)

    async def withdraw(self, hints: Sequence[Hint]) -> None:
        if not self._is_cut:
            await super().withdraw(hints)

    async def dispatch(self, balance: Balance, limit: int) -> int:
        return 0 if self._is_cut else await super().dispatch(balance, limit)

    async def request_cancel(self, worker_id: str, request: CancelRequest) -> None:
        if not self._is_cut:
            await super().request_cancel(worker_id, request)


class Fickle:
    """The real store behind a line that may be down.

    Attributes:
        away: verbs that raise StoreUnavailable before they reach the store; "all" stands for each.
        deaf: verbs that are carried out, but whose answer is lost.
        broken: what a verb raises instead of being carried out.
        calls: how often each verb was asked for.
        on_the_way: what happens between a verb's end and the moment its caller hears of it.
        lease_lasts: seconds that a lease lasts from its last renewal; with SQLite alone it would last for ever.
        renewing_takes: seconds.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away: set[str] = set()
        self.deaf: set[str] = set()
        self.broken: dict[str, Exception] = {}
        self.calls: dict[str, int] = {}
        self.on_the_way: dict[str, Callable[[], Awaitable[None]]] = {}
        self.lease_lasts = math.inf
        self.renewing_takes = 0.0
        self._lease_ends: dict[Lease, float] = {}

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)
        if name not in VERBS:
            return verb

        async def over_the_line(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in self.broken:
                raise self.broken[name]
            if self.away & {name, "all"}:
                await trio.lowlevel.checkpoint()
                raise StoreUnavailable("the line is down")
            answer = await verb(*args, **kwargs)
            if name == "register":
                self._lease_ends[answer] = trio.current_time() + self.lease_lasts
            if name == "renew":
                await trio.sleep(self.renewing_takes)
                answer = min(answer, self._renewed(args[0]))
            if name in self.on_the_way:
                await self.on_the_way.pop(name)()
            if name in self.deaf:
                raise StoreUnavailable("the answer was lost")
            return answer

        return over_the_line

    def _renewed(self, lease: Lease) -> float:
        if trio.current_time() >= self._lease_ends[lease]:
            return 0.0
        self._lease_ends[lease] = trio.current_time() + self.lease_lasts
        return self.lease_lasts


def _exit(code: int) -> None:
    raise AssertionError(f"the process would end with exit code {code}")


class Bench:
    """A node without HTTP. Tasks are submitted and cancelled as the API does it."""

    def __init__(self, path: Path, executors: Sequence[Executor], settings: dict[str, Any]) -> None:
        given = {"capacity": 10, "grace": 30.0, "cleanup_budget": 5.0, "retention": None} | settings
        self.store = Fickle(SqliteStore(path, now=virtual_now, inline=True))
        self.coordinator = Cuttable()
        self.metrics = Metrics()
        self.metrics.watch(self.coordinator, "w1")
        self.health = Health()
        self.stop = trio.Event()
        self.worker = Worker(
            cast("Store", self.store),
            self.coordinator,
            self.metrics,
            {name: executor for executor in executors for name in executor.supported_task_types},
            worker_id="w1",
            name="one",
            address="",
            capacity=given["capacity"],
            cleanup_budget=given["cleanup_budget"],
        )
        self.parts = Parts(
            store=cast("Store", self.store),
            coordinator=self.coordinator,
            metrics=self.metrics,
            health=self.health,
            worker=self.worker if given.get("works", True) else None,
            balance=balance.load("least_task") if given.get("leads", True) else None,
            leader_id="w1",
            scan_interval=1.0,
            batch_size=500,
            heartbeat_interval=given.get("heartbeat_interval", 2.5),
            grace=given["grace"],
            retention=given["retention"],
            servers=given.get("servers", []),
            executors=list(executors),
            closing_budget=given["cleanup_budget"],
            exit_process=given.get("exit_process", _exit),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        """The node, drained at the end of the block."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve)
            yield self
            self.stop.set()

    @contextlib.asynccontextmanager
    async def crashing(self) -> AsyncIterator[Bench]:
        """The node, gone at the end of the block without a goodbye."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve)
            yield self
            self.store.away.add("all")
            nursery.cancel_scope.cancel(reason="crash")

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await supervise(self.parts, self.stop, task_status)

    @contextlib.asynccontextmanager
    async def store_alone(self) -> AsyncIterator[Fickle]:
        """The store while no node runs."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.store.run)
            yield self.store
            nursery.cancel_scope.cancel()

    async def submit(self, task_type: str, *, hint: bool = True, **fields: Any) -> str:
        """Create a task. ``hint`` False: the message to the queue is lost."""
        fields.setdefault("payload_json", "{}")
        task = NewTask(task_id=new_task_id(), task_type=task_type, **fields)
        (created,) = await self.store.create([task])
        if hint:
            told = Hint(task.task_id, task_type, task.priority, created.due_in)
            await self.coordinator.push([told])
        return task.task_id

    async def cancel(self, task_id: str, *, message: bool = True) -> CancelVerdict:
        """Cancel a task. ``message`` False: the message to its worker is lost."""
        (verdict,) = await self.store.cancel([task_id])
        if verdict.worker_id is not None and message:
            await self.coordinator.request_cancel(verdict.worker_id, CancelRequest(task_id, verdict.attempt))
        if verdict.children and message:
            await families.cancel_children(cast("Store", self.store), self.coordinator, [task_id])
        return cast("CancelVerdict", verdict)

    async def configure(self, task_type: str, **settings: Any) -> None:
        await self.store.change_task_type(task_type, settings)
        await self.coordinator.unblock(task_type, None)

    async def get(self, task_id: str) -> Task:
        task = await self.store.get(task_id)
        assert task is not None
        return cast("Task", task)

    async def overview(self) -> Overview:
        return await self.coordinator.overview()

    async def until_attempt(self, task_id: str, number: int) -> None:
        """Return when that attempt of the task runs."""
        with trio.fail_after(60):
            while (task := await self.get(task_id)).status is not Status.PROCESSING or task.attempt != number:
                await trio.sleep(LOOKS[0])

    async def until(self, task_id: str, *statuses: Status, within: float = 3600.0) -> Task:
        """The task as soon as it is in one of the states, by default when it has ended."""
        pause, longest = LOOKS
        with trio.fail_after(within):
            while True:
                task = await self.get(task_id)
                if task.status in statuses or (not statuses and task.is_terminal):
                    return task
                await trio.sleep(pause)
                pause = min(pause * 1.1, longest)

    async def log(self, task_id: str) -> list[LogRow]:
        """The task's log; it is a legal path that ends in the row's state."""
        rows = cast("list[LogRow]", await self.store.logs(task_id))
        ended_in = legal_path((row.from_status, row.to_status) for row in rows)
        assert ended_in is (await self.get(task_id)).status
        return rows

    async def messages(self, task_id: str) -> list[str]:
        return [row.message for row in await self.log(task_id)]

    async def metric(self, name: str, **labels: str) -> float | None:
        """A sample of the page that Prometheus gets."""
        await self.metrics.render()
        return self.metrics.registry.get_sample_value(name, labels)


MakeBench = Callable[..., Bench]
