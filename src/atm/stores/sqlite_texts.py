"""The statements of the embedded store: constants, and functions that make those whose shape differs.

Beside a busy event loop every step of a statement may cost a wait for the interpreter's lock, so many small ones
are hundreds of times slower: batches are written with one statement each, and read as one JSON row.
"""

# ruff: noqa: S608 - constants, and marks for values

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import msgspec

from atm.store import TaskFilter
from atm.stores import decide
from atm.task import REOPENABLE, Task

_encode = msgspec.json.Encoder().encode


def to_json(value: object) -> str:
    # As text: SQLite 3.45.0 refuses JSON that comes as bytes.
    return _encode(value).decode()


# what is read

_TASK = (
    "task_id, task_type, status, priority, payload, timeout, max_retry, attempt, retry_count, recoveries, "
    "releases, worker_id, created_at, due_at, scheduled_at, started_at, completed_at, cancel_requested_at, "
    "result, error, progress, parent_id, expires_at, children"
)
_ROW = (
    "seq, task_id, task_type, priority, status, attempt, retry_count, recoveries, releases, cancel_requested_at, "
    "worker_id, max_retry, due_at, children, expires_at"
)
_LISTED = "IN (SELECT value FROM json_each(?))"
_LIVE = "FROM task INDEXED BY task_live"
_RUNNING = f"{_LIVE} WHERE status = 'PROCESSING' AND sweep_at IS NOT NULL"
_WAITING = f"{_LIVE} WHERE status = 'PENDING' AND sweep_at IS NOT NULL"

SELECT_TASK = f"SELECT {_TASK} FROM task WHERE task_id = ?"
SELECT_ROWS = f"SELECT json_group_array(json_array({_ROW})) FROM json_each(?) JOIN task ON task_id = value"
SELECT_CLAIMABLE = """
SELECT json_group_array(json_array(seq, json_array(task_id, task_type, 'PROCESSING', priority, payload, timeout,
  max_retry, attempt + 1, retry_count, recoveries, releases, ?, created_at, due_at, scheduled_at, ?, NULL,
  cancel_requested_at, NULL, NULL, NULL, parent_id, expires_at, children)))
FROM json_each(?) JOIN task ON task_id = value WHERE status = 'PENDING'
"""
SELECT_ALIVE = f"SELECT task_id FROM task WHERE task_id {_LISTED} AND sweep_at IS NOT NULL"
SELECT_LOG = (
    "SELECT log_id, log_type, from_status, to_status, message, worker_id, attempt, created_at "
    "FROM task_logs WHERE seq = (SELECT seq FROM task WHERE task_id = ?) ORDER BY log_id"
)
SELECT_LOST = f"""
SELECT json_group_array(json_array({_ROW})) FROM (
  SELECT * {_RUNNING} AND worker_id IS NOT NULL
  AND (worker_id, worker_epoch) NOT IN (SELECT worker_id, epoch FROM worker_registry WHERE state = 'ALIVE')
  LIMIT ?)
"""
SELECT_WITHOUT_WORKER = f"""
SELECT json_group_array(json_array({_ROW})) FROM (
  SELECT * {_RUNNING} AND worker_id IS NULL LIMIT ?)
"""
SELECT_HELD = (
    f"SELECT task_id, attempt, started_at, cancel_requested_at IS NOT NULL {_RUNNING} "
    "AND worker_id = ? AND worker_epoch = ?"
)
COUNT_RUNNING = f"SELECT count(*) {_RUNNING} AND task_type = ?"
COUNT_SOME = f"SELECT count(*) FROM (SELECT 1 {_LIVE} WHERE status = ? AND sweep_at IS NOT NULL LIMIT ?)"
SELECT_WAITING = (
    f"SELECT task_id, task_type, priority, due_at, sweep_at, seq {_WAITING} "
    "AND priority = ? AND (sweep_at, seq) > (?, ?) ORDER BY sweep_at, seq LIMIT ?"
)
SELECT_OVERDUE = (
    f"SELECT task_id, task_type, priority, due_at {_WAITING} "
    "AND priority = ? AND sweep_at <= ? ORDER BY sweep_at, seq LIMIT ?"
)
SELECT_POLLED = (
    f"SELECT task_id {_LIVE} WHERE status = 'PENDING' AND priority = ? "
    f"AND sweep_at IS NOT NULL AND task_type {_LISTED} AND due_at <= ? ORDER BY sweep_at, seq LIMIT ?"
)
SELECT_ENDED = (
    "SELECT json_group_array(seq) FROM (SELECT seq FROM task WHERE completed_at IS NOT NULL "
    "AND completed_at < ? ORDER BY completed_at LIMIT ?)"
)


def owners(count: int) -> str:
    """Whose so many idempotency keys are."""
    marks = ",".join("?" * count)
    return f"SELECT idempotency_key, task_id, task_type, payload FROM task WHERE idempotency_key IN ({marks})"


