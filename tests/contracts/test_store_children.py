"""Children: started once, ended with their parent, never outlived by it."""

from __future__ import annotations

from typing import Any

import pytest

from atm.store import (
    CancelState,
    CancelVerdict,
    Refusal,
    Refused,
    Settled,
    Spawned,
    SpawnState,
    TaskFilter,
)
from atm.task import Status, Task
from contracts.bench import Bench, child_of, outcome

LIMIT = 100


async def spawn(bench: Bench, parent: Task, ordinal: int = 0, **fields: Any) -> str:
    """A new child; its id."""
    (spawned,) = await bench.store.spawn([child_of(parent, ordinal, **fields)])
    assert spawned.state is SpawnState.CREATED, spawned
    return spawned.task_id


async def try_to_spawn(bench: Bench, parent: Task, ordinal: int = 0, **fields: Any) -> Spawned:
    (spawned,) = await bench.store.spawn([child_of(parent, ordinal, **fields)])
    return spawned


async def waits(bench: Bench, task: Task, status: Status, **fields: Any) -> bool:
    """Whether this end of the task is put off until its children have ended."""
    (verdict,) = await bench.store.finish(await bench.lease(), [outcome(task, status, **fields)])
    assert (verdict.status is None) == verdict.children
    return verdict.children


# what a child is


async def test_a_child_knows_its_parent_and_has_its_deadline(bench: Bench) -> None:
    parent = await bench.running(timeout=60)
    await bench.advance(20)
    child_id = await spawn(bench, parent, timeout=300)
    child = await bench.get(child_id)
    assert (child.parent_id, child.timeout, child.status) == (parent.task_id, 300, Status.PENDING)
    assert parent.started_ms is not None
    assert child.expires_ms == parent.started_ms + 60_000
    claimed = await bench.claim(child_id)
    assert 39 < claimed.timeout <= 40
    assert (await bench.get(child_id)).timeout == 300
    assert (await bench.get(parent.task_id)).children


async def test_a_child_that_needs_less_has_its_own_timeout(bench: Bench) -> None:
    child_id = await spawn(bench, await bench.running(timeout=60), timeout=7)
    assert (await bench.claim(child_id)).timeout == 7


async def test_a_grandchild_has_the_nearest_deadline(bench: Bench) -> None:
    parent = await bench.running(timeout=60)
    child = await bench.claim(await spawn(bench, parent, timeout=1000))
    grandchild = await bench.get(await spawn(bench, child))
    assert grandchild.expires_ms == (await bench.get(child.task_id)).expires_ms


async def test_a_child_never_starts_when_its_parents_time_is_over(bench: Bench) -> None:
    parent = await bench.running(timeout=60)
    child_id = await spawn(bench, parent)
    await bench.advance(61)
    assert await bench.store.claim(await bench.lease(), [child_id]) == [Refused(Refusal.EXPIRED)]
    child = await bench.get(child_id)
    assert (child.status, child.attempt, child.started_ms) == (Status.TIMEOUT, 0, None)
    assert child.error_json is not None
    assert child.completed_ms is not None
    assert await bench.steps(child_id) == ["None PENDING", "PENDING TIMEOUT"]


async def test_a_child_is_not_retried_beyond_its_parents_time(bench: Bench) -> None:
    parent = await bench.running(timeout=60)
    child = await bench.claim(await spawn(bench, parent))
    await bench.advance(40)
    assert await bench.finish(child, Status.FAILED, retry_in=1.0) is Status.PENDING
    await bench.advance(2)
    child = await bench.claim(child.task_id)
    assert await bench.finish(child, Status.TIMEOUT, retry_in=30.0) is Status.TIMEOUT
    # The same end told again is one end.
    assert await bench.finish(child, Status.TIMEOUT, retry_in=30.0) is Status.TIMEOUT
    assert (await bench.get(child.task_id)).retry_count == 1


