"""Query parameters: checked like bodies, unknown ones refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quart import Request

from atm.api.answer import invalid
from atm.api.body import TASK_TYPE, TIME, milliseconds, task_type_reason, time_reason
from atm.store import TaskFilter
from atm.task import Status

MAX_WAIT = 300
MAX_PAGE = 500
DEFAULT_PAGE = 50

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?")
_WORKER_ID_PATTERN = "[A-Za-z0-9_.-]{1,64}"
_WORKER_ID = re.compile(_WORKER_ID_PATTERN)
_TASK_ID_PATTERN = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_TASK_ID = re.compile(_TASK_ID_PATTERN)
_CURSOR_PATTERN = "[0-9a-f]{32}"
_CURSOR = re.compile(_CURSOR_PATTERN)

Parameters = Mapping[str, Mapping[str, Any]]
"""Names, and what JSON Schema says of the values."""

NONE: Parameters = {}

WAIT: Parameters = {
    "wait": {
        "type": "number",
        "minimum": 0,
        "maximum": MAX_WAIT,
        "description": "Seconds to wait for its end: the answer comes when the task has ended or they are over, "
        "whichever is first.",
        "examples": [10],
    }
}

LIST: Parameters = {
    "status": {"type": "string", "enum": [*map(str, Status)], "description": "Exactly this."},
    "task_type": {**TASK_TYPE.schema, "description": "Exactly this.", "examples": ["echo"]},
    "worker_id": {
        "type": "string",
        "pattern": f"^{_WORKER_ID_PATTERN}$",
        "description": "Exactly this.",
        "examples": ["worker-001"],
    },
    "parent_id": {
        "type": "string",
        "format": "uuid",
        "pattern": f"^{_TASK_ID_PATTERN}$",
        "description": "The children of this task.",
        "examples": ["0199d3f0-5b6e-7000-8a4c-3f1f2a9d7c11"],
    },
    "created_after": {
        **TIME.schema,
        "description": "A time with its zone (RFC 3339); this moment included.",
        "examples": ["2026-01-31T10:00:00Z"],
    },
    "created_before": {
        **TIME.schema,
        "description": "A time with its zone (RFC 3339); this moment not included.",
        "examples": ["2100-01-01T00:00:00Z"],
    },
    "cursor": {
        "type": "string",
        "pattern": f"^{_CURSOR_PATTERN}$",
        "description": "The next_cursor of the page before.",
    },
    "limit": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_PAGE,
        "default": DEFAULT_PAGE,
        "description": "Tasks of a page, at the most.",
        "examples": [20],
    },
}

TASK_ID: Mapping[str, Any] = {"type": "string", "format": "uuid", "pattern": f"^{_TASK_ID_PATTERN}$"}


def arguments(request: Request, known: Parameters = NONE) -> dict[str, str]:
    """The query's parameters. Raises ApiError 422 for an unknown or repeated one."""
    found: dict[str, str] = {}
    for name, values in request.args.lists():
        if name not in known:
            raise invalid((name, f"unknown query parameter; known are {', '.join(known)}" if known else "unknown"))
        if len(values) > 1:
            raise invalid((name, "is given twice"))
        found[name] = values[0]
    return found


def wait_seconds(text: str | None) -> float | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or float(text) > MAX_WAIT:
        raise invalid(("wait", f"must be a number of seconds from 0 to {MAX_WAIT}"))
    return float(text)


def page_size(text: str | None) -> int:
    if text is None:
        return DEFAULT_PAGE
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_PAGE:
        raise invalid(("limit", f"must be an integer from 1 to {MAX_PAGE}"))
    return int(text)


def cursor_of(task_id: str) -> str:
    """What stands for "go on after this task"; opaque to callers."""
    return task_id.replace("-", "")


def after_cursor(text: str | None) -> str | None:
    if text is None:
        return None
    if not _CURSOR.fullmatch(text):
        raise invalid(("cursor", "is none that a former answer gave"))
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_task_id(text: str) -> bool:
    """Whether it can be the id of a task; anything else needs no look at the store."""
    return _TASK_ID.fullmatch(text) is not None


def task_filter(found: dict[str, str]) -> TaskFilter:
    problems: list[tuple[str, str]] = []
    status, task_type, worker_id = found.get("status"), found.get("task_type"), found.get("worker_id")
    if status is not None and status not in Status.__members__:
        problems.append(("status", f"must be one of {', '.join(Status)}"))
    if task_type is not None and (reason := task_type_reason(task_type)):
        problems.append(("task_type", reason))
    if worker_id is not None and not _WORKER_ID.fullmatch(worker_id):
        problems.append(("worker_id", "must be 1 to 64 letters, digits or any of _ . -"))
    parent_id = found.get("parent_id")
    if parent_id is not None and not is_task_id(parent_id):
        problems.append(("parent_id", "must be the id of a task"))
    times: dict[str, int | None] = {}
    for name in ("created_after", "created_before"):
        # A plus that was not escaped arrives as a blank.
        text = found.get(name, "").replace(" ", "+") if name in found else None
        if text is not None and (reason := time_reason(text)):
            problems.append((name, reason))
        times[name] = milliseconds(text) if text is not None else None
    if problems:
        raise invalid(*problems)
    return TaskFilter(
        status=None if status is None else Status(status),
        task_type=task_type,
        worker_id=worker_id,
        parent_id=parent_id,
        created_after=times["created_after"],
        created_before=times["created_before"],
    )
