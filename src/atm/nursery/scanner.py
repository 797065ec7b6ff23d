"""The leader's dispatch: waiting tasks into free slots."""

from __future__ import annotations

import trio

from atm.coordinator import Balance, Coordinator


async def scan(coordinator: Coordinator, balance: Balance, interval: float, batch_size: int) -> None:
    """Dispatch whenever something changed, and each ``interval`` seconds for what a lost message hid."""
    while True:
        with trio.move_on_after(interval):
            await coordinator.changed()
        while await coordinator.dispatch(balance, batch_size) == batch_size:
            await trio.lowlevel.checkpoint()