async def test_the_children_of_a_task_can_be_listed(bench: Bench) -> None:
    parent, other = await bench.running(), await bench.running()
    mine = [await spawn(bench, parent, ordinal) for ordinal in range(12)]
    await spawn(bench, other)
    found = await bench.store.find(TaskFilter(parent_id=parent.task_id), None, 50)
    assert [task.task_id for task in found] == sorted(mine, reverse=True)
    older = await bench.store.find(TaskFilter(parent_id=parent.task_id, status=Status.PENDING), sorted(mine)[3], 2)
    assert [task.task_id for task in older] == sorted(mine)[2:0:-1]


async def test_who_has_ended_is_told(bench: Bench) -> None:
    waiting, running = await bench.create(), await bench.running()
    done = await bench.ended(Status.FAILED)
    asked = [waiting, running.task_id, done.task_id, "unknown"]
    assert await bench.store.ended(asked) == {done.task_id, "unknown"}
    assert await bench.store.ended([]) == set()


# who may start one, and what a second time gives


async def test_only_the_attempt_that_runs_starts_children(bench: Bench) -> None:
    parent = await bench.running()
    await bench.finish(parent, Status.FAILED, retry_in=0.0)
    assert await try_to_spawn(bench, parent) == Spawned(SpawnState.STALE)
    again = await bench.claim(parent.task_id)
    assert await try_to_spawn(bench, parent) == Spawned(SpawnState.STALE)
    await bench.store.cancel([again.task_id])
    assert await try_to_spawn(bench, again) == Spawned(SpawnState.CANCELLED)
    await bench.finish(again, Status.CANCELLED)
    assert await try_to_spawn(bench, again) == Spawned(SpawnState.STALE)
    assert await bench.store.find(TaskFilter(parent_id=parent.task_id), None, 10) == []


async def test_the_same_call_again_is_the_same_child(bench: Bench) -> None:
    new = child_of(await bench.running())
    first, second = [(await bench.store.spawn([new]))[0] for _ in range(2)]
    assert first == second == Spawned(SpawnState.CREATED, new.task.task_id)
    assert len(await bench.logs(new.task.task_id)) == 1


async def test_a_retried_parent_finds_its_child_and_gives_it_the_new_deadline(bench: Bench) -> None:
    parent = await bench.running(timeout=60)
    child_id = await spawn(bench, parent, payload_json='{"n": 1, "m": 2}')
    assert await bench.finish(parent, Status.FAILED, retry_in=0.0) is Status.PENDING
    await bench.advance(30)
    parent = await bench.claim(parent.task_id)
    spawned = await try_to_spawn(bench, parent, payload_json='{"m":2,"n":1}')
    assert spawned == Spawned(SpawnState.JOINED, child_id)
    assert parent.started_ms is not None
    child = await bench.get(child_id)
    assert (child.expires_ms, child.status) == (parent.started_ms + 60_000, Status.PENDING)
    done = await bench.claim(child_id)
    await bench.finish(done, Status.SUCCESS, result_json="7")
    assert await try_to_spawn(bench, parent, payload_json='{"m":2,"n":1}') == Spawned(SpawnState.JOINED, child_id)


@pytest.mark.parametrize("other", [{"task_type": "other"}, {"payload_json": '{"x": 1}'}], ids=["type", "payload"])
async def test_another_child_under_the_same_ordinal_is_refused(bench: Bench, other: dict[str, str]) -> None:
    parent = await bench.running()
    child_id = await spawn(bench, parent)
    assert await try_to_spawn(bench, parent, **other) == Spawned(SpawnState.CONFLICT, child_id)


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMEOUT])
async def test_a_retried_parent_tries_a_failed_child_again(bench: Bench, status: Status) -> None:
    parent = await bench.running()
    child = await bench.claim(await spawn(bench, parent))
    assert await bench.finish(child, status) is status
    await bench.finish(parent, Status.FAILED, retry_in=0.0)
    parent = await bench.claim(parent.task_id)
    assert await try_to_spawn(bench, parent) == Spawned(SpawnState.REOPENED, child.task_id)
    again = await bench.claim(child.task_id)
    assert (again.attempt, again.retry_count, again.parent_id) == (2, 0, parent.task_id)
    assert again.expires_ms is not None
    assert (await bench.steps(child.task_id))[-2:] == [f"{status} PENDING", "PENDING PROCESSING"]


