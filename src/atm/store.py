"""CONTRACT: the store, where the truth about every task lives.

Each verb is one transition of ``docs/protocol.md``, takes a batch and runs in one transaction; the log rows
of a transition are written in the same one. The store judges: it answers row by row, in the order asked,
whose write counted. Concurrent calls of any verb may share a transaction; a call's own data error fails
that call alone, and no call waits longer than the commit under way.

A verb that raises StoreUnavailable has decided nothing that the caller may rely on: ask again. Waiting for
a verb can be cancelled at any time without harm to the batch; whether it was carried out is then unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

import msgspec
import trio

from atm.task import LogType, Status, Task, TaskType


class NewTask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A task to be created.

    ``timeout`` (seconds) and ``max_retry`` None take the type's default. It is due ``delay`` seconds after
    the store's now, or at ``scheduled_ms`` (milliseconds since 1970), or at once.
    """

    task_id: str
    task_type: str
    payload_json: str
    priority: int = 0
    timeout: float | None = None
    max_retry: int | None = None
    delay: float | None = None
    scheduled_ms: int | None = None
    idempotency_key: str | None = None


class Created(msgspec.Struct, frozen=True, gc=False):
    """``replayed``: the idempotency key was known; ``task_id`` is the existing task's.

    ``due_in`` is seconds from now by the store's clock, 0 when the task may run at once.
    """

    task_id: str
    replayed: bool = False
    due_in: float = 0.0


