"""The statements of the MySQL store that write tasks and their logs: constants, and functions that put values in.

Rows are written as values, or from one JSON text by JSON_TABLE; many that are alike as one.
"""

# ruff: noqa: S608 - constants, and values that bind has quoted

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple, cast

from atm.store import Lease, NewTask, Outcome
from atm.stores import decide
from atm.stores.decide import Change, End, Log, Row
from atm.stores.mysql_texts import keys
from atm.stores.mysql_values import bind, encode, literal
from atm.task import TaskType

PIECE = 4 << 20
"""Bytes of values in one statement: quoted they are several times as many, and servers take 16 MiB."""

SLACK = 128
"""Bytes that a claim and an end may add to a row before it grows."""

FEW = 3

_MEDIUMTEXT = "MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"


def _update(columns: Sequence[str], changes: str) -> str:
    """An update of rows ``t`` by the rows ``c`` of a JSON list of lists, which have the task's id first."""
    paths = ", ".join(f"{column} PATH '$[{at}]'" for at, column in enumerate(["id VARBINARY(64)", *columns]))
    table = f"JSON_TABLE(%s, '$[*]' COLUMNS ({paths})) AS c"
    return f"UPDATE {table} STRAIGHT_JOIN task AS t FORCE INDEX (PRIMARY) ON t.task_id = c.id SET {changes}"


