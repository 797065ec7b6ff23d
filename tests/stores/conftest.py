"""SQLite stores on a real disk, for what is SQLite's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from atm.stores.sqlite import SqliteStore
from contracts.bench import Bench, OpenBench


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
