"""Databases for tests of the MySQL store, stores that serve on them, and a wire between that can be cut."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from atm.stores.mysql import MySqlStore
from atm.stores.mysql_connection import Result
from atm.stores.mysql_driver import Address, connect
from atm.stores.mysql_values import bind
from servers import MariaDb, Missing

REAL = "ATM_TEST_MYSQL"
"""Says where a real MySQL is: ``host=127.0.0.1 port=3306 user=atm password=secret``."""


def start_mariadb() -> Iterator[MariaDb]:
    """What a fixture yields: a MariaDB of this test run, whatever other server the environment names."""
    try:
        server = MariaDb()
    except Missing as missing:
        pytest.fail(str(missing), pytrace=False)
    with server:
        yield server


def server_address(server: MariaDb) -> Address:
    return Address(server.host, server.port, server.user, server.password, "mysql")


def real_mysql() -> Address | None:
    """The real MySQL that the environment names."""
    if not (text := os.environ.get(REAL)):
        return None
    said = dict(part.split("=", 1) for part in text.split())
    return Address(said["host"], int(said["port"]), said["user"], said["password"], "mysql")


def server_kinds() -> list[Any]:
    """Parameters of a fixture: MariaDB always, a real MySQL where the environment names one."""
    needs = pytest.mark.skipif(real_mysql() is None, reason=f"asked for by {REAL}")
    return ["mariadb", pytest.param("mysql", marks=needs)]


async def say(address: Address, *statements: str) -> list[Result]:
    """Carry the statements out, on a connection of their own."""
    connection = await connect(address)
    try:
        return await connection.run(*map(bind, statements))
    finally:
        connection.close()


async def new_database(server: Address) -> Address:
    name = f"atm_test_{secrets.token_hex(6)}"
    await say(server, f"CREATE DATABASE {name}")
    return replace(server, database=name)


@asynccontextmanager
async def database_on(server: Address) -> AsyncIterator[Address]:
    """An empty database for as long as the context lasts."""
    address = await new_database(server)
    try:
        yield address
    finally:
        with trio.CancelScope(shield=True):
            await say(server, f"DROP DATABASE {address.database}")


@asynccontextmanager
async def serving(address: Address, **options: Any) -> AsyncIterator[MySqlStore]:
    store = MySqlStore(address, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield store
        nursery.cancel_scope.cancel()


class Wire:
    """Passes on what a client and a server say to each other; ``cut`` chooses where it breaks.

    Args:
        address: the server's.
    """

    def __init__(self, address: Address) -> None:
        self._server = address
        self._cut: Callable[[bytes], bool] | None = None
        self._before = False
        self.address = address
        self.cuts = 0

    def cut(self, asked: Callable[[bytes], bool], *, before: bool = False) -> None:
        """Break the connection that says this next: when the server has answered, or before it hears of it."""
        self._cut, self._before = asked, before

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), self._pass_on, 0)
            port = listener.socket.getsockname()[1]
            self.address = replace(self._server, host="127.0.0.1", port=port)
            task_status.started()

    async def _pass_on(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream(self._server.host, self._server.port)
        marked = False

        async def up() -> None:
            nonlocal marked
            async for data in client:
                if self._cut is not None and self._cut(data):
                    self._cut, marked = None, True
                    self.cuts += 1
                    if self._before:
                        break
                await server.send_all(data)
            else:
                nursery.cancel_scope.cancel()
            if marked and self._before:
                nursery.cancel_scope.cancel()

        async def down() -> None:
            async for data in server:
                if marked:
                    break
                await client.send_all(data)
            nursery.cancel_scope.cancel()

        async with client, server:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(up)
                    nursery.start_soon(down)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass


@asynccontextmanager
async def wired(address: Address) -> AsyncIterator[Wire]:
    wire = Wire(address)
    async with trio.open_nursery() as nursery:
        await nursery.start(wire.serve)
        yield wire
        nursery.cancel_scope.cancel()
