"""How tasks, log rows, workers, queues and types look in answers.

The types are what the OpenAPI document tells of the answers: a key that is not in them does not pass mypy.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

import msgspec
from msgspec import Meta

from atm.coordinator import Overview, WorkerInfo
from atm.store import LogRow
from atm.task import LogType, RetryStrategy, Status, Task, TaskType

_EPOCH = datetime(1970, 1, 1)  # in UTC, but without a zone that isoformat would spell +00:00

PendingReason = Literal[
    "scheduled", "retry_delay", "type_disabled", "no_worker", "type_at_cap", "no_free_slot", "queued"
]


def _text(description: str, **schema: Any) -> Meta:
    return Meta(description=description, extra_json_schema=schema or None)


_WHEN = {"type": "string", "format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
_MAYBE_WHEN = _WHEN | {"type": ["string", "null"]}

TaskId = Annotated[str, _text("UUID of version 7.", format="uuid")]
TaskTypeName = Annotated[str, _text("Which executor runs it.")]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, description="Seconds.")]


class AttemptError(TypedDict):
    """Why an attempt failed."""

    type: Annotated[str, Meta(description="Kind of the error.")]
    message: str
    retryable: bool
    group: NotRequired[Annotated[Any, _text("The tree, where several errors came together.", type="object")]]


class Progress(TypedDict):
    """As the executor reports it."""

    fraction: Annotated[float, Meta(ge=0, le=1)]
    message: str | None


class TaskView(TypedDict):
    """A task."""

    task_id: TaskId
    task_type: TaskTypeName
    status: Status
    priority: Annotated[Literal[-1, 0, 1], Meta(description="1 high, 0 normal, -1 low.")]
    payload: Annotated[Any, _text("As it was written at its creation.", type="object")]
    result: Annotated[Any, _text("What the executor returned, any JSON value; null unless SUCCESS.")]
    error: Annotated[
        AttemptError | None,
        Meta(description="Of the last failed attempt; or of this one, when it does not end (type Stuck)."),
    ]
    attempt: Annotated[int, Meta(ge=0, description="Attempts so far; never set back.")]
    retry_count: Annotated[int, Meta(ge=0, description="Attempts repeated after failures and timeouts.")]
    max_retry: Annotated[int, Meta(ge=0, description="Retries that it may have.")]
    timeout: Annotated[float, Meta(gt=0, description="Seconds that one attempt may take.")]
    worker_id: Annotated[str | None, Meta(description="Who runs it, or ran it when it ended.")]
    recoveries: Annotated[int, Meta(ge=0, description="Attempts repeated after a worker was lost.")]
    releases: Annotated[int, Meta(ge=0, description="Attempts repeated after a worker was stopped.")]
    cancel_requested_at: Annotated[Any, _text("When somebody first asked for its end.", **_MAYBE_WHEN)]
    scheduled_at: Annotated[Any, _text("The time asked for, by scheduled_at or delay.", **_MAYBE_WHEN)]
    created_at: Annotated[Any, _text("When it was created.", **_WHEN)]
    started_at: Annotated[Any, _text("When the attempt began that runs or was the last.", **_MAYBE_WHEN)]
    completed_at: Annotated[Any, _text("When it ended.", **_MAYBE_WHEN)]
    progress: Annotated[Progress | None, Meta(description="As its executor reports it.")]
    parent_id: Annotated[Any, _text("Whose child it is.", type=["string", "null"], format="uuid")]
    pending_reason: NotRequired[
        Annotated[PendingReason, Meta(description="Why it waits: only while it is PENDING, and not in lists.")]
    ]


class TaskPage(TypedDict):
    """Tasks, newest first."""

    tasks: list[TaskView]
    next_cursor: Annotated[str | None, Meta(description="For the next page; null: there is no more.")]


class CreatedView(TypedDict):
    """A task that exists now."""

    task_id: TaskId


class CreatedBatch(TypedDict):
    """Tasks that exist now, in the order of the request."""

    task_ids: Annotated[list[TaskId], Meta(min_length=1)]


class LogView(TypedDict):
    """A row of a task's log."""

    log_type: LogType
    from_status: Annotated[Status | None, Meta(description="null at its creation, and in ERROR and INFO rows.")]
    to_status: Annotated[Status | None, Meta(description="null in ERROR and INFO rows.")]
    message: str
    created_at: Annotated[Any, _text("When it was written.", **_WHEN)]
    worker_id: NotRequired[str]
    attempt: NotRequired[Count]


