"""Connections to MySQL and MariaDB that are used again, and how soon new ones are tried for."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from atm.stores.mysql_connection import Connection, Lost, Rejected
from atm.stores.mysql_driver import MAX_IDLE, READ_PATIENCE, Address, Unreachable, connect

FIRST_BACKOFF, MAX_BACKOFF = 0.05, 1.0
KEEP_ALIVE = 3.0
TOO_OLD = MAX_IDLE - 2.0


class Dialer:
    """Makes connections, one at a time; after a failure none for a while: calls fail at once then."""

    def __init__(self, address: Address, patience: float = READ_PATIENCE) -> None:
        self.address = address
        self._patience = patience
        self._dialing = trio.Lock()
        self._backoff = 0.0
        self._not_before = -math.inf
        self._failure = Unreachable("database.host", f"MySQL at {address} was not asked yet")

    async def dial(self) -> Connection:
        """Raises Unreachable."""
        async with self._dialing:
            if trio.current_time() < self._not_before:
                raise Unreachable(self._failure.key, str(self._failure))
            try:
                connection = await connect(self.address, self._patience)
            except Unreachable as failure:
                self._failure = failure
                self._backoff = min(max(FIRST_BACKOFF, 2 * self._backoff), MAX_BACKOFF)
                self._not_before = trio.current_time() + self._backoff * random.uniform(0.75, 1)
                raise
            self._backoff = 0.0
            return connection


class Pool:
    """Connections that are used again. ``size``: how many there are at most."""

    def __init__(self, dialer: Dialer, size: int) -> None:
        self._dialer = dialer
        self._slots = trio.Semaphore(size)
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of one's own, without a transaction. Raises Unreachable."""
        async with self._slots:
            connection = self._rested() or await self._dialer.dial()
            sound = False
            try:
                try:
                    yield connection
                except Exception:
                    sound = await self._rolled_back(connection)
                    raise
                sound = await self._rolled_back(connection)
            finally:
                if sound:
                    self._idle.append(connection)
                else:
                    connection.close()

    async def keep_alive(self) -> None:
        """Have idle connections say something now and then, until cancelled."""
        while True:
            await trio.sleep(KEEP_ALIVE)
            tired = [c for c in self._idle if trio.current_time() - c.used_at > KEEP_ALIVE / 2]
            for connection in tired:
                if connection in self._idle:
                    self._idle.remove(connection)
                    await self._ping(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _rested(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if trio.current_time() - connection.used_at < TOO_OLD:
                return connection
            connection.close()
        return None

    @staticmethod
    async def _rolled_back(connection: Connection) -> bool:
        """End what transaction there may be; whether the connection is sound."""
        if connection.in_transaction and not connection.broken:
            try:
                await connection.run(b"ROLLBACK")
            except (Rejected, Lost):
                return False
        return not connection.broken

    async def _ping(self, connection: Connection) -> None:
        try:
            await connection.run(b"SELECT 1")
        except (Rejected, Lost):
            connection.broken = True
        finally:
            if connection.broken:
                connection.close()
            else:
                self._idle.append(connection)
