"""Parents and children on one worker: starts children for its runs, and wakes the runs that wait for them.

A child may run on any node. That it has ended is told by an event; a look at the store, one for all who wait,
finds what no event has told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import trio

from atm.context import Context
from atm.coordinator import Coordinator, Hint, TaskEvent
from atm.errors import AtmError, SpawnRefused
from atm.flag import Flag
from atm.metrics import Metrics
from atm.nursery.patience import persist
from atm.nursery.slots import Slots
from atm.store import NewChild, NewTask, SpawnState, Store
from atm.task import TERMINAL, Status, Task

LOOK_INTERVAL = 2.0
"""Seconds between two looks at the store for the ends of children."""

LOOK_BATCH = 1000


class Family:
    """Implements ``atm.children.Family``.

    Args:
        slots: those of the worker, of which runs that wait lend theirs.
        slot_freed: is told when one has.
    """

    def __init__(
        self,
        store: Store,
        coordinator: Coordinator,
        metrics: Metrics,
        slots: Slots,
        slot_freed: Callable[[], None],
    ) -> None:
        self._store = store
        self._coordinator = coordinator
        self._metrics = metrics
        self._slots = slots
        self._slot_freed = slot_freed
        self._waiting: dict[str, set[trio.Event]] = {}
        self._to_look = Flag()
        self._to_listen = Flag()
        self._listening: trio.CancelScope | None = None

    # services

    async def listen(self) -> None:
        """Hear of the ends of children, while somebody waits for one: nodes without parents need not listen."""
        while True:
            await self._to_listen.wait()
            with trio.CancelScope() as self._listening:
                if self._waiting:
                    await self._coordinator.listen_events(
                        self._deliver, task_status=_Subscribed(self._to_look.set)
                    )
            self._listening = None

    async def look(self) -> None:
        """Look at the store, when a wait begins and now and then, for children that have ended."""
        while True:
            is_awake = self._waiting or self._listening is not None
            with trio.move_on_after(LOOK_INTERVAL if is_awake else math.inf) as patience:
                await self._to_look.wait()
            names = list(self._waiting)
            if not names and patience.cancelled_caught and self._listening is not None:
                self._listening.cancel()
            for at in range(0, len(names), LOOK_BATCH):
                ended = partial(self._store.ended, names[at : at + LOOK_BATCH])
                for task_id in await persist(ended, "look for the ends of children"):
                    self._tell(task_id)

    def _deliver(self, events: Sequence[TaskEvent]) -> None:
        if self._waiting:
            for event in events:
                if event.status in TERMINAL:
                    self._tell(event.task_id)

    def _tell(self, task_id: str) -> None:
        for ended in self._waiting.get(task_id, ()):
            ended.set()

    # for runs

    async def start(self, ctx: Context, ordinal: int, task: NewTask) -> str:
        child = NewChild(
            task=task, parent_id=ctx.task_id, ordinal=ordinal, attempt=ctx.attempt, worker_id=ctx.worker_id
        )
        (spawned,) = await persist(lambda: self._store.spawn([child]), "start a child")
        what = f"child {ordinal} of type {task.task_type}"
        match spawned.state:
            case SpawnState.CREATED:
                self._metrics.created(task.task_type, 1)
                await self._push(spawned.task_id, task, created=True)
            case SpawnState.REOPENED:
                await self._push(spawned.task_id, task)
            case SpawnState.CANCELLED:
                await trio.sleep_forever()  # the cancel is on its way, or comes with the next beat
            case SpawnState.STALE:
                raise AtmError(f"{what} cannot be started: this attempt does not run any more")
            case SpawnState.CONFLICT:
                raise SpawnRefused(
                    f"{what} cannot be started: task {spawned.task_id}, which an earlier attempt has started in "
                    "its place, has another type or payload"
                )
            case SpawnState.CAPPED:
                raise SpawnRefused(
                    f"{what} cannot be started: {task.task_type} has a max_concurrent, and this task or one above "
                    "it holds one of its slots until the child has ended"
                )
        return spawned.task_id

    async def _push(self, task_id: str, task: NewTask, *, created: bool = False) -> None:
        await self._coordinator.push([Hint(task_id, task.task_type, task.priority)])
        if created:
            await self._coordinator.publish([TaskEvent(task_id, Status.PENDING)])

    async def ended(self, ctx: Context, task_id: str) -> Task:
        lends = not ctx.slot_lent
        if lends:
            ctx.slot_lent = True
            self._slots.lend()
            self._slot_freed()
        try:
            await self._end(task_id)
        except BaseException:
            if ctx.slot_lent:
                ctx.slot_lent = False
                self._slots.take_back()
            raise
        if ctx.slot_lent:
            ctx.slot_lent = False
            await self._slots.go_on()
        task = await persist(lambda: self._store.get(task_id), "read a child")
        if task is None:
            raise AtmError(f"child {task_id} is gone: it ended longer ago than the retention keeps tasks")
        return task

    async def _end(self, task_id: str) -> None:
        ended = trio.Event()
        if not self._waiting:
            self._to_listen.set()
        self._waiting.setdefault(task_id, set()).add(ended)
        self._to_look.set()
        try:
            await ended.wait()
        finally:
            waiting = self._waiting[task_id]
            waiting.discard(ended)
            if not waiting:
                del self._waiting[task_id]


class _Subscribed(trio.TaskStatus[None]):
    """Calls a function when a service has started."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def started(self, value: object = None) -> None:
        self._then()
