"""A server in memory, for the tests of those who use a client: it answers as the real one, in time of its own.

Time passes only when a client waits or pauses, and when ``advance`` says so. Tasks of a type with a handler run,
one attempt after the other, when anybody looks; the others wait until the test says how they end.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import msgspec

from atm.client import fake_checks as checks
from atm.client.models import Task, TaskTypeSettings
from atm.client.wire import Answer, Request, model
from atm.errors import AtmError, NonRetryable
from atm.task import QUEUES, REOPENABLE, TERMINAL, Status, TaskType, new_task_id

WORKER = "fake-worker"
MAX_LOOKS = 10_000
"""Waits for a task that nothing will end, before the fake says so."""

Handler = Callable[[Task], Any]


class _Refusal(Exception):
    def __init__(self, code: int, message: str, errors: checks.Problems | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.errors = errors or []


class _Row:
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


class FakeServer:
    """What a fake client speaks with; several clients may speak with one.

    Args:
        handlers: by task type, what runs its tasks: gets the task, returns the result; what it raises fails the
            attempt, NonRetryable the task.
    """

    def __init__(self, handlers: Mapping[str, Handler] | None = None) -> None:
        self.handlers = dict(handlers or {})
        self._clock = datetime.now(UTC).timestamp()
        self._rows: dict[str, _Row] = {}
        self._keys: dict[str, _Row] = {}
        self._types: dict[str, TaskType] = {}
        self._outages: list[AtmError] = []
        self._lock = threading.RLock()

    # what a test says

    def advance(self, seconds: float) -> None:
        """Let time pass; what becomes due and has a handler runs."""
        with self._lock:
            self._clock += seconds
            self._run_all()

    def refuse(self, error: AtmError, times: int = 1) -> None:
        """Let the next ``times`` requests end in this error, none of them carried out; clients may try again."""
        self._outages += [error] * times

    def start(self, task_id: str, worker_id: str = WORKER) -> None:
        """A worker begins with the task."""
        with self._lock:
            self._start(self._row(task_id), worker_id)

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
        return [model(row.view, Task) for row in self._rows.values()]

    # what clients say

    def now(self) -> float:
        """The fake's clock: seconds since 1970."""
        return self._clock

    def answer(self, request: Request) -> Answer:
        """What the real server would answer. Raises what ``refuse`` was given."""
        with self._lock:
            if self._outages:
                raise self._outages.pop(0)
            try:
                status, data, message = self._route(request)
            except _Refusal as no:
                status = no.code // 100
                wrong = [{"field": field, "reason": reason} for field, reason in no.errors]
                body = {"code": no.code, "message": str(no), "request_id": uuid.uuid4().hex, "errors": wrong}
            else:
                body = {"code": 0, "message": message} | ({} if data is None else {"data": data})
            return Answer(status, {"content-type": "application/json"}, json.dumps(body).encode())

    def _route(self, request: Request) -> tuple[int, Any, str]:
        parts = tuple(unquote(part) for part in request.path.removeprefix("/api/v1").split("/")[1:])
        fields = json.loads(request.body) if request.body is not None else {}
        if request.method != "POST" or len(parts) == 3:
            self._run_all()
        match request.method, parts:
            case "POST", ("tasks",):
                return self._create_one(fields, len(request.body or b""))
            case "POST", ("tasks", "batch"):
                return self._create_many(fields["tasks"])
            case "GET", ("tasks",):
                return 200, self._find(request.query), "success"
            case "GET", ("tasks", task_id):
                return 200, self._get(task_id, float(request.query.get("wait", "0"))), "success"
            case "POST", ("tasks", task_id, "cancel"):
                return self._cancel(self._row(task_id))
            case "POST", ("tasks", task_id, "retry"):
                return self._retry(self._row(task_id))
            case "GET", ("tasks", task_id, "logs"):
                return 200, self._row(task_id).logs, "success"
            case "GET", ("workers",):
                return 200, [self._worker()], "success"
            case "GET", ("queues",):
                return 200, self._queues(), "success"
            case "GET", ("task-types",):
                names = sorted({*self._types, *self.handlers})
                return 200, [msgspec.to_builtins(self._type(name)) for name in names], "success"
            case "PUT", ("task-types", task_type):
                return 200, self._put_type(task_type, fields), "success"
            case "GET", ("livez",):
                return 200, {"status": "alive"}, "success"
            case "GET", ("readyz",):
                return 200, {"status": "ready"}, "success"
        raise _Refusal(40402, "not found")

    # creating

    def _create_one(self, fields: dict[str, Any], size: int) -> tuple[int, Any, str]:
        if size > checks.MAX_TASK:
            raise _Refusal(41301, f"the body is larger than {checks.MAX_TASK} bytes")
        _refuse_if(checks.task_problems(fields))
        row, fresh = self._create(fields, "idempotency_key")
        return 201 if fresh else 200, {"task_id": row.view["task_id"]}, "success"

    def _create_many(self, tasks: list[dict[str, Any]]) -> tuple[int, Any, str]:
        for index, fields in enumerate(tasks):
            if len(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()) > checks.MAX_TASK:
                raise _Refusal(41301, f"tasks[{index}] is larger than {checks.MAX_TASK} bytes")
        _refuse_if(
            [wrong for n, fields in enumerate(tasks) for wrong in checks.task_problems(fields, f"tasks[{n}].")]
        )
        before = dict(self._rows), dict(self._keys)
        try:
            made = [self._create(fields, f"tasks[{n}].idempotency_key") for n, fields in enumerate(tasks)]
        except _Refusal:
            self._rows, self._keys = before
            raise
        return (
            201 if any(fresh for _, fresh in made) else 200,
            {"task_ids": [row.view["task_id"] for row, _ in made]},
            "success",
        )

    def _create(self, fields: dict[str, Any], key_field: str) -> tuple[_Row, bool]:
        key, payload = fields.get("idempotency_key"), fields.get("payload", {})
        if key is not None and (owner := self._keys.get(key)) is not None:
            if (owner.view["task_type"], owner.view["payload"]) != (fields["task_type"], payload):
                task_id = owner.view["task_id"]
                text = f"the idempotency key belongs to task {task_id}, which has another type or payload"
                raise _Refusal(40902, text, [(key_field, text)])
            return owner, False
        row = self._new_row(fields, payload, key)
        self._rows[row.view["task_id"]] = row
        if key is not None:
            self._keys[key] = row
        return row, True

    def _new_row(self, fields: dict[str, Any], payload: dict[str, Any], key: str | None) -> _Row:
        settings, due = self._type(fields["task_type"]), self._clock
        scheduled = None
        if "scheduled_at" in fields:
            scheduled = checks.moment(fields["scheduled_at"])
        elif fields.get("delay"):
            scheduled = self._clock + fields["delay"]
        view = {
            "task_id": new_task_id(),
            "task_type": fields["task_type"],
            "status": "PENDING",
            "priority": fields.get("priority", 0),
            "payload": payload,
            "timeout": float(fields.get("timeout", settings.default_timeout)),
            "max_retry": fields.get("max_retry", settings.default_max_retry),
            "created_at": self._when(self._clock),
            "scheduled_at": None if scheduled is None else self._when(scheduled),
            "attempt": 0,
            "retry_count": 0,
        }
        row = _Row(view, max(due, scheduled or due), key)
        self._log(row, None, Status.PENDING, "Task created")
        return row

    # looking

    def _row(self, task_id: str) -> _Row:
        if task_id not in self._rows:
            raise _Refusal(40401, f"no task {task_id[:64]}")
        return self._rows[task_id]

    def _get(self, task_id: str, wait: float) -> dict[str, Any]:
        row, end = self._row(task_id), self._clock + wait
        while row.status not in TERMINAL and self._clock < end:
            coming = [other.due for other in self._rows.values() if self._has_a_future(other)]
            self._clock = min([end, *(due for due in coming if due > self._clock)])
            self._run_all()
            row.looks += not coming
            if row.looks > MAX_LOOKS:
                text = f"nothing will ever end task {task_id}: give {row.view['task_type']} a handler, or end it"
                raise AssertionError(text)
        if row.status is Status.PENDING:
            return {**row.view, "pending_reason": self._pending_reason(row)}
        return row.view

    def _has_a_future(self, row: _Row) -> bool:
        kind = row.view["task_type"]
        return row.status is Status.PENDING and kind in self.handlers and self._type(kind).enabled

    def _pending_reason(self, row: _Row) -> str:
        if row.due > self._clock:
            return "retry_delay" if row.view["retry_count"] else "scheduled"
        if not self._type(row.view["task_type"]).enabled:
            return "type_disabled"
        return "queued" if row.view["task_type"] in self.handlers else "no_worker"

    def _find(self, query: Mapping[str, str]) -> dict[str, Any]:
        _refuse_if(checks.problems(query, checks.FILTERS))
        limit = int(query.get("limit", "50"))
        after = checks.moment(query.get("created_after", ""))
        before = checks.moment(query.get("created_before", ""))
        found = [
            row.view
            for row in reversed(self._rows.values())
            if all(
                row.view.get(name) == query[name] for name in ("status", "task_type", "worker_id") if name in query
            )
            and (after is None or (checks.moment(row.view["created_at"]) or 0) >= after)
            and (before is None or (checks.moment(row.view["created_at"]) or 0) < before)
            and ("cursor" not in query or row.view["task_id"] < query["cursor"])
        ]
        page = found[:limit]
        return {"tasks": page, "next_cursor": page[-1]["task_id"] if len(found) > limit else None}

    def _worker(self) -> dict[str, Any]:
        running = sum(row.status is Status.PROCESSING for row in self._rows.values())
        return {
            "id": WORKER,
            "name": WORKER,
            "address": "",
            "capacity": 100,
            "current_load": running,
            "supported_types": sorted(self.handlers),
            "draining": False,
            "last_heartbeat": self._when(self._clock),
        }

    def _queues(self) -> dict[str, Any]:
        waiting = [row for row in self._rows.values() if row.status is Status.PENDING]
        due = [row for row in waiting if row.due <= self._clock]
        queues = []
        for priority, name in QUEUES.items():
            mine = [row for row in due if row.view["priority"] == priority]
            age = max((self._clock - row.due for row in mine), default=0.0)
            queues.append({"name": name, "length": len(mine), "parked": len(mine), "oldest_age": round(age, 3)})
        return {"queues": queues, "delayed": len(waiting) - len(due)}

    # changing

    def _cancel(self, row: _Row) -> tuple[int, Any, str]:
        if row.status in REOPENABLE - {Status.CANCELLED} or row.status is Status.SUCCESS:
            raise _Refusal(40901, f"the task is {row.status} and cannot be cancelled")
        if row.status is not Status.CANCELLED:
            row.view["cancel_requested_at"] = self._when(self._clock)
            if row.status is Status.PROCESSING:
                self._log(row, None, None, "Cancellation requested", "INFO")
            self._end(row, Status.CANCELLED, "Task cancelled")
        return 200, None, "Task cancelled successfully"

    def _retry(self, row: _Row) -> tuple[int, Any, str]:
        if row.status not in REOPENABLE:
            text = f"the task is {row.status}; only FAILED, TIMEOUT and CANCELLED ones can be retried"
            raise _Refusal(40901, text)
        row.view["retry_count"] = 0
        for name in ("result", "error", "progress", "completed_at", "cancel_requested_at"):
            row.view.pop(name, None)
        self._to_pending(row, 0, "Retry requested")
        return 200, dict(row.view), "Task will run again"

    def _type(self, name: str) -> TaskType:
        return self._types.get(name) or TaskType(task_type=name)

    def _put_type(self, name: str, fields: dict[str, Any]) -> Any:
        if reason := checks.task_type_reason(name):
            _refuse_if([("task_type", reason)])
        _refuse_if(checks.problems(fields, checks.SETTINGS))
        self._types[name] = msgspec.convert({**msgspec.to_builtins(self._type(name)), **fields}, TaskType)
        return msgspec.to_builtins(msgspec.convert(self._types[name], TaskTypeSettings, from_attributes=True))

    # running

    def _run_all(self) -> None:
        while ready := [r for r in self._rows.values() if self._has_a_future(r) and r.due <= self._clock]:
            for row in sorted(ready, key=lambda row: (-row.view["priority"], row.due)):
                self._attempt(row)

    def _attempt(self, row: _Row) -> None:
        self._start(row, WORKER)
        try:
            result = self.handlers[row.view["task_type"]](model(row.view, Task))
            json.dumps(result, allow_nan=False)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises fails its attempt, as at a worker
            retryable = not isinstance(error, NonRetryable)
            self._fail(row, Status.FAILED, type(error).__name__, str(error), retryable=retryable)
        else:
            self._end(row, Status.SUCCESS, "Task succeeded", result=result)

    def _start(self, row: _Row, worker_id: str) -> None:
        if row.status is not Status.PENDING:
            raise AssertionError(f"task {row.view['task_id']} is {row.status} and cannot start")
        row.view["attempt"] += 1
        row.view["worker_id"], row.view["started_at"] = worker_id, self._when(self._clock)
        self._move(row, Status.PROCESSING, "Task assigned to worker")

    def _running(self, task_id: str) -> _Row:
        with self._lock:
            row = self._row(task_id)
            if row.status is Status.PENDING:
                self._start(row, WORKER)
            if row.status is not Status.PROCESSING:
                raise AssertionError(f"task {task_id} is {row.status} and cannot end")
            return row

    def _fail(self, row: _Row, status: Status, kind: str, message: str, *, retryable: bool) -> None:
        row.view["error"] = {"type": kind, "message": message or kind, "retryable": retryable}
        if status is Status.FAILED:
            self._log(row, None, None, f"{kind}: {message}", "ERROR")
        if not retryable or row.view["retry_count"] >= row.view["max_retry"]:
            self._end(row, status, f"{kind}: {message}")
            return
        self._move(row, status, f"{kind}: {message}")
        delay = self._type(row.view["task_type"]).delay(row.view["retry_count"])
        row.view["retry_count"] += 1
        self._to_pending(
            row, delay, f"Retry {row.view['retry_count']} of {row.view['max_retry']} in {delay:.2f} s"
        )

    def _end(self, row: _Row, status: Status, message: str, result: Any = None) -> None:
        row.view["result"], row.view["completed_at"] = result, self._when(self._clock)
        self._move(row, status, message)

    def _to_pending(self, row: _Row, delay: float, message: str) -> None:
        self._move(row, Status.PENDING, message, "RETRY")
        row.view["worker_id"] = None
        row.due = self._clock + delay

    def _move(self, row: _Row, to: Status, message: str, log_type: str = "STATE_CHANGE") -> None:
        self._log(row, row.status, to, message, log_type)
        row.view["status"] = str(to)

    def _log(
        self, row: _Row, source: Status | None, to: Status | None, message: str, log_type: str = "STATE_CHANGE"
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
        text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
        return re.sub(r"\+00:00$", "Z", text)


def _refuse_if(problems: checks.Problems) -> None:
    if problems:
        (field, reason), more = problems[0], len(problems) - 1
        text = f"{field}: {reason}" + (f" (and {more} more)" if more else "")
        raise _Refusal(42201, text, problems[:100])