def find(where: TaskFilter, before: str | None, limit: int, *, rare: bool) -> tuple[str, tuple[object, ...]]:
    """The tasks of a list, newest first. ``rare``: so few are in this live state that they can be sorted."""
    conditions: dict[str, object] = {}
    # Some conditions are always true: they name the partial index that finds a rare status.
    if where.status is not None:
        conditions["status = ?"] = where.status
        if where.status in REOPENABLE:
            conditions["status IN ('FAILED', 'TIMEOUT', 'CANCELLED') AND ?"] = 1
        elif rare:
            conditions["sweep_at IS NOT NULL AND ?"] = 1
    if where.task_type is not None:
        conditions["task_type = ?"] = where.task_type
    if where.worker_id is not None:
        conditions["worker_id = ?"] = where.worker_id
    if where.created_after is not None:
        conditions["created_at >= ?"] = where.created_after
    if where.created_before is not None:
        conditions["created_at < ?"] = where.created_before
    index = ""
    if where.parent_id is not None:
        index = "INDEXED BY task_idempotency"
        first, last = decide.child_keys(where.parent_id)
        conditions |= {"idempotency_key > ?": first, "idempotency_key < ?": last}
    if before is not None:
        conditions["task_id < ?"] = before
    sql = (
        f"SELECT {_TASK} FROM task {index} WHERE {' AND '.join(conditions) or 'true'} "
        "ORDER BY task_id DESC LIMIT ?"
    )
    return sql, (*conditions.values(), limit)


def as_task(row: Sequence[Any]) -> Task:
    """Of a row of ``SELECT_TASK`` or ``find``."""
    return msgspec.convert(row, Task)


# parents and children

SELECT_PARENTS = (
    "SELECT json_group_array(json_array(seq, task_id, task_type, status, attempt, worker_id, cancel_requested_at, "
    "started_at, timeout, expires_at)) FROM json_each(?) JOIN task ON task_id = value"
)
SELECT_CHILDREN = (
    f"SELECT json_group_array(json_array(idempotency_key, payload, json_array({_ROW}))) "
    "FROM json_each(?) JOIN task ON idempotency_key = value"
)
SELECT_BUSY = """
SELECT value FROM json_each(?) WHERE EXISTS (
  SELECT 1 FROM task INDEXED BY task_idempotency WHERE idempotency_key > char(31) || value || '/'
  AND idempotency_key < char(31) || value || '0' AND sweep_at IS NOT NULL)
"""
# Who was cancelled with its parent has no deadline any more (0). Who timed out counts if it met its parent's
# deadline, not a timeout of its own; and nobody counts who ended with a former attempt.
COUNT_ENDED_WITH = """
SELECT p.task_id, (
  SELECT count(*) FROM task INDEXED BY task_idempotency WHERE idempotency_key > char(31) || p.task_id || '/'
  AND idempotency_key < char(31) || p.task_id || '0' AND status = iif(expires_at = 0, 'CANCELLED', 'TIMEOUT')
  AND coalesce(started_at + timeout * 1000 >= expires_at, true)
  AND iif(expires_at = 0, completed_at, expires_at) >= p.started_at)
FROM json_each(?) JOIN task AS p ON p.task_id = value
"""
SELECT_FAMILY = (
    "SELECT task_id, children, cancel_requested_at IS NOT NULL FROM task INDEXED BY task_idempotency "
    "WHERE idempotency_key > ? AND idempotency_key < ? AND sweep_at IS NOT NULL "
    "ORDER BY cancel_requested_at IS NOT NULL LIMIT ?"
)
SELECT_ANCESTOR = """
WITH RECURSIVE line AS (
  SELECT task_type, parent_id FROM task WHERE task_id = ?
  UNION ALL SELECT task.task_type, task.parent_id FROM line JOIN task ON task.task_id = line.parent_id)
SELECT 1 FROM line WHERE task_type = ? LIMIT 1
"""
UPDATE_ADOPTED = (
    "UPDATE task SET parent_id = child.value->>1, expires_at = child.value->>2 FROM json_each(?) AS child "
    "WHERE task_id = child.value->>0"
)
UPDATE_PARENTS = f"UPDATE task SET children = 1 WHERE task_id {_LISTED}"
UPDATE_ORPHANED = (
    "UPDATE task SET cancel_requested_at = coalesce(cancel_requested_at, ?), expires_at = 0 "
    f"WHERE task_id {_LISTED}"
)

# what is written

