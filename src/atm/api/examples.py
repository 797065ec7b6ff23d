"""Examples of bodies and answers for the documents; mypy holds those of answers to their types."""

from __future__ import annotations

from typing import Any

from atm.api import views
from atm.task import LogType, RetryStrategy, Status

TASK_ID = "0199d3f0-5b6e-7000-8a4c-3f1f2a9d7c11"
OTHER_ID = "0199d3f0-5b6e-7001-9b11-6a2d5c0e8f42"
WORKER = "my-host-4711"
REQUEST_ID = "0b7c1a3f5f5e4a0f9b1f0f6f7f0f2f6e"

NEW_TASK = {"task_type": "echo", "priority": 1, "payload": {"hello": "world"}}
NEW_TASKS = {
    "tasks": [
        {"task_type": "echo", "payload": {"n": 1}},
        {"task_type": "echo", "payload": {"n": 2}, "delay": 60},
    ]
}
SETTINGS: dict[str, Any] = {"max_concurrent": 2, "retry_strategy": "FIXED", "retry_delay": 5}

CREATED: views.CreatedView = {"task_id": TASK_ID}
CREATED_MANY: views.CreatedBatch = {"task_ids": [TASK_ID, OTHER_ID]}

TASK: views.TaskView = {
    "task_id": TASK_ID,
    "task_type": "echo",
    "status": Status.SUCCESS,
    "priority": 1,
    "payload": {"hello": "world"},
    "result": {"hello": "world"},
    "error": None,
    "attempt": 1,
    "retry_count": 0,
    "max_retry": 3,
    "timeout": 300.0,
    "worker_id": WORKER,
    "recoveries": 0,
    "releases": 0,
    "cancel_requested_at": None,
    "scheduled_at": None,
    "created_at": "2026-01-31T10:00:00.000Z",
    "started_at": "2026-01-31T10:00:00.002Z",
    "completed_at": "2026-01-31T10:00:00.003Z",
    "progress": None,
    "parent_id": None,
}

TASK_AGAIN: views.TaskView = {
    **TASK,
    "status": Status.PENDING,
    "result": None,
    "worker_id": None,
    "started_at": None,
    "completed_at": None,
}

PAGE: views.TaskPage = {"tasks": [TASK], "next_cursor": None}

LOG: list[views.LogView] = [
    {
        "log_type": LogType.STATE_CHANGE,
        "from_status": None,
        "to_status": Status.PENDING,
        "message": "Task created",
        "created_at": "2026-01-31T10:00:00.000Z",
    },
    {
        "log_type": LogType.STATE_CHANGE,
        "from_status": Status.PENDING,
        "to_status": Status.PROCESSING,
        "message": "Task assigned to worker",
        "created_at": "2026-01-31T10:00:00.002Z",
        "worker_id": WORKER,
        "attempt": 1,
    },
]

WORKERS: list[views.WorkerView] = [
    {
        "id": WORKER,
        "name": WORKER,
        "address": "http://127.0.0.1:8080",
        "capacity": 100,
        "current_load": 1,
        "supported_types": ["echo", "send_email", "sleep"],
        "draining": False,
        "last_heartbeat": "2026-01-31T10:00:00.000Z",
    }
]

QUEUES: views.QueuesView = {
    "queues": [
        {"name": "high", "length": 0, "parked": 0, "oldest_age": 0.0},
        {"name": "normal", "length": 3, "parked": 3, "oldest_age": 12.345},
        {"name": "low", "length": 0, "parked": 0, "oldest_age": 0.0},
    ],
    "delayed": 1,
}

TASK_TYPE: views.TaskTypeView = {
    "task_type": "echo",
    "default_timeout": 300.0,
    "default_max_retry": 3,
    "retry_strategy": RetryStrategy.FIXED,
    "retry_delay": 5.0,
    "backoff_rate": 2.0,
    "max_concurrent": 2,
    "enabled": True,
}
