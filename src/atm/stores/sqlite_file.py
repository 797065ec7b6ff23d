"""The store's file before it is used: locked, made if there is none, checked, brought up to date.

The exclusive lock on the file is the lease of the one node that may use it. ``sqlite.sql`` is always the newest
schema; MIGRATIONS lead to it from the older ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from atm.errors import StartError
from atm.stores.sqlite_driver import Connection, check_version, connect, one

APPLICATION_ID = 0x61746D31  # "atm1", so that another program's file is not taken for ours
SCHEMA_VERSION = 2
MIGRATIONS = {
    2: (
        "ALTER TABLE task ADD COLUMN parent_id TEXT; ALTER TABLE task ADD COLUMN expires_at INTEGER;"
        "ALTER TABLE task ADD COLUMN children INTEGER NOT NULL DEFAULT 0;"
    )
}
"""By version, what leads to it from the one before."""

CHECKED_SIZE = 64 * 1024 * 1024  # a file up to this size is checked whole at start: well under a second


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Connection]:
    """A connection to the file, which is locked as long as it lasts.

    Raises: StartError for a file that is refused; errors of the system and of SQLite.
    """
    check_version()
    if not path.exists():
        _make(path)
    with _locked(path) as descriptor:
        _check_size(descriptor, path)
        with contextlib.closing(connect(path)) as connection:
            version = _check(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            _migrate(connection, version)
            yield connection


def _make(path: Path) -> None:
    """Make a new store beside its place and put it there whole, so that no crash leaves half of one."""
    if not path.absolute().parent.is_dir():
        raise StartError(f"cannot make {path}: no folder {path.absolute().parent}")
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists() and wal.stat().st_size > 0:
        raise StartError(f"{wal} is left without {path.name}: restore {path.name}, or remove both")
    draft = path.with_name(f"{path.name}.new-{os.getpid()}")
    draft.unlink(missing_ok=True)
    schema = resources.files("atm.stores").joinpath("sqlite.sql").read_text(encoding="utf-8")
    try:
        with contextlib.closing(connect(draft)) as connection:
            connection.executescript(
                f"PRAGMA journal_mode = WAL; PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {SCHEMA_VERSION}; BEGIN; {schema} COMMIT;"
            )
        with contextlib.suppress(FileExistsError):  # another node was first; its file it is
            os.link(draft, path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{draft}{suffix}").unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of the file, locked. SQLite's own locks are of another kind; both live until it is closed."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"{path} is in use by another node; a file serves one node at a time") from None
        yield descriptor
    finally:
        os.close(descriptor)


def _check_size(descriptor: int, path: Path) -> None:
    # Before SQLite looks: it would remove the WAL of an empty file, and with it what was acknowledged last.
    if os.fstat(descriptor).st_size == 0:
        raise StartError(f"{path} is empty, not a database: restore it, or remove it and {path.name}-wal")


def _check(connection: Connection, path: Path) -> int:
    """Refuse a file that is damaged, another program's or a newer version's; the version of its schema."""
    application = one(connection, "PRAGMA application_id")
    version: int = one(connection, "PRAGMA user_version")
    if application != APPLICATION_ID:
        raise StartError(f"{path} is a database of another program")
    if not 1 <= version <= SCHEMA_VERSION:
        raise StartError(f"{path} has schema version {version}; this program knows {SCHEMA_VERSION}")
    if path.stat().st_size <= CHECKED_SIZE:
        verdict = one(connection, "PRAGMA quick_check(1)")
        if verdict != "ok":
            reason = " ".join(verdict.split())
            raise StartError(f"{path} is damaged ({reason}): restore it from a backup")
    return version


def _migrate(connection: Connection, version: int) -> None:
    for number in range(version + 1, SCHEMA_VERSION + 1):
        changes = f"{MIGRATIONS[number]} PRAGMA user_version = {number};"
        connection.executescript(f"BEGIN IMMEDIATE; {changes} COMMIT;")
