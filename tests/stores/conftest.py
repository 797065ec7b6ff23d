"""Stores for what is their own: SQLite on a real disk, MySQL on servers of both kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from atm.stores.mysql_driver import Address
from atm.stores.sqlite import SqliteStore
from contracts.bench import Bench, OpenBench
from mysql_site import database_on, real_mysql, server_address, server_kinds, start_mariadb
from servers import MariaDb


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "atm.db"


@asynccontextmanager
async def _serve(path: Path, *, inline: bool = True, **options: Any) -> AsyncIterator[Bench]:
    now = 1_760_000_000_000

    async def advance(seconds: float) -> None:
        nonlocal now
        now += round(seconds * 1000)

    store = SqliteStore(path, now=lambda: now, inline=inline, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield Bench(store, advance)
        nursery.cancel_scope.cancel()


@pytest.fixture
def serve(path: Path) -> OpenBench:
    """Opens the store at ``path``; inline, unless told otherwise."""
    return partial(_serve, path)


@pytest.fixture(scope="session")
def maria() -> Iterator[MariaDb]:
    """Shared: who stops or pauses servers starts one of their own."""
    yield from start_mariadb()


@pytest.fixture(params=server_kinds())
def address(request: pytest.FixtureRequest) -> Address:
    """A server's, of each kind."""
    real = real_mysql()
    if request.param == "mysql" and real is not None:
        return real
    return server_address(request.getfixturevalue("maria"))


@pytest.fixture
async def database(address: Address) -> AsyncIterator[Address]:
    """An empty database, on a server of each kind."""
    async with database_on(address) as made:
        yield made
