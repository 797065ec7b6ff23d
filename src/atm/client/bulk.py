"""Tasks as JSON, and many of them cut into requests."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from atm.client.errors import ApiError, FieldError

MAX_TASKS = 1000
MAX_BYTES = 16 * 1024 * 1024
"""Of one request."""

_HEAD, _COMMA, _TAIL = b'{"tasks":[', b",", b"]}"
_PLACE = re.compile(r"\btasks\[(\d+)\]")

FIELDS = frozenset(
    {
        "task_type",
        "priority",
        "payload",
        "timeout",
        "max_retry",
        "delay",
        "scheduled_at",
        "idempotency_key",
    }
)


def encode(fields: Mapping[str, Any]) -> bytes:
    """JSON, without the fields that are None. Raises ValueError or TypeError for what JSON cannot say."""
    return dumps({name: _plain(name, value) for name, value in fields.items() if value is not None})


def dumps(value: Mapping[str, Any]) -> bytes:
    """Strict JSON. Raises ValueError or TypeError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _plain(name: str, value: Any) -> Any:
    return when(name, value) if isinstance(value, datetime) else value


def when(name: str, moment: datetime | str) -> str:
    """RFC 3339. Raises ValueError for a time without zone, which could mean anything."""
    if isinstance(moment, str):
        return moment
    if not isinstance(moment, datetime):
        raise TypeError(f"{name}: must be a time, not {type(moment).__name__}")
    if moment.tzinfo is None:
        raise ValueError(f"{name}: the time needs a zone, as in datetime.now(timezone.utc)")
    return moment.isoformat()


def encode_task(fields: Mapping[str, Any]) -> bytes:
    """A task to be created, with an idempotency key of its own if it has none: so it may be sent again."""
    if not isinstance(fields, Mapping):
        raise TypeError(f'must be a mapping, as in {{"task_type": "echo"}}, not {type(fields).__name__}')
    if unknown := sorted(set(fields) - FIELDS):
        raise ValueError(f"{unknown[0]}: unknown field; known are {', '.join(sorted(FIELDS))}")
    if fields.get("idempotency_key") is None:
        fields = {**fields, "idempotency_key": uuid.uuid4().hex}
    return encode(fields)


@dataclass(frozen=True)
class Piece:
    """One request's worth; ``start``: how many tasks stand before it."""

    start: int
    tasks: list[bytes]

    @property
    def body(self) -> bytes:
        return _HEAD + _COMMA.join(self.tasks) + _TAIL


def pieces(tasks: Iterable[Mapping[str, Any]]) -> Iterator[Piece]:
    """Cuts into requests of at most MAX_TASKS tasks and MAX_BYTES bytes; takes no more tasks than it needs."""
    held: list[bytes] = []
    start, size = 0, len(_HEAD + _TAIL)
    for index, task in enumerate(tasks):
        try:
            text = encode_task(task)
        except (TypeError, ValueError) as error:
            raise type_of(error)(f"tasks[{index}]: {error}") from None
        if held and (len(held) == MAX_TASKS or size + len(text) + 1 > MAX_BYTES):
            yield Piece(start, held)
            start, held, size = index, [], len(_HEAD + _TAIL)
        held.append(text)
        size += len(text) + 1
    if held:
        yield Piece(start, held)


def type_of(error: TypeError | ValueError) -> type[TypeError] | type[ValueError]:
    return TypeError if isinstance(error, TypeError) else ValueError


def moved(error: ApiError, start: int) -> ApiError:
    """The refusal of a piece, with the places of its tasks in the whole call."""

    def place(text: str) -> str:
        return _PLACE.sub(lambda found: f"tasks[{int(found[1]) + start}]", text)

    errors = [FieldError(place(wrong.field), wrong.reason) for wrong in error.errors]
    return type(error)(place(error.message), error.status, error.code, error.request_id, errors, error.retry_after)
