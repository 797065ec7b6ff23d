"""A server in memory, for the tests of those who use a client: it answers as the real one, in time of its own.

Time passes only when a client waits or pauses, and when ``advance`` says so. Tasks of a type with a handler run,
one attempt after the other, when anybody looks; the others wait until the test says how they end.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from atm.client import fake_checks as checks
from atm.client.fake_tasks import WORKER, FakeTasks, Handler, Row
from atm.client.models import TaskTypeSettings
from atm.client.wire import Answer, Request
from atm.errors import AtmError
from atm.task import QUEUES, REOPENABLE, TERMINAL, Status, TaskType, new_task_id

MAX_LOOKS = 2_000
"""Waits for a task that nothing will end, before the fake says so."""


class _Refusal(Exception):
    def __init__(self, code: int, message: str, errors: checks.Problems | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.errors = errors or []


class FakeServer(FakeTasks):
    """What a fake client speaks with; several clients may speak with one.

    Args:
        handlers: by task type, what runs its tasks: gets the task, returns the result; what it raises fails the
            attempt, NonRetryable the task.
    """

    def __init__(self, handlers: Mapping[str, Handler] | None = None) -> None:
        super().__init__(handlers)
        self._keys: dict[str, Row] = {}
        self._outages: list[AtmError] = []

    def refuse(self, error: AtmError, times: int = 1) -> None:
        """Let the next ``times`` requests end in this error, none of them carried out; clients may try again."""
        self._outages += [error] * times

    # what clients say

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

    def _create(self, fields: dict[str, Any], key_field: str) -> tuple[Row, bool]:
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

    def _new_row(self, fields: dict[str, Any], payload: dict[str, Any], key: str | None) -> Row:
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
            "priority": int(fields.get("priority", 0)),
            "payload": payload,
            "timeout": float(fields.get("timeout", settings.default_timeout)),
            "max_retry": int(fields.get("max_retry", settings.default_max_retry)),
            "created_at": self._when(self._clock),
            "scheduled_at": None if scheduled is None else self._when(scheduled),
            "attempt": 0,
            "retry_count": 0,
        }
        row = Row(view, max(due, scheduled or due), key)
        self._log(row, None, Status.PENDING, "Task created")
        return row

    # looking

    def _row(self, task_id: str) -> Row:
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

    def _pending_reason(self, row: Row) -> str:
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
                row.view.get(name) == query[name]
                for name in ("status", "task_type", "worker_id", "parent_id")
                if name in query
            )
            and (after is None or (checks.moment(row.view["created_at"]) or 0) >= after)
            and (before is None or (checks.moment(row.view["created_at"]) or 0) < before)
            and ("cursor" not in query or _cursor(row.view) < query["cursor"])
        ]
        page = found[:limit]
        return {"tasks": page, "next_cursor": _cursor(page[-1]) if len(found) > limit else None}

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

    def _cancel(self, row: Row) -> tuple[int, Any, str]:
        if row.status in REOPENABLE - {Status.CANCELLED} or row.status is Status.SUCCESS:
            raise _Refusal(40901, f"the task is {row.status} and cannot be cancelled")
        if row.status is not Status.CANCELLED:
            row.view["cancel_requested_at"] = self._when(self._clock)
            if row.status is Status.PROCESSING:
                self._log(row, None, None, "Cancellation requested", "INFO")
            self._end(row, Status.CANCELLED, "Task cancelled")
        return 200, None, "Task cancelled successfully"

    def _retry(self, row: Row) -> tuple[int, Any, str]:
        if row.status not in REOPENABLE:
            text = f"the task is {row.status}; only FAILED, TIMEOUT and CANCELLED ones can be retried"
            raise _Refusal(40901, text)
        row.view["retry_count"] = 0
        for name in ("result", "error", "progress", "completed_at", "cancel_requested_at"):
            row.view.pop(name, None)
        self._to_pending(row, 0, "Retry requested")
        return 200, dict(row.view), "Task will run again"

    def _put_type(self, name: str, fields: dict[str, Any]) -> Any:
        if reason := checks.task_type_reason(name):
            _refuse_if([("task_type", reason)])
        _refuse_if(checks.problems(fields, checks.SETTINGS))
        for whole in {"default_max_retry", "max_concurrent"} & fields.keys():
            fields[whole] = None if fields[whole] is None else int(fields[whole])
        self._types[name] = msgspec.convert({**msgspec.to_builtins(self._type(name)), **fields}, TaskType)
        return msgspec.to_builtins(msgspec.convert(self._types[name], TaskTypeSettings, from_attributes=True))


def _cursor(view: Mapping[str, Any]) -> str:
    """Names the page behind this task."""
    task_id: str = view["task_id"]
    return task_id.replace("-", "")


def _refuse_if(problems: checks.Problems) -> None:
    if problems:
        (field, reason), more = problems[0], len(problems) - 1
        text = f"{field}: {reason}" + (f" (and {more} more)" if more else "")
        raise _Refusal(42201, text, problems[:100])