async def test_a_child_that_a_user_cancelled_stays_cancelled_until_a_user_retries_it(bench: Bench) -> None:
    parent = await bench.running()
    child_id = await spawn(bench, parent)
    await bench.store.cancel([child_id])
    await bench.finish(parent, Status.FAILED, retry_in=0.0)
    parent = await bench.claim(parent.task_id)
    assert await try_to_spawn(bench, parent) == Spawned(SpawnState.JOINED, child_id)
    assert await bench.status(child_id) is Status.CANCELLED
    await bench.store.reopen([child_id])
    child = await bench.get(child_id)
    assert (child.status, child.expires_ms, child.parent_id) == (Status.PENDING, None, parent.task_id)


async def test_a_parent_that_a_user_retries_gets_the_children_back_that_ended_with_it(bench: Bench) -> None:
    parent = await bench.running()
    children = [await spawn(bench, parent, ordinal) for ordinal in range(2)]
    running = await bench.claim(children[1])
    await bench.store.cancel([parent.task_id])
    await bench.store.cancel_children([parent.task_id], LIMIT)
    await bench.finish(running, Status.CANCELLED)
    assert await bench.finish(parent, Status.CANCELLED) is Status.CANCELLED
    await bench.store.reopen([parent.task_id])
    parent = await bench.claim(parent.task_id)
    for ordinal, child_id in enumerate(children):
        assert await try_to_spawn(bench, parent, ordinal) == Spawned(SpawnState.REOPENED, child_id)
        assert await bench.status(child_id) is Status.PENDING


async def test_a_child_of_its_own_capped_type_is_refused_in_any_depth(bench: Bench) -> None:
    await bench.configure("narrow", max_concurrent=1)
    parent = await bench.running(task_type="narrow")
    assert await try_to_spawn(bench, parent, task_type="narrow") == Spawned(SpawnState.CAPPED)
    child = await bench.claim(await spawn(bench, parent))
    assert await try_to_spawn(bench, child, task_type="narrow") == Spawned(SpawnState.CAPPED)
    stranger = await bench.running()
    assert (await try_to_spawn(bench, stranger, task_type="narrow")).state is SpawnState.CREATED


# no end before the children's


ENDS: dict[str, tuple[Status, dict[str, Any]]] = {
    "success": (Status.SUCCESS, {"result_json": "1"}),
    "failed for good": (Status.FAILED, {}),
    "timeout": (Status.TIMEOUT, {}),
    "cancelled": (Status.CANCELLED, {}),
}


@pytest.mark.parametrize(("status", "fields"), ENDS.values(), ids=ENDS)
async def test_no_task_ends_while_a_child_lives(bench: Bench, status: Status, fields: dict[str, Any]) -> None:
    parent = await bench.running()
    first, second = [await spawn(bench, parent, ordinal) for ordinal in range(2)]
    child = await bench.claim(first)
    before = await bench.get(parent.task_id), await bench.logs(parent.task_id)
    assert await waits(bench, parent, status, details="trace", **fields)
    await bench.store.cancel([second])
    assert await waits(bench, parent, status, details="trace", **fields)
    assert (await bench.get(parent.task_id), await bench.logs(parent.task_id)) == before
    await bench.finish(child, Status.SUCCESS, result_json="1")
    assert not await waits(bench, parent, status, details="trace", **fields)
    assert await bench.status(parent.task_id) is status


@pytest.mark.parametrize(
    ("status", "retry_in"), [(Status.FAILED, 0.0), (Status.TIMEOUT, 0.0), (Status.PENDING, None)]
)
async def test_an_attempt_that_is_not_the_last_ends_without_its_children(
    bench: Bench, status: Status, retry_in: float | None
) -> None:
    parent = await bench.running()
    child_id = await spawn(bench, parent)
    assert not await waits(bench, parent, status, retry_in=retry_in)
    assert [await bench.status(name) for name in (parent.task_id, child_id)] == [Status.PENDING] * 2


