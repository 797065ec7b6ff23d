"""What the server refuses, as the fake refuses it: values into reasons, None when they are fine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from atm.task import RetryStrategy, Status, is_task_type

Problems = list[tuple[str, str]]
Check = Callable[[Any], str | None]

MAX_TASK = 1024 * 1024
"""Bytes."""

MAX_DEPTH = 64
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _is_whole(value: Any) -> bool:
    """Whole numbers are integers however they are written."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> str | None:
        return None if _is_whole(value) and low <= value <= high else f"must be an integer from {low} to {high}"

    return check


def _number(low: float, high: float, *, above: bool = False) -> Check:
    def check(value: Any) -> str | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        text = f"must be a number {f'greater than {low:g} and at most' if above else f'from {low:g} to'} {high:,g}"
        return None if fits and not (above and value == low) else text

    return check


def task_type_reason(value: Any) -> str | None:
    return None if is_task_type(value) else "must be 1 to 128 letters, digits or any of _ . : -"


def _priority(value: Any) -> str | None:
    return None if _is_whole(value) and value in (1, 0, -1) else "must be 1 (high), 0 (normal) or -1 (low)"


def _payload(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "must be an object"
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
        level = [part for part in inner if isinstance(part, dict | list)]
    return f"is nested deeper than {MAX_DEPTH} levels" if level else None


def _key(value: Any) -> str | None:
    if isinstance(value, str) and 1 <= len(value.encode()) <= 255 and not _CONTROL.search(value):
        return None
    return "must be a text of 1 to 255 bytes without control characters"


def _time(value: Any) -> str | None:
    if isinstance(value, str) and moment(value) is not None:
        return None
    return "must be a time with zone, as in 2026-01-31T10:00:00Z (RFC 3339)"


def moment(text: str) -> float | None:
    """Seconds since 1970 of an RFC 3339 time; None when it is none."""
    if not _TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper().replace(" ", "T")).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        return None


TASK: Mapping[str, Check] = {
    "task_type": task_type_reason,
    "priority": _priority,
    "payload": _payload,
    "timeout": _number(0, 604_800, above=True),
    "max_retry": _integer(0, 100),
    "delay": _number(0, 31_536_000),
    "scheduled_at": _time,
    "idempotency_key": _key,
}

SETTINGS: Mapping[str, Check] = {
    "default_timeout": _number(0, 604_800, above=True),
    "default_max_retry": _integer(0, 100),
    "retry_strategy": lambda value: (
        None if value in list(RetryStrategy) else f"must be one of {', '.join(RetryStrategy)}"
    ),
    "retry_delay": _number(0, 604_800),
    "backoff_rate": _number(1, 100),
    "max_concurrent": lambda value: None if value is None else _integer(1, 1_000_000)(value),
    "enabled": lambda value: None if isinstance(value, bool) else "must be true or false",
}

FILTERS: Mapping[str, Check] = {
    "status": lambda value: None if value in list(Status) else f"must be one of {', '.join(Status)}",
    "task_type": task_type_reason,
    "worker_id": lambda value: (
        None if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value) else "must be 1 to 64 letters, digits or any of _ . -"
    ),
    "parent_id": lambda value: None if re.fullmatch(r"[0-9a-f-]{36}", value) else "must be the id of a task",
    "created_after": _time,
    "created_before": _time,
    "limit": lambda value: (
        None
        if re.fullmatch(r"[0-9]{1,3}", value) and 1 <= int(value) <= 500
        else "must be an integer from 1 to 500"
    ),
    "cursor": lambda value: None if re.fullmatch(r"[0-9a-f]{32}", value) else "is none that a former answer gave",
}


def problems(fields: Mapping[str, Any], checks: Mapping[str, Check], prefix: str = "") -> Problems:
    """Each field that is wrong, with the reason."""
    return [
        (prefix + name, reason)
        for name, value in fields.items()
        if (reason := checks[name](value) if name in checks else "unknown field")
    ]


def task_problems(fields: Any, prefix: str = "") -> Problems:
    if not isinstance(fields, dict):
        return [(prefix.rstrip("."), "must be an object")]
    found = problems(fields, TASK, prefix)
    if "task_type" not in fields:
        found.append((prefix + "task_type", "is required"))
    if "delay" in fields and "scheduled_at" in fields:
        found.append((prefix + "scheduled_at", "cannot be given together with delay"))
    return found
