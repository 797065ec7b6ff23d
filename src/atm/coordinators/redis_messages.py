"""What nodes tell each other over channels: cancels and events."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import msgspec
import trio

from atm.coordinator import CancelRequest, TaskEvent
from atm.coordinators.redis_link import Link, Request
from atm.coordinators.redis_wire import SCRIPTS
from atm.coordinators.redis_words import encode, says
from atm.task import TERMINAL, Status

SUBSCRIBE_PATIENCE = 2.0
"""Seconds that a new subscription is waited for; during an outage it comes later."""

EVENTS = {
    Status.PENDING: "task_created",
    Status.PROCESSING: "task_assigned",
    Status.SUCCESS: "task_completed",
    Status.FAILED: "task_failed",
    Status.TIMEOUT: "task_failed",
    Status.CANCELLED: "task_cancelled",
}


class _Ends(msgspec.Struct):
    """A message of a node to the others."""

    node: str
    ends: list[tuple[str, Status]]


class Messages:
    """The verbs of the coordinator that are messages. What is for this node itself is delivered at once."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._node = uuid.uuid4().hex
        self._cancel_listeners: dict[str, Callable[[CancelRequest], None]] = {}
        self._event_listeners: list[Callable[[Sequence[TaskEvent]], None]] = []
        # One object, so that events in a row are merged.
        self._publish = Request(SCRIPTS["publish"], self._published)

    async def request_cancel(self, worker_id: str, request: CancelRequest) -> None:
        deliver = self._cancel_listeners.get(worker_id)
        document = {"id": worker_id, "task": request.task_id, "attempt": request.attempt}
        self._link.post(says("cancel", silent=deliver is not None, **document))
        if deliver is not None:
            deliver(request)

    async def listen_cancels(
        self,
        worker_id: str,
        deliver: Callable[[CancelRequest], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        def hear(message: bytes) -> None:
            task_id, _, attempt = message.decode(errors="replace").partition(" ")
            if attempt.isdecimal():
                deliver(CancelRequest(task_id, int(attempt)))

        channel = f"worker:{worker_id}:cancel"
        self._cancel_listeners[worker_id] = deliver
        try:
            await self._listen(channel, hear, task_status)
        finally:
            self._link.listener.leave(channel)
            del self._cancel_listeners[worker_id]

    async def publish(self, events: Sequence[TaskEvent]) -> None:
        if events:
            self._link.post(self._publish, events)
            for deliver in self._event_listeners:
                deliver(events)

    def _published(self, events: Sequence[TaskEvent]) -> tuple[bytes, ...]:
        ends = [(event.task_id, event.status) for event in events if event.status in TERMINAL]
        message = encode(_Ends(self._node, ends)) if ends else b""
        facts = [part for event in events for part in (EVENTS[event.status], event.task_id, event.status)]
        return (b"{}", message, encode(facts))

    async def listen_events(
        self,
        deliver: Callable[[Sequence[TaskEvent]], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Of other nodes' events the ends alone."""
        self._event_listeners.append(deliver)
        try:
            await self._listen("task:ended", self._on_ends, task_status)
        finally:
            self._event_listeners.remove(deliver)
            if not self._event_listeners:
                self._link.listener.leave("task:ended")

    def _on_ends(self, message: bytes) -> None:
        try:
            told = msgspec.json.decode(message, type=_Ends)
        except msgspec.DecodeError:
            return
        if told.node != self._node:
            events = [TaskEvent(task_id, status) for task_id, status in told.ends]
            for deliver in self._event_listeners:
                deliver(events)

    async def _listen(
        self, channel: str, hear: Callable[[bytes], None], task_status: trio.TaskStatus[None]
    ) -> None:
        """Until cancelled; started when subscribed, or when that takes too long."""
        subscribed = trio.Event()
        self._link.listener.hear(channel, hear, subscribed.set)
        with trio.move_on_after(SUBSCRIBE_PATIENCE):
            await subscribed.wait()
        task_status.started()
        await trio.sleep_forever()
