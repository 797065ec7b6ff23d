"""Tasks in memory, and what becomes of them; under ``fake_server``, which answers requests about them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from atm.client.models import Task
from atm.client.wire import model
from atm.errors import NonRetryable, RetryLater
from atm.task import Status, TaskType

WORKER = "fake-worker"

Handler = Callable[[Task], Any]


class Row:
    """A task: ``view`` as answers show it, and what they do not show; ``due``: seconds since 1970."""

    def __init__(self, view: dict[str, Any], due: float, key: str | None) -> None:
        self.view = view
        self.due = due
        self.key = key
        self.logs: list[dict[str, Any]] = []
        self.looks = 0

    @property
    def status(self) -> Status:
        return Status(self.view["status"])


class FakeTasks:
    """Tasks, their clock, and the test's ways to move both.

    Args:
        handlers: by task type, what runs its tasks: gets the task, returns the result; what it raises fails the
            attempt, NonRetryable the task.
    """

    def __init__(self, handlers: Mapping[str, Handler] | None = None) -> None:
        self.handlers = dict(handlers or {})
        self._clock = datetime.now(UTC).timestamp()
        self._rows: dict[str, Row] = {}
        self._types: dict[str, TaskType] = {}
        self._lock = threading.RLock()

    # what a test says

    def advance(self, seconds: float) -> None:
        """Let time pass; what becomes due and has a handler runs."""
        with self._lock:
            self._clock += seconds
            self._run_all()

    def start(self, task_id: str, worker_id: str = WORKER) -> None:
        """A worker begins with the task."""
        with self._lock:
            self._start(self._known(task_id), worker_id)

    def progress(self, task_id: str, fraction: float, message: str | None = None) -> None:
        """Its executor reports how far it is."""
        self._running(task_id).view["progress"] = {"fraction": fraction, "message": message}

    def succeed(self, task_id: str, result: Any = None) -> None:
        """The task ends as SUCCESS."""
        self._end(self._running(task_id), Status.SUCCESS, "Task succeeded", result=result)

    def fail(self, task_id: str, message: str = "failed", kind: str = "Error") -> None:
        """The task ends as FAILED, without a retry."""
        self._fail(self._running(task_id), Status.FAILED, kind, message, retryable=False)

    def time_out(self, task_id: str) -> None:
        """The task ends as TIMEOUT, without a retry."""
        row = self._running(task_id)
        self._fail(row, Status.TIMEOUT, "Timeout", f"no end within {row.view['timeout']:g} s", retryable=False)

    @property
    def tasks(self) -> list[Task]:
        """All tasks, oldest first."""
        with self._lock:
            return [model(row.view, Task) for row in self._rows.values()]

    def now(self) -> float:
        """The fake's clock: seconds since 1970."""
        return self._clock

    def _known(self, task_id: str) -> Row:
        if task_id not in self._rows:
            raise AssertionError(f"there is no task {task_id}")
        return self._rows[task_id]

    # what becomes of a task

    def _has_a_future(self, row: Row) -> bool:
        kind = row.view["task_type"]
        return row.status is Status.PENDING and kind in self.handlers and self._type(kind).enabled

    def _type(self, name: str) -> TaskType:
        return self._types.get(name) or TaskType(task_type=name)

    def _run_all(self) -> None:
        while ready := [r for r in self._rows.values() if self._has_a_future(r) and r.due <= self._clock]:
            for row in sorted(ready, key=lambda row: (-row.view["priority"], row.due)):
                # A handler that asks for another task has that one run in between.
                if row.status is Status.PENDING:
                    self._attempt(row)

    def _attempt(self, row: Row) -> None:
        self._start(row, WORKER)
        try:
            result = self.handlers[row.view["task_type"]](model(row.view, Task))
            json.dumps(result, allow_nan=False)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises fails its attempt, as at a worker
            retryable = not isinstance(error, NonRetryable)
            after = min(error.after, 3600.0) if isinstance(error, RetryLater) else 0.0
            self._fail(row, Status.FAILED, type(error).__name__, str(error), retryable=retryable, after=after)
        else:
            self._end(row, Status.SUCCESS, "Task succeeded", result=result)

    def _start(self, row: Row, worker_id: str) -> None:
        if row.status is not Status.PENDING:
            raise AssertionError(f"task {row.view['task_id']} is {row.status} and cannot start")
        row.view["attempt"] += 1
        row.view["worker_id"], row.view["started_at"] = worker_id, self._when(self._clock)
        self._move(row, Status.PROCESSING, "Task assigned to worker")

    def _running(self, task_id: str) -> Row:
        with self._lock:
            row = self._known(task_id)
            if row.status is Status.PENDING:
                self._start(row, WORKER)
            if row.status is not Status.PROCESSING:
                raise AssertionError(f"task {task_id} is {row.status} and cannot end")
            return row

    def _fail(
        self, row: Row, status: Status, kind: str, message: str, *, retryable: bool, after: float = 0.0
    ) -> None:
        row.view["error"] = {"type": kind, "message": message or kind, "retryable": retryable}
        if status is Status.FAILED:
            self._log(row, None, None, f"{kind}: {message}", "ERROR")
        if not retryable or row.view["retry_count"] >= row.view["max_retry"]:
            self._end(row, status, f"{kind}: {message}")
            return
        self._move(row, status, f"{kind}: {message}")
        delay = max(after, self._type(row.view["task_type"]).delay(row.view["retry_count"]))
        row.view["retry_count"] += 1
        self._to_pending(
            row, delay, f"Retry {row.view['retry_count']} of {row.view['max_retry']} in {delay:.2f} s"
        )

    def _end(self, row: Row, status: Status, message: str, result: Any = None) -> None:
        row.view["result"], row.view["completed_at"] = result, self._when(self._clock)
        self._move(row, status, message)

    def _to_pending(self, row: Row, delay: float, message: str) -> None:
        self._move(row, Status.PENDING, message, "RETRY")
        row.view["worker_id"] = None
        row.due = self._clock + delay

    def _move(self, row: Row, to: Status, message: str, log_type: str = "STATE_CHANGE") -> None:
        self._log(row, row.status, to, message, log_type)
        row.view["status"] = str(to)

    def _log(
        self, row: Row, source: Status | None, to: Status | None, message: str, log_type: str = "STATE_CHANGE"
    ) -> None:
        entry: dict[str, Any] = {
            "log_type": log_type,
            "from_status": source,
            "to_status": to,
            "message": message,
            "created_at": self._when(self._clock),
        }
        if row.view.get("worker_id"):
            entry["worker_id"], entry["attempt"] = row.view["worker_id"], row.view["attempt"]
        row.logs.append(entry)

    @staticmethod
    def _when(moment: float) -> str:
        return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