_TEXTS = (f"result {_MEDIUMTEXT}", f"error {_MEDIUMTEXT}", f"progress {_MEDIUMTEXT}")
_UPDATE_ENDED = _update(
    ["log_count INT", "status VARBINARY(10)", *_TEXTS],
    "t.status = c.status, t.sweep_at = %s, t.completed_at = %s, t.result = c.result, t.error = c.error, "
    "t.progress = COALESCE(c.progress, t.progress), t.log_count = c.log_count, t.slack = ''",
)
_UPDATE_ALIKE = (
    "UPDATE task FORCE INDEX (PRIMARY) SET status = %s, sweep_at = %s, completed_at = %s, result = %s, "
    "error = %s, progress = COALESCE(%s, progress), log_count = %s, slack = '' WHERE task_id IN "
)
_UPDATE_CHANGED = _update(
    [
        "log_count INT", "status VARBINARY(10)", "due_at BIGINT", "sweep_at BIGINT", "completed_at BIGINT",
        "retry_count INT", "recoveries INT", "releases INT", "cancel_requested_at BIGINT",
        "worker_id VARBINARY(64)", "keep_body TINYINT", *_TEXTS, "opened TINYINT",
    ],
    "t.status = c.status, t.due_at = COALESCE(c.due_at, t.due_at), t.sweep_at = COALESCE(c.sweep_at, %s), "
    "t.completed_at = c.completed_at, t.retry_count = c.retry_count, t.recoveries = c.recoveries, "
    "t.releases = c.releases, t.cancel_requested_at = c.cancel_requested_at, "
    "t.worker_epoch = IF(c.worker_id IS NULL, NULL, t.worker_epoch), t.worker_id = c.worker_id, "
    "t.expires_at = IF(c.opened, NULL, t.expires_at), "
    "t.started_at = IF(c.status = 'PENDING', NULL, t.started_at), "
    "t.result = IF(c.keep_body, t.result, c.result), t.error = IF(c.keep_body, t.error, c.error), "
    "t.progress = IF(c.opened, NULL, COALESCE(c.progress, t.progress)), t.log_count = c.log_count",
)  # fmt: skip
UPDATE_NOTED = _update(
    ["log_count INT", f"progress {_MEDIUMTEXT}", f"error {_MEDIUMTEXT}"],
    "t.progress = COALESCE(c.progress, t.progress), t.error = COALESCE(c.error, t.error), "
    "t.log_count = c.log_count",
)
_UPDATE_MARKED = _update(["log_count INT"], "t.cancel_requested_at = %s, t.log_count = c.log_count")
UPDATE_PARENTS = _update(["log_count INT"], "t.children = 1, t.log_count = c.log_count")
UPDATE_ADOPTED = _update(
    ["parent VARBINARY(64)", "expires BIGINT"], "t.parent_id = c.parent, t.expires_at = c.expires"
)
UPDATE_ORPHANED = b"UPDATE task FORCE INDEX (PRIMARY) SET expires_at = 0 WHERE task_id IN "
UPDATE_CLAIMED = (
    "UPDATE task FORCE INDEX (PRIMARY) SET status = 'PROCESSING', attempt = attempt + 1, worker_id = %s, "
    "worker_epoch = %s, started_at = @now, sweep_at = @now + %s + CAST(LEAST(timeout, 1e9) * 1000 AS SIGNED), "
    f"progress = NULL, log_count = -log_count, slack = LEFT(slack, {SLACK // 2}) WHERE task_id IN "
)
# What sets a task back to PENDING sets due_at too: a claim that had to wait for it does not seem to be older.
STILL_DUE = b" AND status = 'PENDING' AND due_at <= @now AND (expires_at IS NULL OR expires_at > @now OR children)"
CLAIMED_NOW = " AND status = 'PROCESSING' AND worker_epoch = %s AND started_at = @now"
_SUCCEED_ALIKE = (
    "UPDATE task FORCE INDEX (PRIMARY) SET status = 'SUCCESS', sweep_at = @now, completed_at = @now, "
    "result = %s, error = NULL, progress = COALESCE(%s, progress), log_count = %s, slack = '' "
    "WHERE status = 'PROCESSING' AND cancel_requested_at IS NULL "
    "AND attempt = %s AND log_count = %s AND worker_epoch = %s AND task_id IN "
)
_SUCCEED = _update(
    ["attempt INT", "was INT", "log_count INT", *_TEXTS],
    "t.status = 'SUCCESS', t.sweep_at = @now, t.completed_at = @now, t.result = c.result, t.error = NULL, "
    "t.progress = COALESCE(c.progress, t.progress), t.log_count = c.log_count, t.slack = '' "
    "WHERE t.status = 'PROCESSING' AND t.cancel_requested_at IS NULL "
    "AND t.attempt = c.attempt AND t.log_count = c.was AND t.worker_epoch = %s",
)
UPDATE_SWEPT = (
    "UPDATE task FORCE INDEX (PRIMARY) SET sweep_at = %s + LEAST(GREATEST(%s - due_at, %s), %s) WHERE task_id IN "
)
DELETES = tuple(
    f"DELETE t FROM {table} AS t FORCE INDEX (PRIMARY) WHERE task_id IN ".encode()
    for table in ("task_logs", "task")
)
# In place of the ids NULL, which is refused, if not all were met.
_INSERT_SUCCESS = (
    "INSERT INTO task_logs "
    "(task_id, log_id, log_type, from_status, to_status, message, worker_id, attempt, created_at) "
    "SELECT IF(@met = %s, c.id, NULL), n.number, 'STATE_CHANGE', n.was, n.became, n.message, %s, %s, "
    "IF(n.number = %s, c.started_at, @now) "
    "FROM JSON_TABLE(%s, '$[*]' COLUMNS (id VARBINARY(64) PATH '$[0]', started_at BIGINT PATH '$[1]')) AS c "
    "CROSS JOIN (SELECT %s AS number, 'PENDING' AS was, 'PROCESSING' AS became, %s AS message "
    "UNION ALL SELECT %s, 'PROCESSING', 'SUCCESS', %s) AS n"
)
_INSERT_CREATED = (
    "INSERT INTO task_logs "
    "(task_id, log_id, log_type, from_status, to_status, message, worker_id, attempt, created_at) "
    "SELECT id, 1, 'STATE_CHANGE', NULL, 'PENDING', 'Task created', NULL, NULL, @now "
    "FROM JSON_TABLE(%s, '$[*]' COLUMNS (id VARBINARY(64) PATH '$')) AS c"
)
_INSERT_TASKS = (
    b"INSERT INTO task (task_id, task_type, status, priority, payload, timeout, max_retry, created_at, due_at, "
    b"scheduled_at, sweep_at, idempotency_key, log_count, slack) VALUES "
)
_INSERT_LOGS = (
    b"INSERT INTO task_logs (task_id, log_id, log_type, from_status, to_status, message, worker_id, attempt, "
    b"created_at) VALUES "
)


