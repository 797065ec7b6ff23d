"""Makes the tables of the MySQL store, and brings those of an older version up to date.

``schema.sql`` is always the newest version; MIGRATIONS lead to it from the older ones. Ten nodes may start at
once: one works under a lock that the server keeps, the others wait and find it done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources

from atm.errors import StartError
from atm.stores.mysql_connection import Connection, Rejected
from atm.stores.mysql_values import bind

VERSION = 2

MIGRATIONS: Mapping[int, Sequence[str]] = {
    2: [
        "ALTER TABLE task ADD COLUMN parent_id VARBINARY(64), ADD COLUMN expires_at BIGINT, "
        "ADD COLUMN children TINYINT NOT NULL DEFAULT 0"
    ]
}
"""By version, the statements that lead to it from the one before. They may be cut off and are run again then."""

MIN_MYSQL, MIN_MARIADB = (8, 0, 4), (10, 6)
LOCK_PATIENCE = 60
_NO_SUCH_TABLE, _HAS_COLUMN, _DENIED = 1146, 1060, frozenset({1142, 1044, 1227})


async def migrate(
    connection: Connection, *, version: int = VERSION, migrations: Mapping[int, Sequence[str]] = MIGRATIONS
) -> int:
    """Make or change the tables as far as needed; the version that was found, 0 for none.

    Its deadlines are the connection's: give it one with a patience of minutes.
    Raises: StartError; Rejected, Lost.
    """
    await _check_server(connection)
    found = await _version(connection)
    if found == version:
        return found
    lock = b"CONCAT('atm:', LEFT(SHA2(DATABASE(), 256), 40))"
    (locked,) = await connection.run(b"SELECT GET_LOCK(" + lock + b", %d)" % LOCK_PATIENCE)
    if locked.rows[0][0] != b"1":
        raise StartError("database: another node is changing its tables, and does not come to an end")
    try:
        return await _change(connection, version, migrations)
    except Rejected as error:
        if error.code in _DENIED:
            raise StartError(f"database.user: may not make or change tables: {error}") from None
        raise
    finally:
        if not connection.broken:
            await connection.run(b"DO RELEASE_LOCK(" + lock + b")")


async def _change(connection: Connection, version: int, migrations: Mapping[int, Sequence[str]]) -> int:
    found = await _version(connection)
    if found > version:
        raise StartError(f"database: its schema has version {found}; this program knows {version}")
    if found == 0:
        for statement in statements():
            await connection.run(statement)
        found_after = await _version(connection)
    else:
        found_after = found
    for number in range(found_after + 1, version + 1):
        for text in migrations[number]:
            try:
                await connection.run(text.encode())
            except Rejected as error:
                if error.code != _HAS_COLUMN:  # added before this was cut off
                    raise
        await connection.run(bind("UPDATE schema_version SET version = %s WHERE id = 1", number))
    return found


def statements() -> list[bytes]:
    """Those of schema.sql."""
    text = resources.files("atm.stores").joinpath("schema.sql").read_text(encoding="utf-8")
    text = re.sub(r"^--.*\n", "", text, flags=re.MULTILINE)
    return [statement.strip().encode() for statement in text.split(";") if statement.strip()]


async def _version(connection: Connection) -> int:
    """0 when there is none."""
    try:
        (answer,) = await connection.run(b"SELECT version FROM schema_version WHERE id = 1")
    except Rejected as error:
        if error.code == _NO_SUCH_TABLE:
            return 0
        raise
    return answer.number if answer.rows else 0


async def _check_server(connection: Connection) -> None:
    [answer] = await connection.run(b"SELECT VERSION()")
    if (refusal := refusal_of(answer.column[0].decode())) is not None:
        raise StartError(f"database: {refusal}")


def refusal_of(version: str) -> str | None:
    """Why a server of this version cannot be used; None when it can."""
    name, wanted = ("MariaDB", MIN_MARIADB) if "mariadb" in version.lower() else ("MySQL", MIN_MYSQL)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) >= wanted:
        return None
    return f"{name} {version} is too old; {'.'.join(map(str, wanted))} or newer is needed"
