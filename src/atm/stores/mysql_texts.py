"""The statements of the MySQL store, but those that write tasks, which stand in mysql_writes.py.

Rows are read as one JSON text each. ``@now`` is the server's clock, read at the beginning of a transaction;
``bind`` puts values where ``%s`` stands.
"""

# ruff: noqa: S608 - constants, and values that bind has quoted

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import msgspec

from atm.store import Lease, TaskFilter
from atm.stores import decide
from atm.stores.decide import Row
from atm.stores.mysql_connection import Result
from atm.stores.mysql_values import bind, quote
from atm.task import QUEUES, TERMINAL, Task

SLICE = 500
"""Keys in one list; with a thousand MariaDB makes another, slower plan."""

BEGIN, COMMIT = b"BEGIN", b"COMMIT"
NOW = b"SELECT @now"
CLOCK = "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED) + %s"
SET_NOW = f"SET @now := {CLOCK}"


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


def _claim(attempt: str, started_at: str) -> str:
    """What a claimed task is; ``%s``: its worker. Constants are cheaper to answer with than columns are."""
    return (
        f"{_text('task_id', 'task_type')}, 'PROCESSING', priority, payload, timeout, max_retry, {attempt}, "
        f"retry_count, recoveries, releases, %s, created_at, due_at, scheduled_at, {started_at}, NULL, "
        f"cancel_requested_at, NULL, NULL, NULL, {_text('parent_id')}, expires_at, children"
    )


_CLAIMABLE = _claim("attempt + 1", "CAST(@now AS SIGNED)")
_LOG = (
    f"log_id, {_text('log_type', 'from_status', 'to_status')}, message, {_text('worker_id')}, attempt, created_at"
)
_BY_KEY = "FROM task AS t FORCE INDEX (PRIMARY) WHERE task_id IN "
_LIVE = "FROM task FORCE INDEX (task_live) WHERE "

SELECT_ROWS = (
    f"SELECT JSON_ARRAY(log_count, JSON_ARRAY({_ROW}), started_at) {_BY_KEY.replace(' AS t', '')}".encode()
)
SELECT_LOST_ROWS = SELECT_ROWS.replace(b", started_at) FROM", b", started_at, worker_epoch) FROM")
SELECT_CLAIMED = f"SELECT JSON_ARRAY(log_count, JSON_ARRAY({_claim('attempt', 'started_at')})) {_BY_KEY}"
SELECT_CLAIMABLE = f"SELECT JSON_ARRAY(log_count, JSON_ARRAY({_CLAIMABLE})) {_BY_KEY}"
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
    f"SELECT JSON_ARRAY(log_count, JSON_ARRAY({_CLAIMABLE})) {_LIVE}"
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
# Who was cancelled with its parent has no deadline any more (0). Who timed out counts if it met its parent's
# deadline, not a timeout of its own; and nobody counts who ended with a former attempt.
_SELECT_ENDED_WITH = (
    f"SELECT COUNT(*) {_FAMILY}status = IF(expires_at = 0, 'CANCELLED', 'TIMEOUT') "
    "AND COALESCE(started_at + timeout * 1000 >= expires_at, TRUE) "
    "AND IF(expires_at = 0, completed_at, expires_at) >= "
    "(SELECT t.started_at FROM task AS t FORCE INDEX (PRIMARY) WHERE t.task_id = %s)"
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


def ended_with(parents: Iterable[str]) -> list[bytes]:
    """How many children were ended with each of these tasks, a statement a task."""
    return [bind(_SELECT_ENDED_WITH, *decide.child_keys(parent), parent) for parent in parents]


def oldest_ended(limit: int) -> bytes:
    """Tasks that ended before ``@before``, the oldest first."""
    parts = [bind(_SELECT_ENDED, status.value, priority, limit) for status in TERMINAL for priority in QUEUES]
    return b" UNION ALL ".join(parts) + bind(" ORDER BY sweep_at LIMIT %s", limit)


def keys(names: Iterable[str | bytes]) -> Iterator[bytes]:
    """The keys as lists for IN, in order, so that rows are locked in the order of their keys."""
    ordered = sorted({name if isinstance(name, bytes) else name.encode() for name in names})
    quoted = [quote(name) for name in ordered]
    for at in range(0, len(quoted), SLICE):
        yield b"(" + b",".join(quoted[at : at + SLICE]) + b")"


def joined(results: Iterable[Result]) -> bytes:
    """The rows, a JSON text each, as one JSON list."""
    return b"[" + b",".join([cast("bytes", row[0]) for result in results for row in result.rows]) + b"]"


read_rows = msgspec.json.Decoder(list[tuple[int, Row, int | None]]).decode  # SELECT_ROWS
read_tasks = msgspec.json.Decoder(list[Task]).decode  # SELECT_TASKS


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
