"""What a task is: its states, its legal ways, its retry policy. Pure: no I/O, no trio.

    PENDING ──claim──▶ PROCESSING ──▶ SUCCESS
       │  ▲               │  ├──▶ FAILED  ──retry left──▶ PENDING
       │  └───────────────┤  ├──▶ TIMEOUT ──retry left──▶ PENDING
       │    released,     │  └──▶ CANCELLED
       │    worker lost   │
       ├──cancel──▶ CANCELLED
       └──▶ TIMEOUT   a child whose parent's deadline passed before it started

A user's retry opens a FAILED, TIMEOUT or CANCELLED task again (→ PENDING).
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec


class Status(StrEnum):
    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"


class LogType(StrEnum):
    STATE_CHANGE = "STATE_CHANGE"
    RETRY = "RETRY"
    ERROR = "ERROR"
    INFO = "INFO"


TERMINAL = frozenset({Status.SUCCESS, Status.FAILED, Status.TIMEOUT, Status.CANCELLED})
REOPENABLE = TERMINAL - {Status.SUCCESS}

LEGAL: dict[Status | None, frozenset[Status]] = {
    None: frozenset({Status.PENDING}),
    Status.PENDING: frozenset({Status.PROCESSING, Status.CANCELLED, Status.TIMEOUT}),
    Status.PROCESSING: TERMINAL | {Status.PENDING},
    Status.SUCCESS: frozenset(),
    Status.FAILED: frozenset({Status.PENDING}),
    Status.TIMEOUT: frozenset({Status.PENDING}),
    Status.CANCELLED: frozenset({Status.PENDING}),
}

QUEUES: dict[int, str] = {1: "high", 0: "normal", -1: "low"}
"""Queue name by priority, in the order of service."""

MAX_RECOVERIES = 3
"""A worker lost this often is bad luck; once more and the task is FAILED as poison."""

RETRY_DELAY_CAP = 300.0
"""Seconds; an exponential delay grows no further."""

ASKED_DELAY_CAP = 3600.0
"""Seconds; an executor that asks for a longer pause gets this one."""

RETRY_JITTER = 0.1
"""A retry comes up to this fraction later than asked, so that failures do not return as a herd."""


TASK_TYPE_PATTERN = "[A-Za-z0-9_.:-]{1,128}"

_TASK_TYPE = re.compile(TASK_TYPE_PATTERN)


def is_task_type(value: object) -> bool:
    """Whether the value can name a task type."""
    return isinstance(value, str) and _TASK_TYPE.fullmatch(value) is not None


class RetryStrategy(StrEnum):
    FIXED = "FIXED"
    EXPONENTIAL = "EXPONENTIAL"


class TaskType(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one task type; the defaults are those of a type nobody has configured.

    ``default_timeout`` and ``retry_delay`` are seconds; ``max_concurrent`` None means no cap.
    """

    task_type: str
    default_timeout: float = 300.0
    default_max_retry: int = 3
    retry_strategy: RetryStrategy = RetryStrategy.EXPONENTIAL
    retry_delay: float = 1.0
    backoff_rate: float = 2.0
    max_concurrent: int | None = None
    enabled: bool = True

    def delay(self, retry_count: int, at_least: float = 0.0) -> float:
        """Seconds to wait before retry number ``retry_count + 1``, jitter included.

        Args:
            at_least: seconds that the executor asked for.
        """
        asked = self.retry_delay
        if self.retry_strategy is RetryStrategy.EXPONENTIAL:
            # Beyond this exponent every rate > 1 has long met the cap; without it 2.0**1100 overflows.
            grown = self.retry_delay * self.backoff_rate ** min(retry_count, 64)
            asked = min(max(RETRY_DELAY_CAP, self.retry_delay), grown)
        asked = max(asked, min(at_least, ASKED_DELAY_CAP))
        return asked * (1 + random.random() * RETRY_JITTER)


class Task(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One task as the store knows it.

    ``payload_json``, ``result_json`` and ``error_json`` are JSON text as it was written; ``payload`` decodes.
    Fields ending in ``_ms`` are milliseconds since 1970 by the store's clock. ``timeout`` is seconds an attempt.
    ``expires_ms`` is the deadline that a child has from its parent; a claimed child's ``timeout`` ends there.
    ``children``: whether it has ever had any.
    The order of the fields is the order in which the stores select them.
    """

    task_id: str
    task_type: str
    status: Status
    priority: int
    payload_json: str
    timeout: float
    max_retry: int
    attempt: int
    retry_count: int
    recoveries: int
    releases: int
    worker_id: str | None
    created_ms: int
    due_ms: int
    scheduled_ms: int | None
    started_ms: int | None
    completed_ms: int | None
    cancel_requested_ms: int | None
    result_json: str | None
    error_json: str | None
    progress_json: str | None
    parent_id: str | None = None
    expires_ms: int | None = None
    children: int = 0

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, decoded anew at each call."""
        decoded: dict[str, Any] = json.loads(self.payload_json)
        return decoded

    @property
    def created_at(self) -> datetime:
        return datetime.fromtimestamp(self.created_ms / 1000, UTC)

    @property
    def scheduled_at(self) -> datetime | None:
        return None if self.scheduled_ms is None else datetime.fromtimestamp(self.scheduled_ms / 1000, UTC)

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


def legal_path(steps: Iterable[tuple[str | None, str | None]]) -> Status | None:
    """Follow the (from_status, to_status) pairs of a task's log.

    Rows with neither state (ERROR, INFO) are passed over.

    Returns: the state the path ends in, None for an empty path.
    Raises: ValueError at the first step that is not legal or does not start where the last one ended.
    """
    current: Status | None = None
    for source, target in steps:
        if source is None and target is None:
            continue
        if source != current or target is None or Status(target) not in LEGAL[current]:
            raise ValueError(f"illegal step {source} -> {target} in state {current}")
        current = Status(target)
    return current


def duration(seconds: float) -> str:
    """As people say it: 12 ms, 3.4 s. What clocks make negative is none."""
    return f"{max(0.0, seconds) * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def children_ended(count: int) -> str:
    """What the message of a task's end says of the children that were ended with it."""
    return f"; {count} {'child' if count == 1 else 'children'} ended with it" if count else ""


_last_id_ms = 0
_last_id_counter = 0
_id_head = ""
_randomness = ""
_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


def _forget_randomness() -> None:
    global _randomness
    _randomness = ""


os.register_at_fork(after_in_child=_forget_randomness)


def new_task_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): ids made by one process sort in the order they were made.

    The 12 bits after the time count within the millisecond (method 1 of section 6.2); when they run
    over, the time field moves ahead. Randomness is fetched for many ids at a time.
    """
    global _last_id_ms, _last_id_counter, _id_head, _randomness
    now = time.time_ns() // 1_000_000
    if now > _last_id_ms or _last_id_counter == 0xFFF:
        _last_id_ms, _last_id_counter = max(now, _last_id_ms + 1), 0
        text = f"{_last_id_ms:012x}"
        _id_head = f"{text[:8]}-{text[8:]}-7"
    else:
        _last_id_counter += 1
    if not _randomness:
        _randomness = os.urandom(512).hex()
    tail, _randomness = _randomness[:16], _randomness[16:]
    return f"{_id_head}{_last_id_counter:03x}-{_VARIANT[tail[0]]}{tail[1:4]}-{tail[4:]}"
