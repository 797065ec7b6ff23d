"""Calls that clients and handles have in common: the steps of each, for whatever session carries them out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from atm.client import bulk
from atm.client.errors import ApiError, BadAnswer, ConnectionFailed, NotFound, WaitTimeout, end_of
from atm.client.models import Health, Page, Task, TaskLog, TaskTypeSettings
from atm.client.wire import Pause, Request, Session, Steps, model
from atm.task import Status

PREFIX = "/api/v1"

LONG_POLL = 30.0
"""Seconds that the server is asked to wait at a time."""

WAITERS = 100
"""Calls that may wait on the server's side at a time, each at a connection of its own."""

ROUND, SHORT_POLL = 5.0, 0.5
"""Seconds: where more than those wait, each has its turn once a round, but no turn is shorter than this."""

EARLY = 0.2
"""Seconds to pause when it answered before that: a node that is about to stop answers its waiters at once."""

CANCEL_PATIENCE = 10.0
"""Seconds beyond the client's timeout; the server waits for the executor to end, 7 s by default."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def get(session: Session, task_id: str) -> Steps[Task]:
    answer = yield from session.ask(Request("GET", _path(task_id)))
    return model(answer.data, Task, answer.status)


def wait(session: Session, task_id: str, timeout: float | None) -> Steps[Task]:
    until = None if timeout is None else session.now() + timeout
    path = _path(task_id)
    me = object()
    session.waiters.add(me)
    try:
        task = yield from _wait(session, path, until)
    finally:
        session.waiters.discard(me)
    return task


def _wait(session: Session, path: str, until: float | None) -> Steps[Task]:
    while True:
        turn = _turn(len(session.waiters))
        asked = turn if until is None else min(turn, max(0.0, until - session.now()))
        began = session.now()
        request = Request("GET", path, {"wait": f"{asked:.3f}"}, extra=asked)
        answer = yield from session.ask(request, until)
        task = model(answer.data, Task, answer.status)
        if task.is_ended:
            return task
        if until is not None and session.now() >= until:
            raise WaitTimeout(task)
        if session.now() - began < asked / 2:
            yield Pause(EARLY)


def _turn(waiting: int) -> float:
    """Seconds to wait at a time; where more than WAITERS wait, they take turns."""
    return LONG_POLL if waiting <= WAITERS else max(SHORT_POLL, ROUND * WAITERS / waiting)


def result(session: Session, task_id: str, timeout: float | None) -> Steps[Any]:
    task = yield from wait(session, task_id, timeout)
    if task.status is not Status.SUCCESS:
        raise end_of(task)
    return task.result


def cancel(session: Session, task_id: str) -> Steps[bool]:
    request = Request("POST", _path(task_id, "/cancel"), extra=CANCEL_PATIENCE)
    answer = yield from session.ask(request)
    return answer.status != HTTPStatus.ACCEPTED


def retry(session: Session, task_id: str) -> Steps[Task]:
    answer = yield from session.ask(Request("POST", _path(task_id, "/retry"), repeatable=False))
    return model(answer.data, Task, answer.status)


def logs(session: Session, task_id: str) -> Steps[list[TaskLog]]:
    answer = yield from session.ask(Request("GET", _path(task_id, "/logs")))
    return model(answer.data, list[TaskLog], answer.status)


def page(session: Session, query: Mapping[str, str]) -> Steps[Page]:
    answer = yield from session.ask(Request("GET", f"{PREFIX}/tasks", query))
    return model(answer.data, Page, answer.status)


def task_types(session: Session) -> Steps[list[TaskTypeSettings]]:
    answer = yield from session.ask(Request("GET", f"{PREFIX}/task-types"))
    return model(answer.data, list[TaskTypeSettings], answer.status)


def health(session: Session, path: str) -> Steps[Health]:
    try:
        answer = yield from session.ask(Request("GET", path, retried=False))
    except ApiError as error:
        return Health(False, error.message)
    except (ConnectionFailed, BadAnswer) as error:
        return Health(False, str(error))
    said = answer.data.get("status") if isinstance(answer.data, dict) else None
    return Health(True, str(said))


def _path(task_id: str, rest: str = "") -> str:
    return f"{PREFIX}/tasks/{checked_id(task_id)}{rest}"


def checked_id(task_id: str) -> str:
    """Anything else is no task's id, and could change what the path means. Raises NotFound."""
    if not isinstance(task_id, str):
        raise TypeError(f"task_id: must be a text, not {type(task_id).__name__}")
    if not _ID.fullmatch(task_id):
        raise NotFound(f"no task {task_id[:64]}", 404, 40401)
    return task_id


def segment(name: str) -> str:
    """One step of a path. Raises ValueError for those that mean another path."""
    if name in ("", ".", "..") or "/" in name:
        raise ValueError("task_type: must be 1 to 128 letters, digits or any of _ . : -")
    return quote(name, safe="")


def task_query(
    status: Status | str | None,
    task_type: str | None,
    worker_id: str | None,
    parent_id: str | None,
    created_after: datetime | str | None,
    created_before: datetime | str | None,
    limit: int | None,
    cursor: str | None,
) -> dict[str, str]:
    given: dict[str, str | None] = {
        "status": None if status is None else str(status),
        "task_type": task_type,
        "worker_id": worker_id,
        "parent_id": parent_id,
        "created_after": None if created_after is None else bulk.when("created_after", created_after),
        "created_before": None if created_before is None else bulk.when("created_before", created_before),
        "limit": None if limit is None else str(limit),
        "cursor": cursor,
    }
    return {name: _text(name, value) for name, value in given.items() if value is not None}


def _text(name: str, value: str) -> str:
    """Raises TypeError or ValueError: what is no text would be sent as what Python prints of it."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: must be a text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: holds something that is no text in Unicode") from None
    return value
