"""How tasks, log rows and workers look in answers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from atm.coordinator import WorkerInfo
from atm.store import LogRow
from atm.task import Task, TaskType

_EPOCH = datetime(1970, 1, 1)  # in UTC, but without a zone that isoformat would spell +00:00


def when(ms: int | None) -> str | None:
    """RFC 3339 in UTC with milliseconds, ending in Z."""
    if ms is None:
        return None
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds") + "Z"


def raw(text: str | None) -> msgspec.Raw | None:
    """Stored JSON text, put into the answer as it is."""
    return None if text is None else msgspec.Raw(text.encode())


def task(found: Task) -> dict[str, Any]:
    return {
        "task_id": found.task_id,
        "task_type": found.task_type,
        "status": found.status,
        "priority": found.priority,
        "payload": raw(found.payload_json),
        "result": raw(found.result_json),
        "error": raw(found.error_json),
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
        "progress": raw(found.progress_json),
    }


def log_row(row: LogRow) -> dict[str, Any]:
    view: dict[str, Any] = {
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


def worker(info: WorkerInfo) -> dict[str, Any]:
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


def task_type(settings: TaskType) -> dict[str, Any]:
    return msgspec.structs.asdict(settings)
