"""Cancels: what the store's verdicts mean for the queues, and for the children of tasks that end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atm.coordinator import CancelRequest, Coordinator, Hint, TaskEvent
from atm.store import CancelVerdict, Store
from atm.task import TERMINAL

PAGE = 500


async def withdraw(coordinator: Coordinator, verdicts: Mapping[str, CancelVerdict]) -> None:
    """Take the hints of those of these cancelled tasks back that waited, by task id."""
    hints = [Hint(name, v.task_type, v.priority) for name, v in verdicts.items() if v.task_type is not None]
    if hints:
        await coordinator.withdraw(hints)


async def cancel_children(store: Store, coordinator: Coordinator, parents: Sequence[str]) -> None:
    """Cancel the living descendants of these tasks, wherever they wait or run.

    Those that run end by and by. Raises: StoreUnavailable.
    """
    while True:
        verdicts = await store.cancel_children(parents, PAGE)
        await withdraw(coordinator, verdicts)
        ends: list[TaskEvent] = []
        for task_id, verdict in verdicts.items():
            if verdict.status in TERMINAL:
                ends.append(TaskEvent(task_id, verdict.status))
            elif verdict.worker_id is not None:
                await coordinator.request_cancel(verdict.worker_id, CancelRequest(task_id, verdict.attempt))
        await coordinator.publish(ends)
        if len(verdicts) < PAGE:
            return