async def test_a_child_between_two_attempts_lives(bench: Bench) -> None:
    parent = await bench.running()
    child = await bench.claim(await spawn(bench, parent))
    await bench.finish(child, Status.FAILED, retry_in=50.0)
    assert await waits(bench, parent, Status.SUCCESS)


# cancel


async def test_a_running_parent_is_cancelled_with_its_children(bench: Bench) -> None:
    parent = await bench.running()
    waiting = await spawn(bench, parent, 0)
    running = await bench.claim(await spawn(bench, parent, 1), "worker-2")
    (verdict,) = await bench.store.cancel([parent.task_id])
    assert (verdict.state, verdict.children) == (CancelState.REQUESTED, True)

    found = await bench.store.cancel_children([parent.task_id], LIMIT)
    assert found == {
        waiting: CancelVerdict(CancelState.CANCELLED, Status.CANCELLED, changed=True, task_type="echo"),
        running.task_id: CancelVerdict(CancelState.REQUESTED, Status.PROCESSING, "worker-2", 1, changed=True),
    }
    assert await bench.store.cancel_children([parent.task_id], LIMIT) == {}
    assert await waits(bench, parent, Status.CANCELLED)
    await bench.finish(running, Status.CANCELLED)
    assert await bench.finish(parent, Status.CANCELLED) is Status.CANCELLED


async def test_the_whole_family_is_cancelled_a_page_at_a_time(bench: Bench) -> None:
    parent = await bench.running()
    family: list[str] = []
    for ordinal in range(3):
        child = await bench.claim(await spawn(bench, parent, ordinal))
        family += [child.task_id, await spawn(bench, child, 0), await spawn(bench, child, 1)]
    asked: list[str] = []
    while found := (await bench.store.cancel_children([parent.task_id], 2)):
        asked += found
    assert sorted(asked) == sorted(family)
    assert {(await bench.get(name)).cancel_requested_ms is None for name in family} == {False}


async def test_children_are_cancelled_by_nobody_elses_cancel(bench: Bench) -> None:
    parent, other = await bench.running(), await bench.running()
    child_id = await spawn(bench, other)
    (verdict,) = await bench.store.cancel([parent.task_id])
    assert not verdict.children
    assert await bench.store.cancel_children([parent.task_id], LIMIT) == {}
    assert await bench.status(child_id) is Status.PENDING


async def test_a_parent_that_waits_for_its_retry_is_cancelled_after_its_children(bench: Bench) -> None:
    parent = await bench.running()
    child = await bench.claim(await spawn(bench, parent))
    await bench.finish(parent, Status.FAILED, retry_in=50.0, error_json='{"message":"m"}')
    (verdict,) = await bench.store.cancel([parent.task_id])
    told = {"changed": True, "children": True, "task_type": "echo"}
    assert verdict == CancelVerdict(CancelState.REQUESTED, Status.PROCESSING, **told)
    assert await bench.claims([parent.task_id]) == ["gone"]
    assert await bench.store.recover(10) == []
    assert await bench.store.settle(10) == [Settled(parent.task_id, "echo", Status.PROCESSING)]
    assert (await bench.store.cancel([parent.task_id]))[0].state is CancelState.REQUESTED

    await bench.finish(child, Status.SUCCESS)
    assert await bench.store.settle(10) == [Settled(parent.task_id, "echo", Status.CANCELLED)]
    assert await bench.store.settle(10) == []
    after = await bench.get(parent.task_id)
    assert (after.status, after.error_json, after.worker_id) == (Status.CANCELLED, '{"message":"m"}', None)
    assert (await bench.steps(parent.task_id))[-2:] == ["PENDING PROCESSING", "PROCESSING CANCELLED"]


