"""A look at the embedded store's file, also while a node has it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import msgspec

from atm.errors import StoreUnavailable
from atm.stores.sqlite_file import APPLICATION_ID, SCHEMA_VERSION
from atm.stores.survey import MAX_LOOKED_AT, SAMPLE, SWEPT_WITHIN, LeaseSeen, Survey, TypeSeen

PATIENCE = 5.0

_HELD = "FROM worker_registry r WHERE r.worker_id = t.worker_id AND r.epoch = t.worker_epoch AND r.state = 'ALIVE'"
_RUNNING = "FROM task t WHERE status = 'PROCESSING' AND sweep_at IS NOT NULL"
_ORPHANS = f"{_RUNNING} AND NOT EXISTS (SELECT 1 {_HELD})"
_WAITING = (
    "SELECT task_type, count(*), min(due_at) FROM (SELECT task_type, due_at FROM task "
    "WHERE status = 'PENDING' AND priority IN (1, 0, -1) AND sweep_at <= ? AND due_at <= ? LIMIT ?) "
    "GROUP BY task_type"
)


def survey(path: str | os.PathLike[str]) -> Survey:
    """Raises StoreUnavailable, in one line, for a file that is missing, damaged or another program's."""
    file = Path(path).absolute()
    if not file.exists():
        raise StoreUnavailable(f"there is no {file}")
    try:
        in_use = _is_in_use(file)
        # Read only: what a node that was killed has left is left to the next one. Without a log of changes
        # the file is whole by itself; told so, SQLite makes no files beside it.
        log = file.with_name(f"{file.name}-wal")
        alone = "" if in_use or log.exists() else "&immutable=1"
        address = f"file:{quote(str(file))}?mode=ro{alone}"
        with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)) as connection:
            return _look(connection, file, in_use)
    except sqlite3.DatabaseError as error:
        raise StoreUnavailable(f"{file} cannot be read: {error}") from None
    except OSError as error:
        raise StoreUnavailable(f"{file} cannot be read: {error.strerror}") from None


def _is_in_use(file: Path) -> bool:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _look(connection: sqlite3.Connection, file: Path, in_use: bool) -> Survey:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreUnavailable(f"{file} is a database of another program")
    schema = connection.execute("PRAGMA user_version").fetchone()[0]
    seen = Survey(server=f"SQLite {sqlite3.sqlite_version}", schema=schema, known=SCHEMA_VERSION, in_use=in_use)
    if schema != SCHEMA_VERSION:
        return seen
    connection.execute("BEGIN")
    now = time.time_ns() // 1_000_000
    return msgspec.structs.replace(
        seen,
        leases=_leases(connection),
        waiting=_waiting(connection, now),
        processing=connection.execute(f"SELECT count(*) {_RUNNING}").fetchone()[0],
        orphans=connection.execute(f"SELECT count(*) {_ORPHANS}").fetchone()[0],
        orphan_ids=[row[0] for row in connection.execute(f"SELECT task_id {_ORPHANS} LIMIT {SAMPLE}")],
    )


def _leases(connection: sqlite3.Connection) -> list[LeaseSeen]:
    rows = connection.execute("SELECT worker_id, epoch, task_types FROM worker_registry WHERE state = 'ALIVE'")
    return [
        LeaseSeen(worker_id=worker, epoch=epoch, left=None, task_types=frozenset(msgspec.json.decode(types)))
        for worker, epoch, types in rows
    ]


def _waiting(connection: sqlite3.Connection, now: int) -> list[TypeSeen]:
    settings = dict(connection.execute("SELECT task_type, settings FROM task_config"))
    return [
        TypeSeen(
            task_type=name,
            waiting=count,
            oldest=(now - due) / 1000,
            enabled=name not in settings or msgspec.json.decode(settings[name])["enabled"],
        )
        for name, count, due in connection.execute(_WAITING, (now + SWEPT_WITHIN, now, MAX_LOOKED_AT))
    ]
