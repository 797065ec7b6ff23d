"""The implementations that the contract suites run over."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
from trio.abc import Clock
from trio.testing import MockClock

from atm.stores.mysql import MySqlStore
from atm.stores.mysql_driver import Address
from atm.stores.sqlite import SqliteStore
from contracts.bench import Bench, OpenBench
from contracts.hall import Hall, leading, local_hall, redis_hall, serving
from mysql_site import new_database, real_mysql, say, server_address, start_mariadb
from servers import MariaDb

_numbers = count()


@asynccontextmanager
async def sqlite_bench(folder: Path, *, inline: bool) -> AsyncIterator[Bench]:
    now = 1_760_000_000_000

    async def advance(seconds: float) -> None:
        nonlocal now
        now += round(seconds * 1000)

    store = SqliteStore(folder / f"{next(_numbers)}.db", now=lambda: now, inline=inline)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield Bench(store, advance)
        nursery.cancel_scope.cancel()
    store.path.unlink()


TABLES = ("task", "task_logs", "task_config", "worker_registry")
LONG = 1e6
"""Seconds of a lease: the clock of these suites leaps by hours."""

_made: dict[str, list[Address]] = {}
_free: dict[str, list[Address]] = {}


@asynccontextmanager
async def mysql_bench(server: Address) -> AsyncIterator[Bench]:
    """In a database of its own, which the next one uses again."""
    shift = 0

    async def advance(seconds: float) -> None:
        nonlocal shift
        shift += round(seconds * 1000)

    free = _free.setdefault(str(server), [])
    address = free.pop() if free else await _another_database(server)
    store = MySqlStore(address, lease=LONG, shift=lambda: shift)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield Bench(store, advance)
        nursery.cancel_scope.cancel()
    emptied = (f"DELETE FROM {table}" for table in TABLES)  # noqa: S608
    await say(address, *emptied, "UPDATE leader SET holder = NULL, until_at = 0")
    free.append(address)


async def _another_database(server: Address) -> Address:
    address = await new_database(server)
    _made.setdefault(str(server), []).append(address)
    return address


def _drop(server: Address) -> None:
    names = [address.database for address in _made.pop(str(server), [])]
    trio.run(say, server, *(f"DROP DATABASE {name}" for name in names))


@pytest.fixture(scope="session")
def maria() -> Iterator[MariaDb]:
    yield from start_mariadb()


@pytest.fixture(scope="session")
def mariadb_address(maria: MariaDb) -> Iterator[Address]:
    server = server_address(maria)
    yield server
    _drop(server)


@pytest.fixture(scope="session")
def real_mysql_address() -> Iterator[Address]:
    server = real_mysql()
    assert server is not None
    yield server
    _drop(server)


def _value(request: pytest.FixtureRequest, name: str) -> Any:
    return request.getfixturevalue(name)


STORES: dict[str, Callable[[pytest.FixtureRequest], OpenBench]] = {
    "sqlite": lambda request: partial(sqlite_bench, _value(request, "folder"), inline=False),
    "sqlite-inline": lambda request: partial(sqlite_bench, _value(request, "folder"), inline=True),
    "mariadb": lambda request: partial(mysql_bench, _value(request, "mariadb_address")),
}
if real_mysql() is not None:
    STORES["mysql"] = lambda request: partial(mysql_bench, _value(request, "real_mysql_address"))


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """In memory where that can be had: what the contract asks for needs no disk, and a disk costs minutes."""
    memory = "/dev/shm"
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(params=STORES)
def open_bench(request: pytest.FixtureRequest) -> OpenBench:
    """Opens a new, empty store at each call."""
    return STORES[request.param](request)


@pytest.fixture
async def bench(open_bench: OpenBench) -> AsyncIterator[Bench]:
    async with open_bench() as opened:
        yield opened


@pytest.fixture(params=["local", "redis"])
def hall_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def clock(hall_kind: str) -> Clock | None:
    """Time leaps where nothing real is waited for."""
    return MockClock(autojump_threshold=0) if hall_kind == "local" else None


@pytest.fixture
async def lobby(request: pytest.FixtureRequest, hall_kind: str) -> AsyncIterator[Hall]:
    """A coordinator that serves; nobody leads."""
    server = request.getfixturevalue("redis_server") if hall_kind == "redis" else None
    async with redis_hall(server) if server else local_hall() as opened, serving(opened.coordinator):
        yield opened


@pytest.fixture
async def hall(lobby: Hall) -> AsyncIterator[Hall]:
    async with leading(lobby.coordinator):
        yield lobby