async def test_asked_again_once_its_children_have_ended_the_cancel_is_done(bench: Bench) -> None:
    parent = await bench.running()
    child_id = await spawn(bench, parent)
    await bench.finish(parent, Status.FAILED, retry_in=50.0)
    await bench.store.cancel([parent.task_id])
    assert list(await bench.store.cancel_children([parent.task_id], LIMIT)) == [child_id]
    (verdict,) = await bench.store.cancel([parent.task_id])
    assert verdict == CancelVerdict(CancelState.CANCELLED, Status.CANCELLED, changed=True)
    assert await bench.status(child_id) is Status.CANCELLED
    await bench.steps(parent.task_id)


async def test_children_whose_time_is_over_time_out(bench: Bench) -> None:
    parent = await bench.running(timeout=60)
    waiting = await spawn(bench, parent, 0)
    ending = await bench.claim(await spawn(bench, parent, 1))
    await bench.advance(60.5)
    found = await bench.store.cancel_children([parent.task_id], LIMIT)
    assert {name: verdict.status for name, verdict in found.items()} == {waiting: Status.TIMEOUT}
    assert found[waiting].task_type == "echo", "its hint waits in vain"
    assert (await bench.get(ending.task_id)).cancel_requested_ms is None, "it ends by its own deadline"
    await bench.advance(10)
    found = await bench.store.cancel_children([parent.task_id], LIMIT)
    assert [verdict.state for verdict in found.values()] == [CancelState.REQUESTED], "or it does not"
    await bench.steps(waiting)


# how many ended with it


async def last_words(bench: Bench, task: Task) -> str:
    return (await bench.logs(task.task_id))[-1].message


async def end(bench: Bench, task: Task, status: Status, **fields: Any) -> int:
    """End the task, twice, as after a lost answer; how many children are told to have ended with it."""
    lease = await bench.lease()
    first, second = [(await bench.store.finish(lease, [outcome(task, status, **fields)]))[0] for _ in range(2)]
    assert first == second
    assert first.status is not None
    return first.ended_with


async def test_children_that_ended_before_their_cancelled_parent_are_counted(bench: Bench) -> None:
    parent = await bench.running()
    await spawn(bench, parent, 0)
    running = [await bench.claim(await spawn(bench, parent, ordinal)) for ordinal in (1, 2, 3)]
    await bench.finish(running.pop(), Status.SUCCESS)
    await bench.store.cancel([await spawn(bench, parent, 4)])
    await bench.advance(1)
    await bench.store.cancel([parent.task_id])
    await bench.store.cancel_children([parent.task_id], LIMIT)
    await bench.finish(running.pop(), Status.CANCELLED)
    assert await waits(bench, parent, Status.CANCELLED)
    await bench.finish(running.pop(), Status.SUCCESS)
    assert await end(bench, parent, Status.CANCELLED) == 3
    assert await last_words(bench, parent) == "ended CANCELLED; 3 children ended with it"


async def test_children_that_met_their_parents_deadline_are_counted(bench: Bench) -> None:
    parent = await bench.running(timeout=60)
    await spawn(bench, parent, 0)
    late = await bench.claim(await spawn(bench, parent, 1, timeout=300))
    brief = await bench.claim(await spawn(bench, parent, 2, timeout=7))
    await bench.advance(7)
    await bench.finish(brief, Status.TIMEOUT)
    await bench.advance(53)
    await bench.finish(late, Status.TIMEOUT)
    assert await waits(bench, parent, Status.TIMEOUT)
    await bench.store.cancel_children([parent.task_id], LIMIT)
    assert await end(bench, parent, Status.TIMEOUT) == 2
    assert await last_words(bench, parent) == "ended TIMEOUT; 2 children ended with it"


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILED, Status.PENDING])
async def test_whatever_it_came_to_a_cancelled_parent_tells_of_its_children(bench: Bench, status: Status) -> None:
    parent = await bench.running()
    await spawn(bench, parent)
    await bench.store.cancel([parent.task_id])
    await bench.store.cancel_children([parent.task_id], LIMIT)
    assert await end(bench, parent, status) == 1
    assert "1 child ended with it" in await last_words(bench, parent)


