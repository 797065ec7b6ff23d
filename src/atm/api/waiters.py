"""Requests that wait for a task to end: woken by events, and by a look now and then for lost ones."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from atm.coordinator import Coordinator, TaskEvent
from atm.health import Health
from atm.store import Store
from atm.task import TERMINAL, Task

LOOK_INTERVAL = 1.0
"""Seconds between two looks at the store while no event comes."""


class Waiters:
    """Those who wait, by task."""

    def __init__(self, store: Store, coordinator: Coordinator, health: Health) -> None:
        self._store = store
        self._coordinator = coordinator
        self._health = health
        self._events: dict[str, set[trio.Event]] = {}

    async def listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The service that hears the events."""
        await self._coordinator.listen_events(self._deliver, task_status=task_status)

    def _deliver(self, events: Sequence[TaskEvent]) -> None:
        if not self._events:
            return
        for event in events:
            if event.status in TERMINAL:
                for waiter in self._events.get(event.task_id, ()):
                    waiter.set()

    async def ended(self, task_id: str, timeout: float) -> Task | None:
        """The task when it is terminal, or when ``timeout`` seconds are over, or the node is to stop."""
        deadline = trio.current_time() + timeout
        while True:
            # Listen first, then look: what ends in between is not missed.
            event = trio.Event()
            self._events.setdefault(task_id, set()).add(event)
            try:
                task = await self._store.get(task_id)
                left = deadline - trio.current_time()
                if task is None or task.is_terminal or left <= 0 or self._health.stopping.is_set():
                    return task
                with trio.move_on_after(min(left, LOOK_INTERVAL)):
                    await event.wait()
            finally:
                waiting = self._events[task_id]
                waiting.discard(event)
                if not waiting:
                    del self._events[task_id]
