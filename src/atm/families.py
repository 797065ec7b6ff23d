"""Cancelling the children of tasks that end: the store's verdicts, a page at a time, and the messages."""

from __future__ import annotations

from collections.abc import Sequence

from atm.coordinator import CancelRequest, Coordinator, TaskEvent
from atm.store import Store
from atm.task import TERMINAL

PAGE = 500


async def cancel_children(store: Store, coordinator: Coordinator, parents: Sequence[str]) -> int:
    """Cancel the living descendants of these tasks, wherever they wait or run; how many were found alive.

    Those that run end by and by. Raises: StoreUnavailable.
    """
    met = 0
    while True:
        found = await store.cancel_children(parents, PAGE)
        met = max(met, found.met)
        ends: list[TaskEvent] = []
        for task_id, verdict in found.verdicts.items():
            if verdict.status in TERMINAL:
                ends.append(TaskEvent(task_id, verdict.status))
            elif verdict.worker_id is not None:
                await coordinator.request_cancel(verdict.worker_id, CancelRequest(task_id, verdict.attempt))
        await coordinator.publish(ends)
        if len(found.verdicts) < PAGE:
            return met
