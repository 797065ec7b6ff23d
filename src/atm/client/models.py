"""What the server tells, as typed values. Times are aware, in UTC; durations are seconds.

Fields that a newer server adds are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NotRequired, Required, TypedDict

import msgspec

from atm.task import TERMINAL, RetryStrategy, Status


class NewTask(TypedDict, total=False):
    """One task of a bulk call; the fields are those of ``create_task``."""

    task_type: Required[str]
    priority: NotRequired[int]
    payload: NotRequired[Mapping[str, Any]]
    timeout: NotRequired[float | None]
    max_retry: NotRequired[int | None]
    delay: NotRequired[float | None]
    scheduled_at: NotRequired[datetime | str | None]
    idempotency_key: NotRequired[str | None]


class TaskError(msgspec.Struct, frozen=True, kw_only=True):
    """Why the last failed attempt failed. ``group`` is the tree of all errors, where several came together."""

    type: str
    message: str
    retryable: bool = True
    group: dict[str, Any] | None = None


class TaskProgress(msgspec.Struct, frozen=True, kw_only=True):
    """As its executor reports it; ``fraction`` is 0 to 1."""

    fraction: float
    message: str | None = None


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it was when the server answered; docs/api.md explains each field."""

    task_id: str
    task_type: str
    status: Status
    created_at: datetime
    priority: int = 0
    payload: dict[str, Any] = {}
    result: Any = None
    error: TaskError | None = None
    attempt: int = 0
    retry_count: int = 0
    max_retry: int = 0
    timeout: float = 0.0
    worker_id: str | None = None
    recoveries: int = 0
    releases: int = 0
    cancel_requested_at: datetime | None = None
    scheduled_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    progress: TaskProgress | None = None
    parent_id: str | None = None
    """The task that has started it as its child."""
    pending_reason: str | None = None
    """Why it waits: only while it is PENDING, and not in lists."""

    @property
    def is_ended(self) -> bool:
        """Whether it is SUCCESS, FAILED, TIMEOUT or CANCELLED."""
        return self.status in TERMINAL


class TaskLog(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a task's log; ``log_type`` is STATE_CHANGE, RETRY, ERROR or INFO."""

    log_type: str
    message: str
    created_at: datetime
    from_status: Status | None = None
    to_status: Status | None = None
    worker_id: str | None = None
    attempt: int | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page of tasks, newest first; ``next_cursor`` is None on the last."""

    tasks: list[Task]
    next_cursor: str | None = None

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """Who works; ``address`` is where its own node serves the API, empty if it does not."""

    id: str
    name: str
    last_heartbeat: datetime
    address: str = ""
    capacity: int = 0
    current_load: int = 0
    supported_types: list[str] = []
    draining: bool = False


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that are due; ``parked``: those of them that nothing can run now; ``oldest_age``: seconds."""

    name: str
    length: int
    parked: int = 0
    oldest_age: float = 0.0


class Queues(msgspec.Struct, frozen=True, kw_only=True):
    """What waits; ``delayed``: tasks whose time has not come."""

    queues: list[Queue]
    delayed: int = 0

    def __iter__(self) -> Iterator[Queue]:
        return iter(self.queues)


class TaskTypeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one task type; ``max_concurrent`` None means no cap."""

    task_type: str
    default_timeout: float = 300.0
    default_max_retry: int = 3
    retry_strategy: RetryStrategy = RetryStrategy.EXPONENTIAL
    retry_delay: float = 1.0
    backoff_rate: float = 2.0
    max_concurrent: int | None = None
    enabled: bool = True


@dataclass(frozen=True)
class Health:
    """What ``/livez`` or ``/readyz`` said; ``reason``: why not, or ``alive`` or ``ready``."""

    ok: bool
    reason: str


@dataclass(frozen=True)
class Progress:
    """How far a bulk call has come.

    ``done`` tasks of ``total`` (None when the tasks came from an iterator) are created; ``task_ids`` are the
    latest of them.
    """

    done: int
    total: int | None
    task_ids: list[str]
