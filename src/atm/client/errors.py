"""Every error that a client raises on purpose; their base is the product's.

AtmError
├── ConnectionFailed           nobody there, the connection broke, or what answers does not speak HTTP
│   └── RequestTimeout         no whole answer within `timeout`
├── BadAnswer                  an answer that no atm server gives
├── ApiError                   the server said no: status, code, message, request_id, errors
│   ├── InvalidRequest         400, 405, 413, 415, 422, 431; `errors` names the fields
│   ├── Unauthorized           401: no API key, or one that is not known
│   ├── Forbidden              403: the key lacks the scope
│   ├── NotFound               404
│   ├── Conflict               409: the task's status does not allow it, or the idempotency key is another task's
│   ├── RateLimited            429
│   └── ServerError            5xx
│       └── ServerUnavailable  502, 503, 504: try again later
├── WaitTimeout                the task had not ended in time; it goes on
└── TaskUnsuccessful           raised by `result()`: the task has ended, without a result
    ├── TaskFailed
    ├── TaskTimedOut
    └── TaskCancelled
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from atm.client.models import Task
from atm.errors import AtmError
from atm.task import Status


class ConnectionFailed(AtmError):
    """The server could not be reached, or the connection broke.

    Args:
        message: one line.
        sent: whether the server may have got the request, and carried it out.
    """

    def __init__(self, message: str, sent: bool = True) -> None:
        super().__init__(message, sent)
        self.sent = sent

    def __str__(self) -> str:
        return str(self.args[0])


class RequestTimeout(ConnectionFailed):
    """The answer did not come in time."""


class BadAnswer(AtmError):
    """Something answered that is no atm server, or none that this client understands.

    Args:
        message: one line.
        status: that of the answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field; in a bulk call ``field`` is as ``tasks[3].timeout``."""

    field: str
    reason: str


class ApiError(AtmError):
    """The server refused.

    Args:
        message: one line for people.
        status: of HTTP.
        code: the product's: status × 100 + n; None when a proxy before the server spoke.
        request_id: what the server calls the request.
        errors: the fields that are wrong.
        retry_after: seconds after which the server wants to be asked again.
    """

    def __init__(
        self,
        message: str,
        status: int,
        code: int | None = None,
        request_id: str | None = None,
        errors: Sequence[FieldError] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status, code, request_id, errors, retry_after)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.errors = tuple(errors)
        self.retry_after = retry_after

    def __str__(self) -> str:
        said = [f"HTTP {self.status}"]
        said += [f"code {self.code}"] if self.code is not None else []
        said += [f"request {self.request_id}"] if self.request_id is not None else []
        return f"{self.message} ({', '.join(said)})"


class InvalidRequest(ApiError):
    """The request is wrong; ``errors`` says which fields and why."""


class Unauthorized(ApiError):
    """No API key was shown, or one that the server does not know."""


class Forbidden(ApiError):
    """The API key lacks the scope, or the server is not to be called by this name."""


class NotFound(ApiError):
    """No such task: never made, or removed after the retention."""


class Conflict(ApiError):
    """The task's status does not allow it, or the idempotency key belongs to another task."""


class RateLimited(ApiError):
    """Too many requests."""


class ServerError(ApiError):
    """The server failed."""


class ServerUnavailable(ServerError):
    """The server, or its store, is away; asking again later may help."""


class WaitTimeout(AtmError):
    """The task had not ended when the time was over; it goes on.

    Args:
        task: as it was last seen.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        return f"task {self.task.task_id} is still {self.task.status}"


class TaskUnsuccessful(AtmError):
    """The task has ended without a result.

    Args:
        task: as it ended; ``task.error`` says why.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        why = f": {self.task.error.type}: {self.task.error.message}" if self.task.error else ""
        return f"task {self.task.task_id} ended as {self.task.status}{why}"


class TaskFailed(TaskUnsuccessful):
    """It failed, and has no retries left."""


class TaskTimedOut(TaskUnsuccessful):
    """Its last attempt took longer than its timeout."""


class TaskCancelled(TaskUnsuccessful):
    """It was cancelled."""


_KINDS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: InvalidRequest,
    409: Conflict,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
    431: InvalidRequest,
    502: ServerUnavailable,
    503: ServerUnavailable,
    504: ServerUnavailable,
}
_ENDS: dict[Status, type[TaskUnsuccessful]] = {
    Status.FAILED: TaskFailed,
    Status.TIMEOUT: TaskTimedOut,
    Status.CANCELLED: TaskCancelled,
}


def kind_of(status: int) -> type[ApiError]:
    """The class of the errors with this HTTP status."""
    return _KINDS.get(status, ServerError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else ApiError)


def end_of(task: Task) -> TaskUnsuccessful:
    """The error for a task that has ended, and not as SUCCESS."""
    return _ENDS[task.status](task)
