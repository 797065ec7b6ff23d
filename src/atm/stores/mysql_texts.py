"""The statements of the MySQL store: constants, and functions that put values into them.

Rows are read as one JSON text each, written as values or from one JSON text by JSON_TABLE. ``@now`` is the
server's clock, read at the beginning of a transaction; ``bind`` puts values where ``%s`` stands.
"""

# ruff: noqa: S608 - constants, and values that bind has quoted

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple, cast

import msgspec

from atm.store import Lease, NewTask, Outcome, TaskFilter
from atm.stores import decide
from atm.stores.decide import Change, End, Log, Row
from atm.stores.mysql_connection import Result
from atm.stores.mysql_values import bind, literal, quote
from atm.task import QUEUES, TERMINAL, Task, TaskType

SLICE = 500
"""Keys in one list; with a thousand MariaDB makes another, slower plan."""

PIECE = 4 << 20
"""Bytes of values in one statement: quoted they are several times as many, and servers take 16 MiB."""

SLACK = 128
"""Bytes that a claim and an end may add to a row before it grows."""

FEW = 3

BEGIN, COMMIT = b"BEGIN", b"COMMIT"
NOW = b"SELECT @now"
CLOCK = "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED) + %s"
SET_NOW = f"SET @now := {CLOCK}"

encode = msgspec.json.Encoder().encode


def _text(*columns: str) -> str:
    return ", ".join(f"CONVERT({column} USING utf8mb4)" for column in columns)


# what is read

_TASK = (
    f"{_text('t.task_id', 'task_type', 'status')}, priority, payload, timeout, max_retry, attempt, retry_count, "
    f"recoveries, releases, {_text('worker_id')}, created_at, due_at, scheduled_at, started_at, completed_at, "
    f"cancel_requested_at, result, error, progress, {_text('parent_id')}, expires_at, children"
)
_ROW = (
    f"{_text('task_id', 'task_id', 'task_type')}, priority, {_text('status')}, attempt, retry_count, recoveries, "
    f"releases, cancel_requested_at, {_text('worker_id')}, max_retry, due_at, children, expires_at"
)
_CLAIMED = (
    f"{_text('task_id', 'task_type')}, 'PROCESSING', priority, payload, timeout, max_retry, attempt + 1, "
    "retry_count, recoveries, releases, %s, created_at, due_at, scheduled_at, CAST(@now AS SIGNED), NULL, "
    f"cancel_requested_at, NULL, NULL, NULL, {_text('parent_id')}, expires_at, children"
)
_LOG = (
    f"log_id, {_text('log_type', 'from_status', 'to_status')}, message, {_text('worker_id')}, attempt, created_at"
)
_BY_KEY = "FROM task AS t FORCE INDEX (PRIMARY) WHERE task_id IN "
_LIVE = "FROM task FORCE INDEX (task_live) WHERE "

