"""The tables of the MySQL store: made, found, changed, by many at once; and who is refused."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import atm.stores
from atm.errors import StartError
from atm.stores import mysql_schema
from atm.stores.mysql import MySqlStore
from atm.stores.mysql_driver import Address, connect
from atm.stores.mysql_schema import VERSION, migrate
from contracts.bench import Bench, family_life, new_task
from mysql_site import database_on, say, server_address, serving
from servers import MariaDb

SCHEMA = Path(atm.stores.__file__).with_name("schema.sql")


async def _migrate(address: Address, **options: object) -> int:
    connection = await connect(address)
    try:
        return await migrate(connection, **options)  # type: ignore[arg-type]
    finally:
        connection.close()


async def test_a_node_makes_the_tables_itself_and_finds_them_the_next_time(database: Address) -> None:
    assert await MySqlStore(database).migrate() == 0
    assert await MySqlStore(database).migrate() == VERSION
    async with serving(database) as store:
        await store.ping()


async def test_the_file_can_be_loaded_by_the_mysql_client_on_an_empty_and_on_a_used_database(
    maria: MariaDb,
) -> None:
    async with database_on(server_address(maria)) as address:
        maria.sql(SCHEMA.read_text(), address.database)
        async with serving(address) as store:
            task = new_task()
            await store.create([task])
            maria.sql(SCHEMA.read_text(), address.database)
            assert await store.get(task.task_id) is not None
        assert await _migrate(address) == VERSION


def test_the_file_in_the_root_is_the_one_that_nodes_use() -> None:
    root = Path(__file__).parents[2] / "schema.sql"
    assert root.read_text() == SCHEMA.read_text()


async def test_ten_nodes_that_start_at_once_make_the_tables_once(database: Address) -> None:
    found: list[int] = []

    async def start() -> None:
        found.append(await MySqlStore(database).migrate())

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(start)
    assert sorted(found) == [0] + [VERSION] * 9


SECOND = {VERSION + 1: ["CREATE TABLE second (n INT)", "INSERT INTO second VALUES (1)"]}


async def test_ten_nodes_of_a_newer_version_change_the_tables_once(database: Address) -> None:
    assert await _migrate(database) == 0
    found: list[int] = []

    async def start() -> None:
        found.append(await _migrate(database, version=VERSION + 1, migrations=SECOND))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(start)
    assert sorted(found) == [VERSION] + [VERSION + 1] * 9
    [rows] = await say(database, "SELECT COUNT(*) FROM second")
    assert rows.number == 1


async def test_a_change_that_was_cut_off_is_made_again(database: Address) -> None:
    await _migrate(database)
    broken = {VERSION + 1: ["CREATE TABLE IF NOT EXISTS second (n INT)", "SELEKT"]}
    with pytest.raises(Exception, match="SELEKT"):
        await _migrate(database, version=VERSION + 1, migrations=broken)
    mended = {VERSION + 1: ["CREATE TABLE IF NOT EXISTS second (n INT)", "INSERT INTO second VALUES (1)"]}
    assert await _migrate(database, version=VERSION + 1, migrations=mended) == VERSION
    assert await _migrate(database, version=VERSION + 1, migrations=mended) == VERSION + 1


async def test_tables_of_the_first_version_are_brought_up_to_date_with_what_is_in_them(database: Address) -> None:
    async with serving(database) as store:
        [created] = await store.create([new_task()])
    columns = ("parent_id", "expires_at", "children")
    first = ", ".join(f"DROP COLUMN {column}" for column in columns)
    await say(database, f"ALTER TABLE task {first}", "UPDATE schema_version SET version = 1")
    assert await MySqlStore(database).migrate() == 1
    # Cut off between the two statements, it is made again.
    await say(database, "UPDATE schema_version SET version = 1")
    assert await MySqlStore(database).migrate() == 1
    assert await MySqlStore(database).migrate() == VERSION

    async def advance(seconds: float) -> None:
        raise AssertionError

    async with serving(database) as store:
        task = await store.get(created.task_id)
        assert task is not None
        assert (task.parent_id, task.children) == (None, 0)
        await family_life(Bench(store, advance))


async def test_a_newer_schema_is_left_alone(database: Address) -> None:
    await _migrate(database)
    await say(database, "UPDATE schema_version SET version = 99")
    with pytest.raises(StartError, match="version 99; this program knows"):
        await MySqlStore(database).migrate()


async def test_who_may_not_make_tables_is_told_which_user(maria: MariaDb) -> None:
    async with database_on(server_address(maria)) as address:
        name = f"atm_{secrets.token_hex(4)}"
        maria.sql(f"CREATE USER {name} IDENTIFIED BY 'x'; GRANT SELECT ON {address.database}.* TO {name}")
        try:
            with pytest.raises(StartError, match=r"database\.user: may not make or change tables"):
                await MySqlStore(replace(address, user=name, password="x")).migrate()
            await _migrate(address)
            assert await MySqlStore(replace(address, user=name, password="x")).migrate() == VERSION
        finally:
            maria.sql(f"DROP USER {name}")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"password": "wrong"}, "database.user"),
        ({"database": "no_such"}, "database.database"),
        ({"port": 1}, "database.host"),
    ],
    ids=["password", "database", "port"],
)
async def test_a_store_that_cannot_be_opened_says_why_in_one_line(
    maria: MariaDb, change: dict[str, object], key: str
) -> None:
    store = MySqlStore(replace(server_address(maria), **change))  # type: ignore[arg-type]
    with pytest.raises(StartError) as caught:
        await store.run()
    assert str(caught.value).startswith(f"{key}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("8.0.3", False),
        ("8.0.4", True),
        ("5.7.44-log", False),
        ("9.7.4", True),
        ("10.5.29-MariaDB", False),
        ("10.6.0-MariaDB-log", True),
        ("10.11.19-MariaDB-0+deb12u1", True),
        ("11.4.2-MariaDB", True),
    ],
)
def test_servers_that_are_too_old_are_refused(version: str, fits: bool) -> None:
    refusal = mysql_schema.refusal_of(version)
    assert (refusal is None) == fits
    assert fits or (version in str(refusal) and "too old" in str(refusal))
