"""Connections to SQLite, transactions, and what its errors mean. Only this file and the survey know the driver."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atm.errors import StartError, StoreDamaged, StoreUnavailable

Connection = sqlite3.Connection

MIN_SQLITE = (3, 38, 0)  # the ->> operator
TOO_LITTLE = 256 * 1024  # bytes of free disk with which SQLite's own words for what goes wrong mislead
CACHE_KIB = 16 * 1024

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_OUTAGES = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_NOMEM,
    }
)


def check_version() -> None:
    """Raises StartError for a SQLite that lacks what the statements need."""
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        wanted = ".".join(map(str, MIN_SQLITE))
        raise StartError(f"SQLite {sqlite3.sqlite_version} is too old: {wanted} or newer is needed")


def connect(path: Path) -> Connection:
    """A connection for one thread at a time, whose commits last."""
    connection = sqlite3.connect(
        path.absolute(), isolation_level=None, check_same_thread=False, cached_statements=512
    )
    try:
        connection.executescript(
            "PRAGMA busy_timeout = 2000; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;"
            f"PRAGMA cache_size = {-CACHE_KIB}; PRAGMA journal_size_limit = 67108864;"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def fetch(connection: Connection, query: tuple[str, tuple[object, ...]]) -> list[Any]:
    """All rows of a query; it comes as one value, to be a call's argument."""
    return connection.execute(*query).fetchall()


def one(connection: Connection, sql: str, *values: object) -> Any:
    """The first value of the one row that the query has."""
    return connection.execute(sql, values).fetchone()[0]


def translate(error: Exception) -> Exception:
    """What a caller makes of an error of SQLite's; bugs stay what they are."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _DAMAGE:
        return StoreDamaged(f"the store is damaged: {error}")
    if code in _OUTAGES:
        return StoreUnavailable(f"the store cannot write: {error}")
    return error


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """While the file is opened: raises StartError, in one line, for what the system and SQLite raise."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        full = shutil.disk_usage(path.absolute().parent).free < TOO_LITTLE
        reason = "the disk is full" if full else _reason(error)
        raise StartError(f"cannot open {path}: {reason}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in _DAMAGE:
        return f"{error}; the file is damaged: restore it from a backup"
    return str(error)
