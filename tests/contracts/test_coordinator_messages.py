"""The coordinator's messages and terms: cancels to one worker, events to all, and who leads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import trio
from trio.abc import Clock

from atm.coordinator import CancelRequest, TaskEvent
from atm.task import Status
from contracts.hall import Hall

# cancels


async def test_a_cancel_reaches_the_worker_it_is_for(lobby: Hall, clock: Clock | None) -> None:
    got: dict[str, list[CancelRequest]] = {"w1": [], "w2": []}
    async with trio.open_nursery() as nursery:
        for worker_id, requests in got.items():
            await nursery.start(lobby.coordinator.listen_cancels, worker_id, requests.append)
        for number in range(3):
            await lobby.coordinator.request_cancel("w1", CancelRequest(f"a{number}", number))
        await lobby.eventually(lambda: len(got["w1"]) == 3)
        nursery.cancel_scope.cancel()
    assert got == {"w1": [CancelRequest("a0", 0), CancelRequest("a1", 1), CancelRequest("a2", 2)], "w2": []}


async def test_a_cancel_that_nobody_hears_is_lost(lobby: Hall, clock: Clock | None) -> None:
    await lobby.coordinator.request_cancel("w1", CancelRequest("a", 1))
    got: list[CancelRequest] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(lobby.coordinator.listen_cancels, "w1", got.append)
        nursery.cancel_scope.cancel()
    await lobby.coordinator.request_cancel("w1", CancelRequest("b", 1))
    assert got == []


async def test_a_worker_may_listen_again(lobby: Hall, clock: Clock | None) -> None:
    for _ in range(2):
        got: list[CancelRequest] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(lobby.coordinator.listen_cancels, "w1", got.append)
            await lobby.coordinator.request_cancel("w1", CancelRequest("a", 1))
            await lobby.eventually(partial(bool, got))
            nursery.cancel_scope.cancel()
        assert got == [CancelRequest("a", 1)]


# events


async def test_events_reach_everybody_in_order(lobby: Hall, clock: Clock | None) -> None:
    got: list[list[TaskEvent]] = [[], []]

    async def listen(into: list[TaskEvent], *, task_status: trio.TaskStatus[None]) -> None:
        def deliver(events: Sequence[TaskEvent]) -> None:
            into.extend(events)

        await lobby.coordinator.listen_events(deliver, task_status=task_status)

    events = [TaskEvent(f"a{number}", status) for number, status in enumerate(Status)]
    async with trio.open_nursery() as nursery:
        for into in got:
            await nursery.start(listen, into)
        await lobby.coordinator.publish(events[:2])
        await lobby.coordinator.publish([])
        await lobby.coordinator.publish(events[2:])
        await lobby.eventually(lambda: all(len(heard) == len(events) for heard in got))
        nursery.cancel_scope.cancel()
    assert got == [events, events]


async def test_events_that_nobody_hears_are_lost(lobby: Hall, clock: Clock | None) -> None:
    got: list[TaskEvent] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(lobby.coordinator.listen_events, got.extend)
        nursery.cancel_scope.cancel()
    await lobby.coordinator.publish([TaskEvent("a", Status.SUCCESS)])
    assert got == []


async def test_a_listener_that_leaves_takes_no_other_with_it(lobby: Hall, clock: Clock | None) -> None:
    got: list[TaskEvent] = []
    async with trio.open_nursery() as staying:
        await staying.start(lobby.coordinator.listen_events, got.extend)
        async with trio.open_nursery() as leaving:
            await leaving.start(lobby.coordinator.listen_events, lambda events: None)
            leaving.cancel_scope.cancel()
        await lobby.coordinator.publish([TaskEvent("a", Status.SUCCESS)])
        await lobby.eventually(lambda: bool(got))
        staying.cancel_scope.cancel()
    assert got == [TaskEvent("a", Status.SUCCESS)]


# terms


async def test_duties_are_carried_out_while_the_node_leads(lobby: Hall, clock: Clock | None) -> None:
    seen: list[str | None] = []

    async def duties() -> None:
        seen.append(lobby.coordinator.leader())
        try:
            await trio.sleep_forever()
        finally:
            seen.append("ended")

    assert lobby.coordinator.leader() is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lobby.coordinator.lead, "node-1", duties)
        await lobby.eventually(lambda: bool(seen))
        await lobby.sleep(10)
        assert seen == ["node-1"]
        nursery.cancel_scope.cancel()
    assert seen == ["node-1", "ended"]
    assert lobby.coordinator.leader() is None


async def test_duties_that_fail_fail_the_node(lobby: Hall, clock: Clock | None) -> None:
    async def duties() -> None:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        await lobby.coordinator.lead("node-1", duties)
    assert lobby.coordinator.leader() is None