SELECT_ROWS = (
    f"SELECT JSON_ARRAY(log_count, JSON_ARRAY({_ROW}), started_at) {_BY_KEY.replace(' AS t', '')}".encode()
)
SELECT_LOST_ROWS = SELECT_ROWS.replace(b", started_at) FROM", b", started_at, worker_epoch) FROM")
SELECT_CLAIMED = f"SELECT JSON_ARRAY(log_count, JSON_ARRAY({_TASK})) {_BY_KEY}".encode()
SELECT_CLAIMABLE = f"SELECT JSON_ARRAY(log_count, JSON_ARRAY({_CLAIMED})) {_BY_KEY}"
SELECT_TASKS = f"SELECT JSON_ARRAY({_TASK}) {_BY_KEY}".encode()
SELECT_IDS = f"SELECT task_id {_BY_KEY}".encode()
SELECT_CREATED = f"SELECT JSON_ARRAY({_text('task_id')}, GREATEST(0, due_at - created_at)) {_BY_KEY}".encode()
SELECT_OWNERS = (
    f"SELECT JSON_ARRAY({_text('idempotency_key', 'task_id', 'task_type')}, payload) "
    "FROM task FORCE INDEX (task_idempotency) WHERE idempotency_key IN "
).encode()
SELECT_LOG = f"SELECT JSON_ARRAY({_LOG}) FROM task_logs WHERE task_id = %s ORDER BY log_id"
OWED = b" AND log_count < 0"
SELECT_OVERDUE = (
    f"SELECT JSON_ARRAY({_text('task_id', 'task_type')}, priority, due_at) {_LIVE}"
    "status = 'PENDING' AND priority = %s AND sweep_at <= @now ORDER BY sweep_at, task_id LIMIT %s "
    "FOR UPDATE SKIP LOCKED"
)
_SELECT_POLLED = (
    f"SELECT JSON_ARRAY(log_count, JSON_ARRAY({_CLAIMED})) {_LIVE}"
    "status = 'PENDING' AND priority = %s AND sweep_at <= @now + %s AND due_at <= @now AND task_type IN "
)
SELECT_WAITING = (
    f"SELECT JSON_ARRAY({_text('task_id', 'task_type')}, priority, due_at, sweep_at) {_LIVE}"
    "status = 'PENDING' AND priority = %s AND (sweep_at > %s OR (sweep_at = %s AND task_id > %s)) "
    "ORDER BY sweep_at, task_id LIMIT %s"
)
SELECT_HELD = (
    f"SELECT JSON_ARRAY({_text('task_id')}, attempt, started_at, cancel_requested_at) {_LIVE}"
    "status = 'PROCESSING' AND worker_epoch = %s AND worker_id = %s"
)
COUNT_RUNNING = f"SELECT COUNT(*) {_LIVE}status = 'PROCESSING' AND task_type = %s"
COUNT_SOME = f"SELECT COUNT(*) FROM (SELECT 1 {_LIVE}status = %s LIMIT %s) AS some"
SELECT_LOST = (
    f"SELECT task_id {_LIVE}status = 'PROCESSING' AND worker_epoch IS NOT NULL AND worker_epoch NOT IN "
    "(SELECT epoch FROM worker_registry WHERE state = 'ALIVE') LIMIT %s"
)
SELECT_WITHOUT_WORKER = f"SELECT task_id {_LIVE}status = 'PROCESSING' AND worker_epoch IS NULL LIMIT %s"
_ALIVE = "status IN ('PENDING', 'PROCESSING')"
SELECT_ALIVE = f"SELECT task_id {_BY_KEY}".encode()
AND_ALIVE = f" AND {_ALIVE}".encode()
_FAMILY = "FROM task FORCE INDEX (task_idempotency) WHERE idempotency_key > %s AND idempotency_key < %s AND "
_SELECT_BUSY = f"SELECT parent_id {_FAMILY}{_ALIVE} LIMIT 1"
_SELECT_FAMILY = (
    f"SELECT task_id, children, cancel_requested_at IS NOT NULL AS asked {_FAMILY}{_ALIVE} ORDER BY asked LIMIT %s"
)
SELECT_PARENTS = (
    f"SELECT JSON_ARRAY({_text('task_id', 'task_id', 'task_type', 'status')}, attempt, {_text('worker_id')}, "
    f"cancel_requested_at, started_at, timeout, expires_at) {_BY_KEY.replace(' AS t', '')}"
).encode()
SELECT_CHILDREN = (
    f"SELECT JSON_ARRAY({_text('idempotency_key')}, payload, log_count, JSON_ARRAY({_ROW}), started_at) "
    "FROM task FORCE INDEX (task_idempotency) WHERE idempotency_key IN "
).encode()
SELECT_ANCESTOR = (
    "WITH RECURSIVE line AS (SELECT task_type, parent_id FROM task WHERE task_id = %s "
    "UNION ALL SELECT t.task_type, t.parent_id FROM line JOIN task AS t ON t.task_id = line.parent_id) "
    "SELECT 1 FROM line WHERE task_type = %s LIMIT 1"
)
_SELECT_ENDED = (
    f"(SELECT sweep_at, task_id {_LIVE}status = %s AND priority = %s AND sweep_at < @before "
    "ORDER BY sweep_at LIMIT %s)"
)
SELECT_SETTINGS = b"SELECT settings FROM task_config"


def find(where: TaskFilter, before: str | None, limit: int, *, rare: bool) -> bytes:
    """The tasks of a list, in no order. ``rare``: so few have the status that they can be sorted."""
    conditions = {
        "status = %s": where.status and where.status.value,
        "task_type = %s": where.task_type,
        "worker_id = %s": where.worker_id,
        "created_at >= %s": where.created_after,
        "created_at < %s": where.created_before,
        "task_id < %s": before,
    }
    if where.parent_id is not None:
        first, last = decide.child_keys(where.parent_id)
        conditions |= {"idempotency_key > %s": first, "idempotency_key < %s": last}
    asked = {condition: value for condition, value in conditions.items() if value is not None}
    # An index in both orders would cost every transition.
    index = "task_live" if rare else "PRIMARY" if where.task_type is None else "task_type_newest"
    if where.parent_id is not None:
        index = "task_idempotency"
    sql = (
        f"SELECT JSON_ARRAY({_TASK}) FROM (SELECT task_id FROM task FORCE INDEX ({index}) "
        f"WHERE {' AND '.join(asked) or 'TRUE'} ORDER BY task_id DESC LIMIT %s) AS page "
        "STRAIGHT_JOIN task AS t FORCE INDEX (PRIMARY) ON t.task_id = page.task_id"
    )
    return bind(sql, *asked.values(), limit)


def poll(lease: Lease, task_types: bytes, limit: int) -> list[bytes]:
    """Due tasks of these types, a statement a priority."""
    latest = decide.SWEEP_MAX + decide.SWEEP_FIRST  # no due task is put off longer
    order = bind(" ORDER BY sweep_at, task_id LIMIT %s FOR UPDATE SKIP LOCKED", limit)
    return [bind(_SELECT_POLLED, lease.worker_id, priority, latest) + task_types + order for priority in QUEUES]