async def test_children_that_ended_by_themselves_are_not_counted(bench: Bench) -> None:
    parent = await bench.running()
    for ordinal, status in enumerate((Status.SUCCESS, Status.FAILED, Status.TIMEOUT)):
        await bench.finish(await bench.claim(await spawn(bench, parent, ordinal, timeout=7)), status)
    await bench.store.cancel([parent.task_id])
    assert await end(bench, parent, Status.CANCELLED) == 0
    assert await last_words(bench, parent) == "ended CANCELLED"


async def test_children_that_ended_with_a_former_attempt_are_not_counted(bench: Bench) -> None:
    parent = await bench.running(timeout=60)
    await spawn(bench, parent, 0)
    late = await bench.claim(await spawn(bench, parent, 1))
    await bench.advance(60)
    await bench.store.cancel_children([parent.task_id], LIMIT)
    assert await bench.finish(parent, Status.TIMEOUT, retry_in=0.0) is Status.PENDING
    assert "ended with it" not in (await last_words(bench, parent))
    await bench.advance(1)
    parent = await bench.claim(parent.task_id)
    await bench.advance(1)
    await bench.finish(late, Status.TIMEOUT)
    await bench.store.cancel([parent.task_id])
    assert await end(bench, parent, Status.CANCELLED) == 0


async def test_each_parent_of_a_batch_has_its_own_count(bench: Bench) -> None:
    parents = [await bench.running() for _ in range(3)]
    for count, parent in enumerate(parents):
        for ordinal in range(count):
            await spawn(bench, parent, ordinal)
    await bench.store.cancel([parent.task_id for parent in parents])
    await bench.store.cancel_children([parent.task_id for parent in parents], LIMIT)
    ends = [outcome(parent, Status.CANCELLED) for parent in parents]
    verdicts = await bench.store.finish(await bench.lease(), ends)
    assert [verdict.ended_with for verdict in verdicts] == [0, 1, 2]


# the parent's worker is lost


async def test_a_lost_parent_that_was_to_be_cancelled_is_ended_after_its_children(bench: Bench) -> None:
    parent = await bench.running()
    child = await bench.claim(await spawn(bench, parent), "worker-2")
    await bench.store.cancel([parent.task_id])
    await bench.lose()
    (recovered,) = await bench.store.recover(10)
    assert recovered.status is Status.PROCESSING
    assert await bench.store.recover(10) == []
    assert (await bench.get(parent.task_id)).worker_id is None
    assert await bench.store.settle(10) == [Settled(parent.task_id, "echo", Status.PROCESSING)]
    await bench.finish(child, Status.CANCELLED)
    assert await bench.store.settle(10) == [Settled(parent.task_id, "echo", Status.CANCELLED)]
    await bench.steps(parent.task_id)


async def test_a_poisonous_parent_is_failed_after_its_children(bench: Bench) -> None:
    parent = await bench.running()
    child_id = await spawn(bench, parent)
    for _ in range(3):
        await bench.lose()
        await bench.store.recover(10)
        await bench.advance(60)
        parent = await bench.claim(parent.task_id)
    await bench.lose()
    (recovered,) = await bench.store.recover(10)
    assert recovered.status is Status.PROCESSING
    assert await try_to_spawn(bench, parent, 1) == Spawned(SpawnState.STALE)
    await bench.store.cancel([child_id])
    assert await bench.store.settle(10) == [Settled(parent.task_id, "echo", Status.FAILED)]
    after = await bench.get(parent.task_id)
    assert after.recoveries == 4
    assert after.error_json is not None
    assert "poison" in after.error_json
    await bench.steps(parent.task_id)


async def test_a_lost_parent_that_nobody_cancelled_runs_again_and_finds_its_children(bench: Bench) -> None:
    parent = await bench.running()
    child_id = await spawn(bench, parent)
    await bench.lose()
    (recovered,) = await bench.store.recover(10)
    assert recovered.status is Status.PENDING
    await bench.advance(60)
    parent = await bench.claim(parent.task_id)
    assert await try_to_spawn(bench, parent) == Spawned(SpawnState.JOINED, child_id)
