"""Bodies: bytes into checked values. Whatever is wrong is a 4xx that says where.

A payload is stored as it was written, so its text is cut out of the body; the decoded form serves the checks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NoReturn

import msgspec
import trio
from quart import Request

from atm.api.answer import BAD_JSON, BAD_MEDIA_TYPE, BODY_TIMEOUT, MAX_PROBLEMS, TOO_LARGE, ApiError, invalid
from atm.store import NewTask
from atm.task import TASK_TYPE_PATTERN, is_task_type, new_task_id

MAX_TASK = 1024 * 1024
MAX_BATCH = 16 * 1024 * 1024
"""Bytes."""

MAX_BATCH_TASKS = 1000
MAX_DEPTH = 64
"""Levels of a payload, itself included."""

MAX_TIMEOUT = 604_800
MAX_DELAY = 31_536_000
"""Seconds."""

MAX_RETRY = 100
MAX_KEY = 255
"""Bytes of an idempotency key."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_BATCH_HEAD = re.compile(rb'\s*\{\s*"tasks"\s*:\s*\[\s*')
_BATCH_COMMA = re.compile(rb"\s*,\s*")
_BATCH_TAIL = re.compile(rb"\s*\]\s*\}\s*")

Problems = list[tuple[str, str]]


class _Payload(msgspec.Struct):
    payload: msgspec.Raw = msgspec.Raw(b"{}")


class _Payloads(msgspec.Struct):
    tasks: list[_Payload]


class _Tasks(msgspec.Struct):
    tasks: list[msgspec.Raw]


# One place more than allowed: what stands behind it is stepped over without a trace.
_Places = msgspec.defstruct(
    "_Places", [(f"task{n}", msgspec.Raw, None) for n in range(MAX_BATCH_TASKS + 1)], array_like=True
)


class _Batch(msgspec.Struct):
    tasks: _Places  # type: ignore[valid-type]


_cut_payload = msgspec.json.Decoder(_Payload).decode
_cut_payloads = msgspec.json.Decoder(_Payloads).decode
_cut_tasks = msgspec.json.Decoder(_Tasks).decode
_cut_batch = msgspec.json.Decoder(_Batch).decode


class _DuplicateKeyError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _DuplicateKeyError(f"key {twice[:64]!r} is given twice")
    return made


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _number(text: str) -> float:
    """A number with a point or an exponent; an integer where it is one, as JSON Schema has it: 3.0, 1e2."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:32]} is too large")
    return int(value) if value.is_integer() else value


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_number).decode


async def read_json(request: Request, limit: int) -> tuple[bytes, dict[str, Any]]:
    """The request's body, as bytes and decoded. Raises ApiError: 400, 413 or 415."""
    body = await _read(request, limit)
    return body, decode_object(body)


async def read_batch(request: Request) -> list[NewTask]:
    """The tasks of a batch's body. Raises ApiError: 400, 413, 415 or 422."""
    body = await _read(request, MAX_BATCH)
    if len(body) <= MAX_TASK:
        return new_tasks(body, decode_object(body))
    return await _new_tasks_one_by_one(body)


async def _read(request: Request, limit: int) -> bytes:
    headers = request.headers
    kind = headers.get("Content-Type", "")
    if kind != "application/json" and (
        request.mimetype != "application/json"
        or request.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8")
    ):
        raise ApiError(BAD_MEDIA_TYPE, "the body must be application/json, in UTF-8")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(BAD_MEDIA_TYPE, "the body must not be compressed (Content-Encoding)")
    if request.content_length is None:
        return await _read_chunks(request, limit)
    if request.content_length > limit:
        raise _too_large("the body", limit)
    body: bytes = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    return body


async def _read_chunks(request: Request, limit: int) -> bytes:
    """A body that did not announce its length, given up as soon as it is too long."""
    body = bytearray()
    with trio.move_on_after(request.body_timeout or math.inf):
        async for part in request.body:
            body += part
            if len(body) > limit:
                raise _too_large("the body", limit)
        return bytes(body)
    raise ApiError(BODY_TIMEOUT, "the body did not arrive in time")