UPDATE_CLAIMED = f"""
UPDATE task SET status = 'PROCESSING', attempt = attempt + 1, worker_id = ?, worker_epoch = ?, started_at = ?,
  sweep_at = ? + CAST(timeout * 1000 AS INTEGER), progress = NULL
WHERE seq {_LISTED}
"""
UPDATE_ENDED = """
UPDATE task SET status = ended.value->>1, sweep_at = NULL, completed_at = ?, result = ended.value->>2,
  error = ended.value->>3, progress = coalesce(ended.value->>4, progress)
FROM json_each(?) AS ended WHERE seq = ended.value->>0
"""
UPDATE_CHANGED = """
WITH change AS MATERIALIZED (
  SELECT value->>0 AS seq, value->>1 AS status, value->>2 AS due_at, value->>3 AS sweep_at,
    value->>4 AS completed_at, value->>5 AS retry_count, value->>6 AS recoveries, value->>7 AS releases,
    value->>8 AS cancel_requested_at, value->>9 AS worker_id, value->>10 AS keep_body,
    value->>11 AS result, value->>12 AS error, value->>13 AS progress, value->>14 AS opened
  FROM json_each(?))
UPDATE task SET status = change.status, due_at = coalesce(change.due_at, task.due_at),
  sweep_at = change.sweep_at, completed_at = change.completed_at, retry_count = change.retry_count,
  recoveries = change.recoveries, releases = change.releases,
  cancel_requested_at = change.cancel_requested_at, worker_id = change.worker_id,
  started_at = CASE WHEN change.status = 'PENDING' THEN NULL ELSE task.started_at END,
  result = CASE WHEN change.keep_body THEN task.result ELSE change.result END,
  error = CASE WHEN change.keep_body THEN task.error ELSE change.error END,
  progress = CASE WHEN change.opened THEN NULL ELSE coalesce(change.progress, task.progress) END,
  expires_at = CASE WHEN change.opened THEN NULL ELSE task.expires_at END
FROM change WHERE task.seq = change.seq
"""
UPDATE_MARKED = f"UPDATE task SET cancel_requested_at = ? WHERE task_id {_LISTED}"
UPDATE_NOTED = """
UPDATE task SET progress = coalesce(note.value->>1, progress), error = coalesce(note.value->>2, error)
FROM json_each(?) AS note WHERE task_id = note.value->>0"""
UPDATE_SWEPT = f"UPDATE task SET sweep_at = ? + min(max(? - due_at, ?), ?) WHERE task_id {_LISTED}"
DELETES = tuple(f"DELETE FROM {table} WHERE seq {_LISTED}" for table in ("task_logs", "task"))


def insert_tasks(values: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """New tasks; ``values`` has those of each row behind those of the row before."""
    return _inserts(
        "task (seq, task_id, task_type, status, priority, payload, timeout, max_retry, created_at, due_at, "
        "scheduled_at, sweep_at, idempotency_key)",
        13,
        values,
    )


def insert_logs(values: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Rows of logs, like new tasks."""
    return _inserts(
        "task_logs (seq, log_type, from_status, to_status, message, worker_id, attempt, log_id, created_at)",
        9,
        values,
    )


def _inserts(table: str, width: int, values: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Statements of 2^n rows of ``width`` values, so that each is prepared only once."""
    count, at = len(values) // width, 0
    while count:
        rows = min(512, 1 << (count.bit_length() - 1))
        yield _insert(table, width, rows), values[at : at + rows * width]
        count -= rows
        at += rows * width


@cache
def _insert(table: str, width: int, rows: int) -> str:
    marks = "(" + ",".join("?" * width) + ")"
    return f"INSERT INTO {table} VALUES " + ",".join([marks] * rows)


# leases, settings, counters

SELECT_SETTINGS = "SELECT task_type, settings FROM task_config"
INSERT_TYPE = "INSERT INTO task_config VALUES (?, ?) ON CONFLICT DO UPDATE SET settings = excluded.settings"
FORGET = (
    "DELETE FROM worker_registry WHERE state != 'ALIVE' AND NOT EXISTS ("
    f"SELECT 1 {_RUNNING} AND task.worker_id = worker_registry.worker_id)"
)
LOSE_ALL = "UPDATE worker_registry SET state = 'LOST' WHERE state = 'ALIVE'"
SUPERSEDE = "UPDATE worker_registry SET state = 'LOST' WHERE worker_id = ?"
INSERT_LEASE = "INSERT INTO worker_registry VALUES (?, ?, 'ALIVE', ?, ?, ?)"
RETIRE = "UPDATE worker_registry SET state = 'GONE' WHERE worker_id = ? AND epoch = ?"
NEXT_EPOCH = "UPDATE counter SET value = value + 1 WHERE name = 'epoch' RETURNING value"
RESERVE_LOG_IDS = "UPDATE counter SET value = value + ? WHERE name = 'log_id' RETURNING value"
LAST_SEQ = "SELECT coalesce(max(seq), 0) FROM task"
PING = "SELECT 1 FROM counter"
