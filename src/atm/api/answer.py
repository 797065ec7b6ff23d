"""What every answer looks like: the envelope, and the errors with their codes.

    {"code": 0, "message": "success", "data": …}
    {"code": 42201, "message": "…", "request_id": "…", "errors": [{"field": "timeout", "reason": "…"}]}

An error's code is its HTTP status × 100 + n; ``docs/api.md`` lists them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

_encode_lines = msgspec.json.Encoder().encode_lines

BAD_JSON = 40001
BAD_REQUEST = 40002
NO_KEY = 40101
UNAUTHORISED_HOST = 40301
UNAUTHORISED_ORIGIN = 40302
NO_SCOPE = 40303
NO_TASK = 40401
NO_ROUTE = 40402
BAD_METHOD = 40501
BODY_TIMEOUT = 40801
BAD_STATE = 40901
KEY_CONFLICT = 40902
TOO_LARGE = 41301
BAD_MEDIA_TYPE = 41501
INVALID = 42201
HEAD_TOO_LARGE = 43101
INTERNAL = 50001
STORE_AWAY = 50301
NOT_READY = 50302
COORDINATOR_AWAY = 50303

MEANINGS = {
    BAD_JSON: "the body is not strict JSON",
    BAD_REQUEST: "the request is not HTTP/1.1, or its target is not a path",
    NO_KEY: "the request shows no API key, several, or one that is not known",
    UNAUTHORISED_HOST: "the Host header names no host of this node",
    UNAUTHORISED_ORIGIN: "a web page of another origin asks",
    NO_SCOPE: "the API key lacks the scope",
    NO_TASK: "no such task: never made, or removed after the retention",
    NO_ROUTE: "no such path",
    BAD_METHOD: "the path knows other methods; Allow names them",
    BODY_TIMEOUT: "the body did not arrive in time",
    BAD_STATE: "the task's status does not allow it",
    KEY_CONFLICT: "the idempotency key belongs to a task with another type or payload",
    TOO_LARGE: "the body, or one task of a batch, is too large",
    BAD_MEDIA_TYPE: "Content-Type is not application/json in UTF-8, or the body is compressed",
    INVALID: "a field, header or query parameter is wrong; errors says which and why",
    HEAD_TOO_LARGE: "the request's first line and headers are too large",
    INTERNAL: "a bug; the message holds the number under which the node's log has the rest",
    STORE_AWAY: "the store is away or full; nothing was decided",
    NOT_READY: "starting, draining, or the store is away",
    COORDINATOR_AWAY: "the cluster's Redis is away; everything else goes on",
}
"""What each code says, for the documents."""


MAX_PROBLEMS = 100
"""Problems that one answer lists at the most."""

MAX_FIELD = 200
"""Characters of a field's name in an answer; callers choose the names of unknown ones."""


class Reply(NamedTuple):
    """What a view returns. ``headers``: beside those of the content."""

    status: int
    content: bytes
    headers: Mapping[str, str]
    content_type: str = "application/json"

    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """As ASGI has them."""
        own = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        length = str(len(self.content)).encode()
        return [(b"content-type", self.content_type.encode()), (b"content-length", length), *own]


class ApiError(Exception):
    """Raised anywhere in a route; becomes the error envelope.

    Args:
        code: one of the codes above.
        message: one line for people.
        errors: (field, reason) pairs.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        code: int,
        message: str,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.errors = errors
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        return self.code // 100


def invalid(*errors: tuple[str, str]) -> ApiError:
    """422, naming the fields that are wrong."""
    told = [(field[:MAX_FIELD], reason) for field, reason in errors[:MAX_PROBLEMS]]
    field, reason = told[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ApiError(INVALID, f"{field}: {reason}{more}", told)


def success(
    data: Any = None, *, status: int = 200, message: str = "success", headers: Mapping[str, str] | None = None
) -> Reply:
    """The envelope around ``data``; without data there is no such key."""
    body = {"code": 0, "message": message} if data is None else {"code": 0, "message": message, "data": data}
    return Reply(status, _encode(body), headers or {})


def failure(error: ApiError) -> Reply:
    return Reply(error.status, error_body(error.code, error.message, error.errors), error.headers)


def _encode(envelope: dict[str, Any]) -> bytes:
    """JSON in one line that ends: what is asked for on a terminal stands by itself there."""
    return _encode_lines((envelope,))


def error_body(code: int, message: str, errors: Sequence[tuple[str, str]] = ()) -> bytes:
    """The error envelope as bytes, with a request id of its own."""
    return _encode(
        {
            "code": code,
            "message": message,
            "request_id": uuid.uuid4().hex,
            "errors": [{"field": field, "reason": reason} for field, reason in errors],
        }
    )