class NewChild(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A task that a running one starts: its ``ordinal``-th child, counted from 0 in each attempt of the parent."""

    task: NewTask
    parent_id: str
    ordinal: int
    attempt: int
    worker_id: str


class SpawnState(StrEnum):
    CREATED = "created"
    JOINED = "joined"  # a former attempt of the parent started it: it runs, or its outcome counts
    REOPENED = "reopened"  # a former attempt started it, and it ended without success: it runs again
    CONFLICT = "conflict"  # the child of that ordinal has another type or payload
    CAPPED = "capped"  # its type has a cap, and an ancestor of this type would hold the slot it waits for
    CANCELLED = "cancelled"  # the parent is to be cancelled
    STALE = "stale"  # that attempt of the parent does not run any more


class Spawned(msgspec.Struct, frozen=True, gc=False):
    """The verdict on a NewChild; ``task_id`` is the child's, empty where there is none."""

    state: SpawnState
    task_id: str = ""


class Lease(msgspec.Struct, frozen=True):
    """A worker's right to claim and run: one row of the registry. ``epoch`` grows with each registration."""

    worker_id: str
    epoch: int


class Refusal(StrEnum):
    """Why a claim was refused."""

    GONE = "gone"  # not pending any more, or unknown: drop the hint
    NOT_DUE = "not_due"  # its time has not come
    BLOCKED = "blocked"  # its type is disabled or at its cap
    NO_LEASE = "no_lease"  # the lease that claims is over
    EXPIRED = "expired"  # its parent's deadline has passed: it is TIMEOUT now


class Claimed(msgspec.Struct, frozen=True, gc=False):
    task: Task
    settings: TaskType


class Refused(msgspec.Struct, frozen=True, gc=False):
    reason: Refusal
    due_in: float = 0.0


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """How the end of a cancelled run went.

    ``took`` is seconds from the cancel's arrival at the node to the executor's end, by the node's clock;
    ``ended_clock`` that end by ``time.monotonic``; ``reaped`` the words for what had to be ended with it.
    """

    took: float
    ended_clock: float
    reaped: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How one attempt ended.

    ``status`` is SUCCESS, FAILED, TIMEOUT or CANCELLED; PENDING means released (drain, lease lost), which
    costs the task nothing. ``retry_in`` (seconds) asks for another attempt after FAILED or TIMEOUT.
    ``details`` goes into an ERROR row of the log; ``receipt`` into the row of a CANCELLED.
    """

    task_id: str
    attempt: int
    status: Status
    message: str
    result_json: str | None = None
    error_json: str | None = None
    details: str | None = None
    progress_json: str | None = None
    retry_in: float | None = None
    receipt: Receipt | None = None


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The verdict on an Outcome: the state the task is in now; ``status`` None means stale, nothing written.

    ``children``: nothing written either, because the task has children that have not ended: ask again when
    they have. ``ended_with``: how many children were ended with it, as its log says, too.
    """

    status: Status | None
    due_in: float = 0.0
    children: bool = False
    ended_with: int = 0


class CancelState(StrEnum):
    CANCELLED = "cancelled"  # it is CANCELLED, now or before
    REQUESTED = "requested"  # it runs, or its children do; they have to be ended first
    TERMINAL = "terminal"  # SUCCESS, FAILED or TIMEOUT: too late
    UNKNOWN = "unknown"  # no such task


class CancelVerdict(msgspec.Struct, frozen=True, gc=False):
    """``worker_id`` None with REQUESTED: no worker has it; the leader ends it once its children have ended.

    ``children``: some that live are to be cancelled too, by ``cancel_children``.
    ``task_type``, ``priority``: of a task that was PENDING until now, as its hint has them.
    """

    state: CancelState
    status: Status | None = None
    worker_id: str | None = None
    attempt: int = 0
    changed: bool = False
    children: bool = False
    task_type: str | None = None
    priority: int = 0


class Settled(msgspec.Struct, frozen=True, gc=False):
    """A task without a worker that waited for its children to end; PROCESSING: it still does."""

    task_id: str
    task_type: str
    status: Status


class Reopened(msgspec.Struct, frozen=True, gc=False):
    """The verdict on a user's retry. ``task`` None: no such task; ``changed`` False: not in a state to retry."""

    task: Task | None
    changed: bool = False


class Recovered(msgspec.Struct, frozen=True, gc=False):
    """A task taken from a lost worker: PENDING again, or CANCELLED, or FAILED as poison.

    PROCESSING: it would be one of the latter two, but has children that have to end first; see ``settle``.
    """

    task_id: str
    task_type: str
    priority: int
    status: Status


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A PENDING task, as much of it as a hint needs. ``due_in`` is seconds, 0 when due."""

    task_id: str
    task_type: str
    priority: int
    due_in: float


class Held(msgspec.Struct, frozen=True, gc=False):
    """A PROCESSING row of one lease. ``age`` is seconds since it was claimed."""

    task_id: str
    attempt: int
    age: float
    cancel_requested: bool


class Note(msgspec.Struct, frozen=True, gc=False):
    """A row for a running task's log (INFO or ERROR), and/or its progress; ``error_json``: what is wrong with it.

    Written only while ``attempt`` is the one that runs; the end of the attempt puts its own error in that place.
    """

    task_id: str
    attempt: int
    worker_id: str
    message: str | None = None
    log_type: LogType = LogType.INFO
    progress_json: str | None = None
    error_json: str | None = None


class LogRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    log_id: int
    log_type: LogType
    from_status: Status | None
    to_status: Status | None
    message: str
    worker_id: str | None
    attempt: int | None
    created_ms: int


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """``created_after`` is inclusive, ``created_before`` exclusive, both milliseconds since 1970."""

    status: Status | None = None
    task_type: str | None = None
    worker_id: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    parent_id: str | None = None


class Position(msgspec.Struct, frozen=True, array_like=True):
    """Where a walk through the waiting tasks has come to; opaque outside the store."""

    priority: int
    sweep_ms: int
    after: int | str


class Store(Protocol):
    """About twenty verbs. All raise StoreUnavailable; all may be called from many tasks at once."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started when the store is open. Raises StoreDamaged when it must stop."""
        ...

    # transitions

    async def create(self, tasks: Sequence[NewTask]) -> list[Created]:
        """null → PENDING, all of the call or none. Raises IdempotencyConflict."""
        ...

    async def spawn(self, children: Sequence[NewChild]) -> list[Spawned]:
        """null → PENDING for children of running tasks; or find those that former attempts have started.

        A child is due by the deadline of the attempt that started or found it last.
        """
        ...

    async def claim(self, lease: Lease, task_ids: Sequence[str]) -> list[Claimed | Refused]:
        """PENDING → PROCESSING with attempt + 1, within the caps of the types."""
        ...

    async def finish(self, lease: Lease, outcomes: Sequence[Outcome]) -> list[Finished]:
        """PROCESSING → the outcome's state, if its attempt is still the one that runs.

        Where a cancel was requested the task becomes CANCELLED, whatever the outcome. No task ends for good
        while a child of it lives: such an outcome is not written. Finishing the same
        attempt the same way twice is one finish: the second call answers like the first.
        """
        ...

    async def cancel(self, task_ids: Sequence[str]) -> list[CancelVerdict]:
        """PENDING → CANCELLED; a PROCESSING one is marked, for its worker to end.

        A PENDING one with living children becomes PROCESSING without a worker, for ``settle`` to end.
        """
        ...

    async def cancel_children(self, parents: Sequence[str], limit: int) -> dict[str, CancelVerdict]:
        """Cancel the living descendants of these tasks, about ``limit`` at a time; what became of those not asked
        before, by task id.

        Who still waits becomes CANCELLED (TIMEOUT where its parent's deadline has passed); who runs is marked,
        but for those that end by that deadline just now.
        """
        ...

    async def settle(self, limit: int) -> list[Settled]:
        """End tasks that have no worker and waited for their children; at most ``limit`` are looked at."""
        ...

    async def reopen(self, task_ids: Sequence[str]) -> list[Reopened]:
        """FAILED, TIMEOUT, CANCELLED → PENDING with fresh budgets; ``attempt`` goes on."""
        ...

    async def recover(self, limit: int) -> list[Recovered]:
        """PROCESSING rows whose lease is not alive → PENDING, CANCELLED or FAILED; at most ``limit``."""
        ...

    async def sweep(self, priorities: Sequence[int], limit: int) -> list[Waiting]:
        """Due PENDING tasks that nobody has claimed for a while; at most ``limit`` a priority.

        Each visit puts the next one off: 2 s after the due time, doubling to 60 s.
        """
        ...

    async def poll(self, lease: Lease, task_types: Sequence[str], limit: int) -> list[Claimed]:
        """Claim up to ``limit`` due tasks of these types without a hint, high priority first.

        For the time when no coordinator can be reached. What others hold locked is passed over.
        """
        ...

    async def note(self, notes: Sequence[Note]) -> None:
        """Write log rows and progress of running tasks; notes of stale attempts are dropped."""
        ...

    async def purge(self, older_than: float, limit: int) -> int:
        """Remove up to ``limit`` tasks that ended more than ``older_than`` seconds ago; how many were."""
        ...

    # leases and settings

    async def register(self, worker_id: str, capacity: int, task_types: Sequence[str]) -> Lease:
        """A new lease for this worker; its former ones are over.

        Raises: WorkerIdTaken while another process has a lease for this id, or has had one since this process had.
        """
        ...

    async def renew(self, lease: Lease) -> float:
        """Seconds, from the moment of asking, that the lease is good for; inf where it cannot be lost.

        0 means refused: it is over.
        """
        ...

    async def retire(self, lease: Lease) -> None:
        """End the lease: nothing of it runs any more."""
        ...

    async def expire(self) -> list[str]:
        """Take the leases that ran out for lost, for ``recover`` to act on; the ids of their workers.

        Nobody is lost within a lease's length after an outage of the store or a step of its clock.
        """
        ...

    async def campaign(self, candidate: str, seconds: float) -> bool:
        """Lead for so many seconds more, counted from the moment of asking; False while another one does.

        For the time when no coordinator can be reached.
        """
        ...

    async def change_task_type(self, task_type: str, changes: Mapping[str, Any]) -> TaskType:
        """Change these fields of the type's settings; the settings as they are then."""
        ...

    # reads

    async def ping(self) -> None:
        """Return when the store answers. Raises StoreUnavailable."""
        ...

    async def is_early(self, due_ms: int) -> bool:
        """Whether this moment is still to come, by the store's clock."""
        ...

    async def get(self, task_id: str) -> Task | None: ...

    async def ended(self, task_ids: Sequence[str]) -> set[str]:
        """Those of these tasks that are terminal or unknown."""
        ...

    async def logs(self, task_id: str) -> list[LogRow] | None:
        """The task's log in order; None when there is no such task."""
        ...

    async def find(self, where: TaskFilter, before: str | None, limit: int) -> list[Task]:
        """Newest first (by task_id), those after ``before``; payload, result and error included."""
        ...

    async def task_types(self) -> Mapping[str, TaskType]:
        """The types that somebody has configured."""
        ...

    async def running(self, task_type: str) -> int:
        """How many tasks of the type are PROCESSING."""
        ...

    async def waiting(self, after: Position | None, limit: int) -> tuple[list[Waiting], Position | None]:
        """A page of all PENDING tasks, high priority first; the position to go on from.

        Within a priority the oldest due come first, but for those that a sweep has put off.
        """
        ...

    async def held(self, lease: Lease) -> list[Held]:
        """The PROCESSING rows of this lease."""
        ...
