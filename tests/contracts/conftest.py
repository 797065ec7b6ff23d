"""The implementations that the contract suites run over."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from atm.coordinator import Coordinator
from atm.coordinators.local import LocalCoordinator
from atm.stores.sqlite import SqliteStore
from contracts.bench import Bench, OpenBench
from contracts.hall import Hall, leading

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


STORES = {
    "sqlite": partial(sqlite_bench, inline=False),
    "sqlite-inline": partial(sqlite_bench, inline=True),
}

COORDINATORS: dict[str, Callable[[], Coordinator]] = {"local": LocalCoordinator}


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """In memory where that can be had: what the contract asks for needs no disk, and a disk costs minutes."""
    memory = "/dev/shm"
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(params=STORES)
def open_bench(request: pytest.FixtureRequest, folder: Path) -> OpenBench:
    """Opens a new, empty store at each call."""
    return partial(STORES[request.param], folder)


@pytest.fixture
async def bench(open_bench: OpenBench) -> AsyncIterator[Bench]:
    async with open_bench() as opened:
        yield opened


@pytest.fixture(params=COORDINATORS)
async def coordinator(request: pytest.FixtureRequest) -> AsyncIterator[Coordinator]:
    made = COORDINATORS[request.param]()
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
async def hall(coordinator: Coordinator) -> AsyncIterator[Hall]:
    async with leading(coordinator) as opened:
        yield opened
