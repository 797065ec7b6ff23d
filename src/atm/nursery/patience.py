"""Store verbs that have to come through, however long the store is away."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from atm.errors import StoreUnavailable

BACKOFF = (0.05, 2.0)
"""Seconds between two tries while the store is away: the first pause, and the longest."""

logger = logging.getLogger("atm.worker")

T = TypeVar("T")


async def persist(verb: Callable[[], Awaitable[T]], what: str) -> T:
    """Carry out a store verb, again and again while the store is away."""
    pause, longest = BACKOFF
    while True:
        try:
            return await verb()
        except StoreUnavailable as error:
            logger.error("cannot %s yet: %s", what, error)
            await trio.sleep(pause)
            pause = min(pause * 2, longest)
