"""Who leads while no coordinator can be reached: whoever the store lets."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from atm.coordinator import Coordinator
from atm.errors import StoreUnavailable
from atm.store import Store

TERM = 5.0
"""Seconds that the store gives a leader; asked for anew before each round of duties."""

TERM_MARGIN = 1.0
"""Seconds before the store's end of a term at which its holder takes it to be over."""

ROUND_INTERVAL = 1.0

logger = logging.getLogger("atm.leader")


async def stand_in(
    coordinator: Coordinator, store: Store, candidate: str, duties: Callable[[], Awaitable[None]]
) -> None:
    """During outages of the coordinator, carry out a round of ``duties`` each second where this node leads."""
    while True:
        await coordinator.away()
        asked_at = trio.current_time()
        try:
            if await store.campaign(candidate, TERM):
                with trio.CancelScope(deadline=asked_at + TERM - TERM_MARGIN):
                    await duties()
        except StoreUnavailable as error:
            logger.error("put off: %s", error)
        await trio.sleep(ROUND_INTERVAL)