def busy(parents: Iterable[str]) -> list[bytes]:
    """The id of each of these tasks that has a living child, a statement a task."""
    return [bind(_SELECT_BUSY, *decide.child_keys(parent)) for parent in parents]


def family(parents: Iterable[str], limit: int) -> list[bytes]:
    """The living children of these tasks, those that nobody has asked to end first."""
    return [bind(_SELECT_FAMILY, *decide.child_keys(parent), limit) for parent in parents]


def oldest_ended(limit: int) -> bytes:
    """Tasks that ended before ``@before``, the oldest first."""
    parts = [bind(_SELECT_ENDED, status.value, priority, limit) for status in TERMINAL for priority in QUEUES]
    return b" UNION ALL ".join(parts) + bind(" ORDER BY sweep_at LIMIT %s", limit)


def keys(names: Iterable[str | bytes]) -> Iterator[bytes]:
    """The keys as lists for IN, in order, so that rows are locked in the order of their keys."""
    ordered = sorted({name if isinstance(name, bytes) else name.encode() for name in names})
    yield from slices_of([quote(name) for name in ordered])


def slices_of(names: Sequence[bytes]) -> Iterator[bytes]:
    """Keys that are quoted and in order, as lists for IN."""
    for at in range(0, len(names), SLICE):
        yield b"(" + b",".join(names[at : at + SLICE]) + b")"


def joined(results: Iterable[Result]) -> bytes:
    """The rows, a JSON text each, as one JSON list."""
    return b"[" + b",".join([cast("bytes", row[0]) for result in results for row in result.rows]) + b"]"


read_rows = msgspec.json.Decoder(list[tuple[int, Row, int | None]]).decode  # SELECT_ROWS
read_tasks = msgspec.json.Decoder(list[Task]).decode  # SELECT_TASKS


# what is written

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
    ["log_count INT", f"progress {_MEDIUMTEXT}"],
    "t.progress = COALESCE(c.progress, t.progress), t.log_count = c.log_count",
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

# leases and settings

SELECT_LEASE = (
    "SELECT 1 FROM worker_registry WHERE epoch = %s AND worker_id = %s AND state = 'ALIVE' AND lease_until > @now "
    "LOCK IN SHARE MODE"
)
# A claim in one trip is only for a living lease, which stays alive until that counts, and while no type has a cap.
# The time is not @now: what reads a variable is carried out for each row again.
STILL_FREE = (
    " AND (SELECT COUNT(*) FROM worker_registry WHERE epoch = %s AND worker_id = %s AND state = 'ALIVE' "
    f"AND lease_until > {CLOCK} LOCK IN SHARE MODE) AND NOT EXISTS (SELECT 1 FROM task_config WHERE limited)"
)
SELECT_LIVING = b"SELECT epoch FROM worker_registry WHERE state = 'ALIVE'"
# The leader's row is the door to the registry: registrations come in one by one.
LOCK_DOOR = b"SELECT epoch FROM leader WHERE id = 1 FOR UPDATE"
SELECT_LAST_LEASE = (
    "SELECT boot_id, state, lease_until FROM worker_registry FORCE INDEX (worker_registry_worker) "
    "WHERE worker_id = %s ORDER BY epoch DESC LIMIT 1 FOR UPDATE"
)
SUPERSEDE = (
    "UPDATE worker_registry FORCE INDEX (worker_registry_worker) SET state = 'LOST' "
    "WHERE worker_id = %s AND state = 'ALIVE'"
)
INSERT_LEASE = (
    "INSERT INTO worker_registry "
    "(worker_id, boot_id, state, capacity, task_types, started_at, lease_until) "
    "VALUES (%s, %s, 'ALIVE', %s, %s, %s, %s)"
)
SELECT_FORGOTTEN = (
    "SELECT epoch FROM worker_registry AS r WHERE state != 'ALIVE' AND (lease_until < %s OR EXISTS "
    "(SELECT 1 FROM worker_registry AS n WHERE n.worker_id = r.worker_id AND n.epoch > r.epoch)) LIMIT %s"
)
_LEASE = "WHERE epoch = %s AND worker_id = %s AND state = 'ALIVE'"
RENEW = f"UPDATE worker_registry SET lease_until = @now + %s {_LEASE}"
RETIRE = f"UPDATE worker_registry SET state = 'GONE' {_LEASE}"
CAMPAIGN = (
    "UPDATE leader SET epoch = epoch + (NOT holder <=> %s), holder = %s, until_at = @now + %s "
    "WHERE id = 1 AND (holder <=> %s OR until_at <= @now)"
)
INSERT_TYPE = "INSERT INTO task_config VALUES (%s, %s, 0) ON DUPLICATE KEY UPDATE limited = limited"
SELECT_TYPE = "SELECT settings FROM task_config WHERE task_type = %s FOR UPDATE"
UPDATE_TYPE = "UPDATE task_config SET settings = %s, limited = %s WHERE task_type = %s"


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
