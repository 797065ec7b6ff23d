"""What is said between client and server, without saying it: requests, answers, what may be repeated and when.

A call is a generator: it yields steps (a request to send, a pause to make) to a driver, gets answers (or the
driver's errors) back, and returns what the caller wants to know. So each call is written once, and drivers
that block, that await, or that only pretend carry it out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar

import msgspec

from atm.client.errors import ApiError, BadAnswer, ConnectionFailed, FieldError, kind_of
from atm.errors import AtmError

T = TypeVar("T")

FIRST_DELAY = 0.1
MAX_DELAY = 5.0
"""Seconds before the first repetition, and before any; each is twice the one before, less up to a half."""

REPEATABLE = frozenset({502, 503, 504})
"""Statuses after which the same request may fare better."""

UNDONE = frozenset({408, 429})
"""Statuses of requests that were not looked at: anything may be repeated."""


@dataclass(frozen=True, slots=True)
class Request:
    """``path`` is quoted; ``repeatable``: also when it may have been carried out; ``extra``: seconds that the
    server may take beyond the client's timeout; ``retried``: whether failures are worth a second try."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    extra: float = 0.0
    retried: bool = True


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """``headers`` are asked for in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Success:
    status: int
    data: Any


Step: TypeAlias = Request | Pause
Steps: TypeAlias = Generator[Step, Answer | None, T]


class Session:
    """Sends requests again and again, within reason; ``waiters``: calls that wait for a task to end.

    Args:
        retries: repetitions of one request at the most.
        retry_for: seconds after which none is begun any more.
        now: the driver's clock.

    Raises ValueError or TypeError, naming what cannot be.
    """

    def __init__(self, retries: int, retry_for: float, now: Callable[[], float]) -> None:
        for name, value in (("retries", retries), ("retry_for", retry_for)):
            if not number(name, value) >= 0:
                raise ValueError(f"{name}: must not be negative")
        if not isinstance(retries, int):
            raise TypeError("retries: must be a whole number")
        self._retries = retries
        self._retry_for = retry_for
        self.now = now
        self.waiters: set[object] = set()  # of which threads may take and give at a time

    def ask(self, request: Request, until: float | None = None) -> Steps[Success]:
        """The server's answer; ``until``: no repetition is begun later. Raises AtmError."""
        last = self.now() + request.extra + self._retry_for
        if until is not None:
            last = min(last, until)
        for attempt in range(self._retries + 1):
            try:
                answer = yield request
                assert answer is not None
                return read(answer)
            except AtmError as error:
                delay = max(_backoff(attempt), getattr(error, "retry_after", None) or 0.0)
                if attempt == self._retries or not _may_repeat(request, error) or self.now() + delay > last:
                    raise
            yield Pause(delay)
        raise AssertionError("the last attempt returns or raises")


def number(name: str, value: float) -> float:
    """``value``. Raises TypeError, naming what should be one."""
    if not isinstance(value, int | float):
        raise TypeError(f"{name}: must be a number, not {type(value).__name__}")
    return value


def _backoff(attempt: int) -> float:
    return float(min(MAX_DELAY, FIRST_DELAY * 2 ** min(attempt, 16))) * random.uniform(0.5, 1)


def _may_repeat(request: Request, error: AtmError) -> bool:
    if not request.retried:
        return False
    if isinstance(error, ConnectionFailed):
        return request.repeatable or not error.sent
    if isinstance(error, ApiError):
        return error.status in UNDONE or (request.repeatable and error.status in REPEATABLE)
    return False


class _Failure(msgspec.Struct):
    code: int
    message: str
    request_id: str | None = None
    errors: list[FieldError] = []


def read(answer: Answer) -> Success:
    """The envelope, opened. Raises ApiError for a refusal, BadAnswer for what is no envelope."""
    try:
        content = json.loads(answer.body)
        if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES and content["code"] == 0:
            return Success(answer.status, content.get("data"))
        failure = msgspec.convert(content, _Failure)
        if failure.code // 100 != answer.status or answer.status < HTTPStatus.BAD_REQUEST:
            raise ValueError("the code is not that of the status")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise _unreadable(answer) from None
    raise kind_of(answer.status)(
        failure.message, answer.status, failure.code, failure.request_id, failure.errors, _retry_after(answer)
    )


_SAID_BY_PROXIES = frozenset({401, 403, 413, 429})


def _unreadable(answer: Answer) -> AtmError:
    status = answer.status
    if status in _SAID_BY_PROXIES or HTTPStatus.INTERNAL_SERVER_ERROR <= status < 600:
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "unknown status"
        return kind_of(status)(phrase, status, retry_after=_retry_after(answer))
    kind = answer.headers.get("content-type", "no type")
    return BadAnswer(f"an answer that no atm server gives: HTTP {status}, {kind}: {answer.body[:80]!r}", status)


def _retry_after(answer: Answer) -> float | None:
    """Seconds; RFC 9110, section 10.2.3: a number of them, or a date."""
    said = answer.headers.get("retry-after", "")
    if said.isascii() and said.isdigit():
        return float(said[:9])
    try:
        moment = parsedate_to_datetime(said)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def model(data: Any, kind: type[T], status: int = HTTPStatus.OK) -> T:
    """The typed value. Raises BadAnswer."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise BadAnswer(f"an answer that this client does not understand: {error}", status) from None
