"""What there is to see afterwards: the file, the API's answers, the executors' own lines, the clients' ledger."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ledger import Ledger
from .node import Life
from .wire import Requests

PAGE = 500

TABLE_TASKS = """
SELECT task_id, task_type, status, HEX(payload), HEX(result),
       attempt, retry_count, max_retry, recoveries, releases FROM task
"""
TABLE_LOGS = """
SELECT task_id, log_type, from_status, to_status, HEX(message), attempt, created_at
FROM task_logs ORDER BY task_id, log_id
"""
"""Texts as hexadecimal digits: the client that prints the rows writes some characters in other ways."""

SELECT_LOGS = """
SELECT coalesce(task.task_id, 'seq ' || log.seq) AS task_id, log.*
FROM task_logs AS log LEFT JOIN task USING (seq) ORDER BY log.seq, log.log_id
"""


@dataclass(frozen=True)
class LogRow:
    """``at_ms``: milliseconds since 1970."""

    log_type: str
    source: str | None
    target: str | None
    message: str
    attempt: int | None
    at_ms: int


@dataclass(frozen=True)
class Stored:
    """A task as the store's file or tables have it."""

    task_id: str
    task_type: str
    status: str
    payload: dict[str, Any]
    result: Any
    attempt: int
    retry_count: int
    max_retry: int
    recoveries: int
    releases: int


@dataclass
class RunLines:
    """What an executor wrote of one attempt: nanoseconds since 1970. ``end_ns`` None: it was cut off."""

    life: int
    start_ns: int
    end_ns: int | None = None


@dataclass
class Evidence:
    """``served``: tasks as the API shows them; ``served_logs``: some logs, (log_type, from, to) row by row."""

    ledger: Ledger
    lives: list[Life]
    tasks: dict[str, Stored]
    logs: Mapping[str, list[LogRow]]
    served: dict[str, dict[str, Any]]
    served_logs: dict[str, list[tuple[str, str | None, str | None]]]
    runs: dict[tuple[str, int], RunLines]
    twice_started: list[tuple[str, int]]


def read_file(path: Path) -> tuple[dict[str, Stored], dict[str, list[LogRow]]]:
    """The tasks and logs of an embedded store that no node has open."""
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    try:
        rows = database.execute("SELECT * FROM task").fetchall()
        steps = database.execute(SELECT_LOGS).fetchall()
    finally:
        database.close()
    logs: dict[str, list[LogRow]] = {}
    for step in steps:
        row = LogRow(
            step["log_type"],
            step["from_status"],
            step["to_status"],
            step["message"],
            step["attempt"],
            step["created_at"],
        )
        logs.setdefault(step["task_id"], []).append(row)
    return {row["task_id"]: _stored(row) for row in rows}, logs


def _stored(row: sqlite3.Row) -> Stored:
    return Stored(
        row["task_id"],
        row["task_type"],
        row["status"],
        json.loads(row["payload"]),
        None if row["result"] is None else json.loads(row["result"]),
        row["attempt"],
        row["retry_count"],
        row["max_retry"],
        row["recoveries"],
        row["releases"],
    )


def read_tables(sql: Callable[[str], str]) -> tuple[dict[str, Stored], dict[str, list[LogRow]]]:
    """The tasks and logs of a cluster's store; ``sql`` answers a line for a row, a tab between columns."""
    tasks: dict[str, Stored] = {}
    for line in sql(TABLE_TASKS).splitlines():
        task_id, task_type, status, payload, result, *counts = line.split("\t")
        written = _text(result)
        held = None if written is None else json.loads(written)
        tasks[task_id] = Stored(
            task_id, task_type, status, json.loads(_text(payload) or ""), held, *map(int, counts)
        )
    logs: dict[str, list[LogRow]] = {}
    for line in sql(TABLE_LOGS).splitlines():
        task_id, log_type, source, target, message, attempt, at_ms = line.split("\t")
        row = LogRow(
            log_type,
            _known(source),
            _known(target),
            _text(message) or "",
            None if attempt == "NULL" else int(attempt),
            int(at_ms),
        )
        logs.setdefault(task_id, []).append(row)
    return tasks, logs


def _known(cell: str) -> str | None:
    return None if cell == "NULL" else cell


def _text(cell: str) -> str | None:
    return None if cell == "NULL" else bytes.fromhex(cell).decode()


def read_runs(*paths: Path) -> tuple[dict[tuple[str, int], RunLines], list[tuple[str, int]]]:
    """The runs by task and attempt; and those attempts that started more than once."""
    runs: dict[tuple[str, int], RunLines] = {}
    twice: list[tuple[str, int]] = []
    for found in _lines(paths):
        key = found["task"], found["attempt"]
        if found["what"] == "start":
            if key in runs:
                twice.append(key)
            runs[key] = RunLines(found["life"], found["at_ns"])
        elif key in runs:
            runs[key].end_ns = found["at_ns"]
    return runs, twice


def _lines(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # empty, or torn by a kill


async def read_api(wire: Requests) -> dict[str, dict[str, Any]]:
    """Every task, through the pages of the list."""
    tasks: dict[str, dict[str, Any]] = {}
    cursor = ""
    while True:
        data = await get(wire, f"/api/v1/tasks?limit={PAGE}{cursor}")
        tasks |= {task["task_id"]: task for task in data["tasks"]}
        if data["next_cursor"] is None:
            return tasks
        cursor = f"&cursor={data['next_cursor']}"


async def read_api_log(wire: Requests, task_id: str) -> list[tuple[str, str | None, str | None]]:
    rows = await get(wire, f"/api/v1/tasks/{task_id}/logs")
    return [(row["log_type"], row["from_status"], row["to_status"]) for row in rows]


async def get(wire: Requests, path: str) -> Any:
    status, answer = await wire.request("GET", path)
    if status != 200:
        raise RuntimeError(f"GET {path}: {status} {answer}")
    return answer["data"]
