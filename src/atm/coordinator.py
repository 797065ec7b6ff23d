"""CONTRACT: the coordinator, which brings tasks, workers and messages together.

Everything here is a hint: losing, repeating or reordering any of it may cost time, never truth (the store
judges). So no verb raises for an outage; it returns as if the message had been lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
import trio

from atm.task import Status


class Hint(msgspec.Struct, frozen=True, gc=False):
    """Says that a task waits to be run. ``delay``: seconds until it is due."""

    task_id: str
    task_type: str
    priority: int
    delay: float = 0.0


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as registered. ``load`` counts busy slots, ``last_seen`` is seconds since 1970."""

    id: str
    name: str
    address: str
    capacity: int
    load: int
    task_types: frozenset[str]
    last_seen: float
    draining: bool = False


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """``length`` counts tasks ready to run, ``parked`` those of them that nothing can run now.

    ``oldest_age`` is seconds that the head has waited.
    """

    name: str
    length: int
    parked: int
    oldest_age: float


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """What waits and who works.

    ``queues``: high, normal, low. ``delayed`` counts hints that wait for their time.
    """

    queues: list[QueueInfo]
    delayed: int
    workers: list[WorkerInfo]


class CancelRequest(msgspec.Struct, frozen=True, gc=False):
    task_id: str
    attempt: int


class TaskEvent(msgspec.Struct, frozen=True, gc=False):
    """``status``: the state the task has come to; PENDING means created."""

    task_id: str
    status: Status


class Balance(Protocol):
    """A load-balance strategy: chooses among workers that support the task and have a free slot."""

    def choose(self, hint: Hint, workers: Sequence[WorkerInfo]) -> WorkerInfo: ...


class Coordinator(Protocol):
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started when usable."""
        ...

    async def lead(self, candidate: str, duties: Callable[[], Awaitable[None]]) -> None:
        """Run ``duties`` inside a scope whenever, and only while, this node leads. Runs until cancelled."""
        ...

    async def away(self) -> None:
        """Return when messages have not got through for more than a second; at once while that lasts."""
        ...

    async def back(self) -> None:
        """Return when messages get through again after an outage; at once when there is none.

        What was said during the outage is lost.
        """
        ...

    async def has_forgotten(self) -> bool:
        """Whether the queues were lost (or are new) and have to be filled from the store. For the leader."""
        ...

    async def begin_rebuild(self) -> None:
        """Drop what is left in the queues; they are about to be filled from the store."""
        ...

    async def end_rebuild(self) -> None:
        """The queues are filled: from now on they are remembered."""
        ...

    def leader(self) -> str | None:
        """Who leads, as far as this node knows."""
        ...

    # queues

    async def push(self, hints: Sequence[Hint]) -> None:
        """Queue tasks by priority; delayed ones join their queue when due.

        A hint that is queued twice costs a refused claim; an implementation may leave the second one out.
        """
        ...

    async def requeue(self, hints: Sequence[Hint]) -> int:
        """Queue those of these due tasks that do not wait here already; how many did not.

        Where finding out would cost much they may be taken for waiting.
        """
        ...

    async def withdraw(self, hints: Sequence[Hint]) -> None:
        """These tasks do not wait any more: their hints are dropped where they are cheap to find.

        A hint that stays is refused at the claim.
        """
        ...

    async def overview(self) -> Overview | None:
        """What waits and who works; None when that cannot be learned now."""
        ...

    async def changed(self) -> None:
        """Return when another dispatch may move something: a push, a due time, a slot, a worker."""
        ...

    async def dispatch(self, balance: Balance, limit: int) -> int:
        """Hand up to ``limit`` waiting tasks to free slots, high before normal before low; how many.

        What cannot run now (no worker for its type, type blocked) holds up nothing behind it.
        """
        ...

    # workers

    async def register(self, worker: WorkerInfo) -> None:
        """Announce a worker, or its new load, or that it drains."""
        ...

    async def unregister(self, worker_id: str) -> None:
        """The worker is gone; what was handed to it goes back to the heads of the queues."""
        ...

    async def take(self, worker_id: str) -> list[Hint]:
        """All that was handed to this worker; waits until there is something."""
        ...

    async def settle(self, worker_id: str, hints: Sequence[Hint], load: int) -> None:
        """These taken hints are dealt with (claimed or dropped); ``load`` slots are busy now."""
        ...

    async def block(self, worker_id: str, hints: Sequence[Hint]) -> None:
        """The store refused these taken hints because their type is disabled or at its cap: they wait."""
        ...

    async def unblock(self, task_type: str, room: int | None) -> None:
        """``room`` more tasks of the type may run (a capped one ended); None: as many as there are slots."""
        ...

    # messages

    async def request_cancel(self, worker_id: str, request: CancelRequest) -> None:
        """Tell that worker to end the run."""
        ...

    async def listen_cancels(
        self,
        worker_id: str,
        deliver: Callable[[CancelRequest], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call ``deliver`` with each request for this worker, until cancelled; started when subscribed."""
        ...

    async def publish(self, events: Sequence[TaskEvent]) -> None: ...

    async def listen_events(
        self,
        deliver: Callable[[Sequence[TaskEvent]], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call ``deliver`` with the ends that any node publishes, in batches, until cancelled.

        What else this node publishes is delivered too. Started when subscribed.
        """
        ...