class WorkerView(TypedDict):
    """A worker."""

    id: str
    name: str
    address: Annotated[str, Meta(description="Where its node serves the API; empty if it does not.")]
    capacity: Annotated[int, Meta(ge=0, description="Slots.")]
    current_load: Annotated[int, Meta(ge=0, description="Slots that are taken.")]
    supported_types: list[str]
    draining: Annotated[bool, Meta(description="It takes no more tasks.")]
    last_heartbeat: Annotated[Any, _text("When it was last heard.", **_WHEN)]


class QueueView(TypedDict):
    """One of the queues."""

    name: Literal["high", "normal", "low"]
    length: Annotated[int, Meta(ge=0, description="Tasks that are due.")]
    parked: Annotated[int, Meta(ge=0, description="Those of them that nothing can run now.")]
    oldest_age: Seconds


class QueuesView(TypedDict):
    """What waits."""

    queues: list[QueueView]
    delayed: Annotated[int, Meta(ge=0, description="Tasks whose time has not come.")]


class TaskTypeView(TypedDict):
    """Settings of a task type."""

    task_type: str
    default_timeout: Annotated[float, Meta(gt=0)]
    default_max_retry: Count
    retry_strategy: RetryStrategy
    retry_delay: Seconds
    backoff_rate: Annotated[float, Meta(ge=1)]
    max_concurrent: Annotated[int | None, Meta(description="null: no cap.")]
    enabled: bool


class Alive(TypedDict):
    """Said by whoever answers."""

    status: Literal["alive"]


class Ready(TypedDict):
    """Said by whoever should get requests."""

    status: Literal["ready"]


def when(ms: int | None) -> str | None:
    """RFC 3339 in UTC with milliseconds, ending in Z."""
    if ms is None:
        return None
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds") + "Z"


def raw(text: str | None) -> msgspec.Raw | None:
    """Stored JSON text, put into the answer as it is."""
    return None if text is None else msgspec.Raw(text.encode())


def task(found: Task) -> TaskView:
    return {
        "task_id": found.task_id,
        "task_type": found.task_type,
        "status": found.status,
        "priority": cast("Any", found.priority),
        "payload": raw(found.payload_json),
        "result": raw(found.result_json),
        "error": cast("Any", raw(found.error_json)),
        "attempt": found.attempt,
        "retry_count": found.retry_count,
        "max_retry": found.max_retry,
        "timeout": found.timeout,
        "worker_id": found.worker_id,
        "recoveries": found.recoveries,
        "releases": found.releases,
        "cancel_requested_at": when(found.cancel_requested_ms),
        "scheduled_at": when(found.scheduled_ms),
        "created_at": when(found.created_ms),
        "started_at": when(found.started_ms),
        "completed_at": when(found.completed_ms),
        "progress": cast("Any", raw(found.progress_json)),
        "parent_id": found.parent_id,
    }


def log_row(row: LogRow) -> LogView:
    view: LogView = {
        "log_type": row.log_type,
        "from_status": row.from_status,
        "to_status": row.to_status,
        "message": row.message,
        "created_at": when(row.created_ms),
    }
    if row.worker_id is not None:
        view["worker_id"] = row.worker_id
    if row.attempt is not None:
        view["attempt"] = row.attempt
    return view


def worker(info: WorkerInfo) -> WorkerView:
    return {
        "id": info.id,
        "name": info.name,
        "address": info.address,
        "capacity": info.capacity,
        "current_load": info.load,
        "supported_types": sorted(info.task_types),
        "draining": info.draining,
        "last_heartbeat": when(round(info.last_seen * 1000)),
    }


def queues(overview: Overview) -> QueuesView:
    return {
        "queues": [
            {
                "name": cast("Any", queue.name),
                "length": queue.length,
                "parked": queue.parked,
                "oldest_age": round(queue.oldest_age, 3),
            }
            for queue in overview.queues
        ],
        "delayed": overview.delayed,
    }


def task_type(settings: TaskType) -> TaskTypeView:
    return cast("TaskTypeView", msgspec.structs.asdict(settings))
