"""PENDING tasks as the leader sees them: the sweep of what was forgotten, the walk through all."""

from __future__ import annotations

from itertools import pairwise

import pytest

from atm.store import Position, Waiting
from atm.task import Status, Task
from contracts.bench import Bench

ALL = (1, 0, -1)


async def _swept(bench: Bench, *, limit: int = 100) -> list[str]:
    return [waiting.task_id for waiting in await bench.store.sweep(ALL, limit)]


# sweep


async def test_a_due_task_that_nobody_claims_is_found_after_two_seconds(bench: Bench) -> None:
    task_id = await bench.create(task_type="other", priority=-1)
    assert await _swept(bench) == []
    await bench.advance(3)
    assert await bench.store.sweep(ALL, 100) == [Waiting(task_id, "other", -1, 0.0)]


async def test_each_visit_puts_the_next_one_off_longer_up_to_a_minute(bench: Bench) -> None:
    task_id = await bench.create()
    visits: list[int] = []
    for second in range(1, 260):
        await bench.advance(1)
        if await _swept(bench) == [task_id]:
            visits.append(second)
    assert visits[0] == pytest.approx(2, abs=1)
    for earlier, later in pairwise(visits):
        assert later - earlier == pytest.approx(min(earlier, 60), abs=1), visits
    assert visits[-1] > 180


async def test_a_delayed_task_is_looked_for_once_its_time_has_come(bench: Bench) -> None:
    task_id = await bench.create(delay=1000)
    await bench.advance(999)
    assert await _swept(bench) == []
    await bench.advance(4)
    assert await _swept(bench) == [task_id]


async def test_a_retry_is_looked_for_after_its_own_due_time(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, retry_in=100)
    for seconds in (99, 2):
        await bench.advance(seconds)
        assert await _swept(bench) == []
    await bench.advance(2)
    assert await _swept(bench) == [task.task_id]


async def test_only_waiting_tasks_are_found(bench: Bench) -> None:
    await bench.running(timeout=1)
    for status in (Status.SUCCESS, Status.FAILED, Status.CANCELLED):
        await bench.ended(status)
    await bench.store.cancel([await bench.create()])
    await bench.advance(100_000)
    assert await _swept(bench) == []


async def test_a_task_that_waits_again_is_found_again_soon(bench: Bench) -> None:
    task_id = await bench.create()
    await bench.advance(500)
    assert await _swept(bench) == [task_id]
    await bench.finish(await bench.claim(task_id), Status.PENDING)
    await bench.advance(3)
    assert await _swept(bench) == [task_id]


async def test_only_the_priorities_asked_for_are_looked_at(bench: Bench) -> None:
    high, _, low = [await bench.create(priority=priority) for priority in ALL]
    await bench.advance(3)
    assert [waiting.task_id for waiting in await bench.store.sweep([1, -1], 10)] == [high, low]
    assert await bench.store.sweep([], 10) == []
    assert len(await _swept(bench)) == 1, "the one that was left out"


async def test_the_limit_is_for_each_priority(bench: Bench) -> None:
    ids = {priority: await bench.create_many(5, priority=priority) for priority in ALL}
    await bench.advance(3)
    assert await _swept(bench, limit=2) == [*ids[1][:2], *ids[0][:2], *ids[-1][:2]]
    assert await _swept(bench, limit=10) == [*ids[1][2:], *ids[0][2:], *ids[-1][2:]]
    assert await _swept(bench) == []


# the walk


async def _walk(bench: Bench, limit: int) -> list[Waiting]:
    found: list[Waiting] = []
    position: Position | None = None
    while True:
        page, position = await bench.store.waiting(position, limit)
        assert len(page) <= limit
        found += page
        assert len(found) < 100, "it goes round in circles"
        if position is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
async def test_the_walk_gives_every_waiting_task_once_in_the_order_of_service(bench: Bench, limit: int) -> None:
    low = await bench.create_many(3, priority=-1)
    normal = await bench.create_many(4)
    high = await bench.create_many(2, priority=1)
    await bench.advance(1)
    later = await bench.create()
    await bench.running()
    await bench.ended(Status.SUCCESS)
    found = await _walk(bench, limit)
    assert [waiting.task_id for waiting in found] == [*high, *normal, later, *low]
    assert [waiting.priority for waiting in found] == [1, 1, 0, 0, 0, 0, 0, -1, -1, -1]
    assert {(waiting.task_type, waiting.due_in) for waiting in found} == {("echo", 0.0)}


async def test_the_walk_through_nothing_ends(bench: Bench) -> None:
    assert await _walk(bench, 10) == []


async def test_delayed_tasks_come_last_with_the_seconds_left(bench: Bench) -> None:
    much, little = await bench.create(delay=300), await bench.create(delay=100)
    now = await bench.create()
    found = await _walk(bench, 2)
    assert [waiting.task_id for waiting in found] == [now, little, much]
    assert found[0].due_in == 0
    assert 0 < found[1].due_in <= 100 < found[2].due_in <= 300


async def test_the_walk_includes_what_a_sweep_has_visited(bench: Bench) -> None:
    task_ids = await bench.create_many(4)
    await bench.advance(3)
    assert await _swept(bench, limit=2) == task_ids[:2]
    assert sorted(waiting.task_id for waiting in await _walk(bench, 1)) == sorted(task_ids)


async def test_what_waits_again_is_walked_through_again(bench: Bench) -> None:
    tasks: list[Task] = [await bench.running() for _ in range(3)]
    assert await _walk(bench, 10) == []
    await bench.finish(tasks[0], Status.PENDING)
    await bench.finish(tasks[1], Status.FAILED, retry_in=50)
    await bench.finish(tasks[2], Status.FAILED)
    await bench.store.reopen([tasks[2].task_id])
    found = await _walk(bench, 10)
    assert {waiting.task_id for waiting in found} == {task.task_id for task in tasks}
    assert found[-1].task_id == tasks[1].task_id