class Logs:
    """The log rows of one transaction.

    ``counts`` has the number of the last row of each task's log. It is negative where the row of the claim is
    owed: what that row says stands in the task's own row, until the next one is written.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._rows: list[tuple[Log, int, int | None]] = []
        self._owed: dict[str, tuple[Log, int]] = {}

    def know(self, count: int, row: Row, started_ms: int | None) -> None:
        """Told of each task as it was before."""
        self.counts[row.task_id] = count
        if count < 0:
            claim = decide.claimed(row.task_id, row.attempt, row.worker_id or "")
            self._owed[row.task_id] = claim, started_ms or 0

    def add(self, row: Log) -> None:
        name = cast("str", row.seq)
        number = self.counts[name]
        if number < 0:
            claim, started_ms = self._owed.pop(name)
            number = 1 - number
            self._rows.append((claim, number, started_ms))
        self.counts[name] = number = number + 1
        self._rows.append((row, number, None))

    def statements(self) -> list[bytes]:
        ends: dict[tuple[object, ...], bytes] = {}
        values: list[bytes] = []
        for row, number, at in self._rows:
            rest = row[1:]  # often alike
            if (end := ends.get(rest)) is None:
                end = ends[rest] = b",".join(map(literal, rest))
            values.append(b"(%b,%d,%b,%b)" % (literal(row[0]), number, end, b"@now" if at is None else b"%d" % at))
        return [_INSERT_LOGS + piece for piece in _slices(values)]


class Success(NamedTuple):
    """The end of a claimed task of which nothing else was heard since."""

    task_id: str
    attempt: int
    log_count: int
    started_ms: int
    outcome: Outcome


def succeed(successes: Sequence[Success], lease: Lease) -> list[bytes]:
    """Write the ends, and their log, if all of the tasks are as they were claimed; else a statement fails."""
    alike: dict[tuple[object, ...], list[str]] = {}
    logs: dict[tuple[int, int, str], list[bytes]] = {}
    for task_id, attempt, count, started_ms, o in successes:
        alike.setdefault((o.result_json, o.progress_json, 2 - count, attempt, count), []).append(task_id)
        logs.setdefault((attempt, count, o.message), []).append(encode((task_id, started_ms)))
    if len(alike) <= FEW:
        updates = [
            bind(_SUCCEED_ALIKE, *values, lease.epoch) + some
            for values, names in alike.items()
            for some in keys(names)
        ]
    else:
        rows = [
            (task_id, attempt, count, 2 - count, o.result_json, None, o.progress_json)
            for task_id, attempt, count, _, o in sorted(successes)
        ]
        updates = [bind(_SUCCEED, piece, lease.epoch) for piece in pieces(rows)]
    met = [b"SET @met := ROW_COUNT()", *repeat(b"SET @met := @met + ROW_COUNT()", len(updates) - 1)]
    counted = [statement for pair in zip(updates, met, strict=True) for statement in pair]
    inserts = [
        _insert_success(len(successes), lease.worker_id, *kind, b"[" + b",".join(rows) + b"]")
        for kind, rows in logs.items()
    ]
    return [*counted, *inserts]


def _insert_success(wanted: int, worker_id: str, attempt: int, count: int, message: str, rows: bytes) -> bytes:
    claim = decide.claimed("", attempt, worker_id)
    first = 1 - count
    return bind(_INSERT_SUCCESS, wanted, worker_id, attempt, first, rows, first, claim.message, first + 1, message)


def insert_tasks(new: Iterable[tuple[NewTask, TaskType]]) -> list[bytes]:
    """New tasks, with the settings of their types, and the first rows of their logs."""
    rows: list[bytes] = []
    names: list[str] = []
    for task, settings in new:
        rows.append(_new_row(task, settings))
        names.append(task.task_id)
    if not rows:
        return []
    return [*(_INSERT_TASKS + piece for piece in _slices(rows)), bind(_INSERT_CREATED, encode(names))]


def _new_row(task: NewTask, settings: TaskType) -> bytes:
    due, scheduled = b"@now", b"NULL"
    if task.scheduled_ms is not None:
        due, scheduled = b"GREATEST(@now,%d)" % task.scheduled_ms, b"%d" % task.scheduled_ms
    elif task.delay:
        due = scheduled = b"@now+%d" % round(task.delay * 1000)
    return b"(%b,%b,'PENDING',%d,%b,%b,%d,@now,%b,%b,%b+%d,%b,1,REPEAT('.',%d))" % (
        literal(task.task_id),
        literal(task.task_type),
        task.priority,
        literal(task.payload_json),
        literal(settings.default_timeout if task.timeout is None else task.timeout),
        settings.default_max_retry if task.max_retry is None else task.max_retry,
        due,
        scheduled,
        due,
        decide.SWEEP_FIRST,
        literal(task.idempotency_key),
        SLACK,
    )


def write(changes: Mapping[str, Change | End], logs: Logs, now: int) -> list[bytes]:
    """Write what was decided, and the log of it."""
    ends: dict[str, End] = {}
    others: list[tuple[object, ...]] = []
    for task_id, c in sorted(changes.items()):
        if isinstance(c, End):
            ends[task_id] = c
        else:
            others.append(
                (
                    task_id, logs.counts[task_id], c.status, c.due_ms, c.sweep_ms, c.completed_ms, c.retry_count,
                    c.recoveries, c.releases, c.cancel_requested_ms, c.worker_id, int(c.keep_body), c.result_json,
                    c.error_json, c.progress_json, int(c.opened),
                )
            )  # fmt: skip
    changed = [bind(_UPDATE_CHANGED, piece, now) for piece in pieces(others)]
    return [*_end(ends, logs, now), *changed, *logs.statements()]


def mark(task_ids: Iterable[str], logs: Logs, now: int) -> list[bytes]:
    """Write that somebody has asked these tasks to end."""
    return [bind(_UPDATE_MARKED, piece, now) for piece in pieces((name, logs.counts[name]) for name in task_ids)]


def _end(ends: Mapping[str, End], logs: Logs, now: int) -> list[bytes]:
    """Ends are often alike: then one value is written to many rows, which is faster than many from a JSON text."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for task_id, end in ends.items():
        what = (end.status.value, end.result_json, end.error_json, end.progress_json, logs.counts[task_id])
        alike.setdefault(what, []).append(task_id)
    if len(alike) <= FEW:
        return [
            bind(_UPDATE_ALIKE, status, now, now, *texts, log_count) + some
            for (status, *texts, log_count), names in alike.items()
            for some in keys(names)
        ]
    rows = [
        (task_id, log_count, status, *texts)
        for (status, *texts, log_count), names in alike.items()
        for task_id in names
    ]
    return [bind(_UPDATE_ENDED, piece, now, now) for piece in pieces(sorted(rows))]


def pieces(rows: Iterable[tuple[object, ...]]) -> list[bytes]:
    """The rows as JSON lists, none of them too long."""
    return [b"[" + piece + b"]" for piece in _slices([encode(row) for row in rows])]


def _slices(parts: Iterable[bytes]) -> Iterator[bytes]:
    some: list[bytes] = []
    size = 0
    for part in parts:
        if some and size + len(part) > PIECE:
            yield b",".join(some)
            some, size = [], 0
        some.append(part)
        size += len(part)
    if some:
        yield b",".join(some)