def _too_large(what: str, limit: int) -> ApiError:
    return ApiError(TOO_LARGE, f"{what} is larger than {limit} bytes")


def decode_object(body: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, one object, no duplicate keys, no NaN, no lone surrogates. Raises ApiError 400."""
    value = _decode_strictly(body, "the body")
    if not isinstance(value, dict):
        raise ApiError(BAD_JSON, "the body must be a JSON object")
    return value


def _decode_strictly(body: bytes, what: str) -> Any:
    try:
        text = body.decode("utf-8")
        value = _decode(text)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _DuplicateKeyError as error:
        raise ApiError(BAD_JSON, f"{what} is not acceptable JSON: {error}") from None
    except UnicodeEncodeError:
        raise ApiError(BAD_JSON, f"{what} is not acceptable JSON: a lone surrogate") from None
    except UnicodeDecodeError as error:
        raise ApiError(BAD_JSON, f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ApiError(BAD_JSON, f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ApiError(BAD_JSON, f"{what} is not JSON: {error}") from None
    return value


def new_task(body: bytes, fields: dict[str, Any], header_key: str | None) -> NewTask:
    """A create's body as a NewTask. Raises ApiError 422 with every field that is wrong."""
    problems: Problems = []
    if header_key is not None and fields.setdefault("idempotency_key", header_key) != header_key:
        problems.append(("idempotency_key", "differs from the Idempotency-Key header"))
    _check(fields, "", problems)
    if problems:
        raise invalid(*problems)
    payload = bytes(_cut_payload(body).payload).decode()
    return _build(fields, payload, "")


def header_key(request: Request) -> str | None:
    """The Idempotency-Key header. Raises ApiError 422."""
    found = request.headers.getlist("Idempotency-Key")
    if not found:
        return None
    try:
        # The header's bytes, which the server gave us as Latin-1, are the key's, as those in a body are.
        key = found[0].encode("latin-1").decode()
    except UnicodeDecodeError:
        raise invalid(("Idempotency-Key", "must be UTF-8")) from None
    if reason := "is given twice" if len(found) > 1 else key_reason(key):
        raise invalid(("Idempotency-Key", reason))
    return key


def new_tasks(body: bytes, fields: dict[str, Any]) -> list[NewTask]:
    """A batch's body as NewTasks. Raises ApiError: 413 or 422."""
    problems: Problems = [(name, "unknown field") for name in fields if name != "tasks"]
    items = fields.get("tasks")
    if not isinstance(items, list):
        problems.append(("tasks", "must be a list" if "tasks" in fields else "is required"))
    elif not 1 <= len(items) <= MAX_BATCH_TASKS:
        problems.append(("tasks", f"must hold 1 to {MAX_BATCH_TASKS} tasks, not {len(items)}"))
    else:
        _check_all(items, problems)
    if problems:
        raise invalid(*problems)
    payloads = [bytes(task.payload).decode() for task in _cut_payloads(body).tasks]
    assert isinstance(items, list)
    return [_build(item, payloads[index], f"tasks[{index}].") for index, item in enumerate(items)]


async def _new_tasks_one_by_one(body: bytes) -> list[NewTask]:
    """As ``new_tasks``, for large bodies: neither the loop nor the memory ever bears more than one task."""
    texts = _cut(body)
    problems: Problems = []
    tasks = []
    for index, text in enumerate(texts):
        if len(text) > MAX_TASK:
            raise _too_large(f"tasks[{index}]", MAX_TASK)
        item = _decode_strictly(text, f"tasks[{index}]")
        before = len(problems)
        _check_one(index, item, problems)
        if len(problems) == before:
            tasks.append(_build(item, bytes(_cut_payload(text).payload).decode(), f"tasks[{index}]."))
        if len(problems) >= MAX_PROBLEMS:
            break
        await trio.lowlevel.checkpoint()
    if problems:
        raise invalid(*problems)
    return tasks


def _cut(body: bytes) -> list[bytes]:
    """The texts of the tasks in a batch's body, once it is sure that there is nothing else in it."""
    try:
        found = msgspec.structs.astuple(_cut_batch(body).tasks)
    except msgspec.ValidationError:
        raise invalid(("tasks", "is required, as a list")) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(BAD_JSON, f"the body is not JSON: {error}") from None
    texts = [bytes(raw) for raw in found if raw is not None]
    if not 1 <= len(texts) <= MAX_BATCH_TASKS:
        raise invalid(("tasks", f"must hold 1 to {MAX_BATCH_TASKS} tasks"))
    mark: re.Match[bytes] | None = _BATCH_HEAD.match(body)
    for left, text in zip(range(len(texts) - 1, -1, -1), texts, strict=True):
        if mark is None or not body.startswith(text, mark.end()):
            break
        mark = (_BATCH_COMMA if left else _BATCH_TAIL).match(body, mark.end() + len(text))
    if mark is None or mark.end() != len(body):
        raise ApiError(BAD_JSON, 'the body is not acceptable JSON: it must be {"tasks": […]} and nothing else')
    return texts


def _check_all(items: list[Any], problems: Problems) -> None:
    for index, item in enumerate(items):
        _check_one(index, item, problems)
        if len(problems) >= MAX_PROBLEMS:
            return


def _check_one(index: int, item: Any, problems: Problems) -> None:
    if isinstance(item, dict):
        _check(item, f"tasks[{index}].", problems)
    else:
        problems.append((f"tasks[{index}]", "must be an object"))


def _check(fields: dict[str, Any], prefix: str, problems: Problems) -> None:
    for name, value in fields.items():
        check = _CHECKS.get(name)
        reason = "unknown field" if check is None else check(value)
        if reason:
            problems.append((prefix + name, reason))
    if REQUIRED not in fields:
        problems.append((prefix + REQUIRED, "is required"))
    if all(name in fields for name in APART):
        problems.append((prefix + APART[1], f"cannot be given together with {APART[0]}"))


def _build(fields: dict[str, Any], payload: str, prefix: str) -> NewTask:
    """The task of checked fields; ``payload`` is its text as it stands in the body."""
    # Only a payload with that many brackets can be that deep.
    if payload.count("{") + payload.count("[") > MAX_DEPTH and _is_too_deep(fields["payload"]):
        raise invalid((f"{prefix}payload", f"is nested deeper than {MAX_DEPTH} levels"))
    get = fields.get
    return NewTask(
        task_id=new_task_id(),
        task_type=fields["task_type"],
        payload_json=payload,
        priority=get("priority", 0),
        timeout=get("timeout"),
        max_retry=get("max_retry"),
        delay=get("delay"),
        scheduled_ms=milliseconds(fields["scheduled_at"]) if "scheduled_at" in fields else None,
        idempotency_key=get("idempotency_key"),
    )


def _is_too_deep(payload: dict[str, Any]) -> bool:
    level: list[Any] = [payload]
    for _ in range(MAX_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def task_type_reason(value: Any) -> str | None:
    if is_task_type(value):
        return None
    return "must be 1 to 128 letters, digits or any of _ . : -"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Rule(NamedTuple):
    """What a value must be: ``reason`` says why one is refused, ``schema`` tells the OpenAPI document the same."""

    reason: Callable[[Any], str | None]
    schema: dict[str, Any]

    def told(self, description: str, **keywords: Any) -> Rule:
        """The rule with a description and further keywords of JSON Schema."""
        return Rule(self.reason, {**self.schema, "description": description, **keywords})


def integer(low: int, high: int) -> Rule:
    def check(value: Any) -> str | None:
        return None if _is_int(value) and low <= value <= high else f"must be an integer from {low} to {high}"

    return Rule(check, {"type": "integer", "minimum": low, "maximum": high})


def number(low: float, high: float, *, above: bool = False) -> Rule:
    """A number from (``above``: greater than) low to high."""
    text = f"must be a number {f'greater than {low:g} and at most' if above else f'from {low:g} to'} {high:,g}"

    def check(value: Any) -> str | None:
        fits = (_is_int(value) or isinstance(value, float)) and low <= value <= high
        return None if fits and not (above and value == low) else text

    return Rule(check, {"type": "number", "exclusiveMinimum" if above else "minimum": low, "maximum": high})


def _payload_reason(value: Any) -> str | None:
    return None if isinstance(value, dict) else "must be an object"


def _priority_reason(value: Any) -> str | None:
    return None if _is_int(value) and value in (1, 0, -1) else "must be 1 (high), 0 (normal) or -1 (low)"


def key_reason(value: Any) -> str | None:
    if isinstance(value, str) and 1 <= len(value.encode()) <= MAX_KEY and not _CONTROL.search(value):
        return None
    return f"must be a text of 1 to {MAX_KEY} bytes without control characters"


def time_reason(value: Any) -> str | None:
    return None if isinstance(value, str) and milliseconds(value) is not None else _TIME_TEXT


_TIME_TEXT = "must be a time with zone, as in 2026-01-31T10:00:00Z (RFC 3339)"


def milliseconds(text: str) -> int | None:
    """Milliseconds since 1970 of an RFC 3339 time, None when it is none."""
    if not _RFC3339.fullmatch(text):
        return None
    try:
        # What lies outside the years 1 to 9999 in UTC overflows here.
        moment = datetime.fromisoformat(text.upper().replace(" ", "T")).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return (moment - _EPOCH) // _MILLISECOND


TASK_TYPE = Rule(task_type_reason, {"type": "string", "pattern": f"^{TASK_TYPE_PATTERN}$"})
PRIORITY = Rule(_priority_reason, {"type": "integer", "enum": [1, 0, -1]})
PAYLOAD = Rule(_payload_reason, {"type": "object"})
TIME = Rule(time_reason, {"type": "string", "format": "date-time"})
KEY = Rule(key_reason, {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": r"^[^\x00-\x1f\x7f]+$"})

FIELDS: dict[str, Rule] = {
    "task_type": TASK_TYPE.told(
        "Which executor runs it. One that no worker supports is accepted and waits.", examples=["echo"]
    ),
    "priority": PRIORITY.told("1 high, 0 normal, -1 low.", default=0, examples=[1]),
    "payload": PAYLOAD.told(
        f"For the executor. At most {MAX_DEPTH} levels deep; stored and shown exactly as it was written.",
        default={},
        examples=[{"hello": "world"}],
    ),
    "timeout": number(0, MAX_TIMEOUT, above=True).told(
        "Seconds that one attempt may take; by default those of the type (300).", examples=[300]
    ),
    "max_retry": integer(0, MAX_RETRY).told(
        "Retries after failures and timeouts; by default those of the type (3).", examples=[3]
    ),
    "delay": number(0, MAX_DELAY).told(
        "Seconds until it may run. Not together with scheduled_at.", default=0, examples=[60]
    ),
    "scheduled_at": TIME.told(
        "When it may run, instead of delay; a time with its zone (RFC 3339). One that has passed means now.",
        examples=["2026-01-31T10:00:00Z"],
    ),
    "idempotency_key": KEY.told(
        f"1 to {MAX_KEY} bytes of UTF-8 without control characters. The same key with the same type and payload "
        "is a replay: the answer is the first task's. May stand in the header Idempotency-Key instead.",
        examples=["order-4711"],
    ),
}
"""The fields of a create."""

REQUIRED = "task_type"
APART = ("delay", "scheduled_at")
"""Not both in one task."""

_CHECKS = {name: rule.reason for name, rule in FIELDS.items()}
