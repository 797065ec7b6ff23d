"""Nodes' coordinators over a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from atm.coordinator import Coordinator
from atm.coordinators.redis import RedisCoordinator, RedisSettings
from contracts.hall import PATIENCE, PATIENT_TTL
from servers import RedisServer

OpenNode = Callable[..., Awaitable[RedisCoordinator]]


def settings_of(server: RedisServer, **others: Any) -> RedisSettings:
    return RedisSettings(addr=f"{server.host}:{server.port}", password=server.password, **others)


@pytest.fixture
async def open_node(redis_db: RedisServer) -> AsyncIterator[OpenNode]:
    """Opens a coordinator on the shared Redis, empty before; closed with the test."""
    async with trio.open_nursery() as nodes:

        async def open_one(server: RedisServer = redis_db, **options: Any) -> RedisCoordinator:
            coordinator = RedisCoordinator(settings_of(server), **{"leader_ttl": PATIENT_TTL} | options)
            await nodes.start(coordinator.run)
            return coordinator

        yield open_one
        nodes.cancel_scope.cancel()


async def eventually(holds: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not holds():
            await trio.sleep(0.005)


class Terms:
    """Counts the terms of a node that stands for leadership."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0

    async def duties(self) -> None:
        self.begun += 1
        try:
            await trio.sleep_forever()
        finally:
            self.ended += 1


@asynccontextmanager
async def standing(coordinator: Coordinator, candidate: str) -> AsyncIterator[Terms]:
    """While the node stands for leadership."""
    terms = Terms()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(coordinator.lead, candidate, terms.duties)
        yield terms
        nursery.cancel_scope.cancel()
