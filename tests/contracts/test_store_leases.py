"""Leases: who may claim, what they hold, and what becomes of a lost worker's tasks."""

from __future__ import annotations

import json

import pytest
import trio

from atm.store import Held, Lease, Recovered
from atm.task import MAX_RECOVERIES, Status
from contracts.bench import Bench


async def test_each_registration_is_a_lease_of_its_own(bench: Bench) -> None:
    leases = [await bench.store.register("worker-1", 1, ["echo"]) for _ in range(3)]
    leases.append(await bench.store.register("worker-2", 1, []))
    assert [lease.worker_id for lease in leases] == ["worker-1"] * 3 + ["worker-2"]
    epochs = [lease.epoch for lease in leases[:3]]
    assert epochs == sorted(set(epochs)), "each epoch is greater than the one before"


async def test_a_lease_can_be_renewed_until_it_is_over(bench: Bench) -> None:
    old = await bench.store.register("worker-1", 1, ["echo"])
    assert await bench.store.renew(old) > 0
    new = await bench.store.register("worker-1", 1, ["echo"])
    assert await bench.store.renew(old) == 0
    assert await bench.store.renew(new) > 0
    await bench.store.retire(new)
    assert await bench.store.renew(new) == 0


async def test_a_lease_that_was_never_given_is_refused(bench: Bench) -> None:
    lease = await bench.lease()
    assert await bench.store.renew(Lease("worker-1", lease.epoch + 1)) == 0
    assert await bench.store.renew(Lease("worker-2", lease.epoch)) == 0


async def test_a_lease_that_was_superseded_claims_nothing(bench: Bench) -> None:
    task_ids = await bench.create_many(2)
    old = await bench.lease()
    await bench.lose()
    verdicts = await bench.store.claim(old, [*task_ids, "unknown"])
    assert [str(getattr(verdict, "reason", "claimed")) for verdict in verdicts] == ["no_lease"] * 3
    assert [await bench.steps(task_id) for task_id in task_ids] == [["None PENDING"]] * 2
    assert await bench.claims(task_ids) == ["claimed"] * 2


async def test_a_lease_that_was_retired_claims_nothing(bench: Bench) -> None:
    task_id = await bench.create()
    await bench.store.retire(await bench.lease())
    assert await bench.claims([task_id]) == ["no_lease"]
    assert await bench.claims([task_id], "worker-2") == ["claimed"]


async def test_another_workers_lease_goes_on(bench: Bench) -> None:
    await bench.lease("worker-2")
    await bench.lose("worker-1")
    await bench.store.retire(await bench.lease("worker-1"))
    assert await bench.claims([await bench.create()], "worker-2") == ["claimed"]


async def test_retiring_twice_is_retiring_once(bench: Bench) -> None:
    old = await bench.lease()
    await bench.store.retire(old)
    await bench.store.retire(old)
    await bench.lose()
    await bench.store.retire(old)
    assert await bench.claims([await bench.create()]) == ["claimed"]


# what a lease holds


async def test_a_lease_holds_the_tasks_that_run_under_it(bench: Bench) -> None:
    first, second = await bench.running(), await bench.running()
    done = await bench.running()
    await bench.finish(done, Status.SUCCESS)
    await bench.claim(await bench.create(), "worker-2")
    await bench.store.cancel([second.task_id])
    await bench.advance(7)
    held = {item.task_id: item for item in await bench.store.held(await bench.lease())}
    assert held.keys() == {first.task_id, second.task_id}
    assert [item.attempt for item in held.values()] == [1, 1]
    assert [held[task.task_id].cancel_requested for task in (first, second)] == [False, True]
    assert all(item.age >= 7 for item in held.values())


async def test_a_new_lease_of_the_same_worker_holds_nothing_of_the_old(bench: Bench) -> None:
    task = await bench.running()
    old = await bench.lease()
    await bench.lose()
    assert await bench.store.held(await bench.lease()) == []
    assert [held.task_id for held in await bench.store.held(old)] == [task.task_id]


async def test_the_age_counts_from_the_claim(bench: Bench) -> None:
    task_id = await bench.create()
    await bench.advance(500)
    await bench.claim(task_id)
    (held,) = await bench.store.held(await bench.lease())
    assert isinstance(held, Held)
    assert 0 <= held.age < 500


# recovery


async def test_tasks_of_a_living_worker_are_left_alone(bench: Bench) -> None:
    task = await bench.running()
    assert await bench.store.recover(10) == []
    assert await bench.get(task.task_id) == task


@pytest.mark.parametrize("how", ["superseded", "retired"])
async def test_tasks_of_a_lost_worker_wait_again(bench: Bench, how: str) -> None:
    task = await bench.running(priority=1, task_type="other")
    if how == "superseded":
        await bench.lose()
    else:
        await bench.store.retire(await bench.lease())
    assert await bench.store.recover(10) == [Recovered(task.task_id, "other", 1, Status.PENDING)]
    after = await bench.get(task.task_id)
    assert (after.status, after.attempt) == (Status.PENDING, 1)
    assert (after.recoveries, after.retry_count, after.releases) == (1, 0, 0)
    assert after.worker_id is after.started_ms is None
    row = (await bench.logs(task.task_id))[-1]
    assert (row.log_type, row.from_status, row.to_status) == (
        "STATE_CHANGE",
        Status.PROCESSING,
        Status.PENDING,
    )
    assert (row.worker_id, row.attempt) == ("worker-1", 1)
    assert "lost" in row.message
    assert await bench.store.recover(10) == []
    await bench.advance(60)
    assert await bench.claims([task.task_id], "worker-2") == ["claimed"]


async def test_only_the_lost_workers_running_tasks_are_recovered(bench: Bench) -> None:
    mine = await bench.running()
    others = await bench.claim(await bench.create(), "worker-2")
    ended, waiting = await bench.ended(Status.SUCCESS), await bench.create()
    await bench.lose()
    again = await bench.running()
    assert [recovered.task_id for recovered in await bench.store.recover(10)] == [mine.task_id]
    assert await bench.get(others.task_id) == others
    assert await bench.get(again.task_id) == again, "claimed under the new lease"
    assert [await bench.status(task_id) for task_id in (ended.task_id, waiting)] == ["SUCCESS", "PENDING"]


async def test_recovery_keeps_the_error_of_the_attempt_before(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, retry_in=0, error_json='{"message":"first"}')
    await bench.claim(task.task_id)
    await bench.lose()
    await bench.store.recover(1)
    after = await bench.get(task.task_id)
    assert (after.error_json, after.retry_count, after.recoveries) == ('{"message":"first"}', 1, 1)


async def test_recovery_goes_in_slices(bench: Bench) -> None:
    task_ids = await bench.create_many(7)
    assert await bench.claims(task_ids) == ["claimed"] * 7
    await bench.lose()
    slices = [[r.task_id for r in await bench.store.recover(3)] for _ in range(4)]
    assert [len(part) for part in slices] == [3, 3, 1, 0]
    assert sorted(task_id for part in slices for task_id in part) == sorted(task_ids)


async def test_a_task_that_loses_a_fourth_worker_is_poison(bench: Bench) -> None:
    task_id = await bench.create()
    for recoveries in range(1, MAX_RECOVERIES + 1):
        await bench.claim(task_id)
        await bench.lose()
        (recovered,) = await bench.store.recover(10)
        assert recovered.status is Status.PENDING
        assert (await bench.get(task_id)).recoveries == recoveries
        await bench.advance(60)
    await bench.claim(task_id)
    await bench.lose()
    assert await bench.store.recover(10) == [Recovered(task_id, "echo", 0, Status.FAILED)]
    task = await bench.get(task_id)
    assert (task.status, task.attempt, task.recoveries) == (Status.FAILED, 4, 4)
    assert task.completed_ms is not None
    assert task.error_json is not None
    assert json.loads(task.error_json)["message"] == (await bench.logs(task_id))[-1].message
    assert (await bench.steps(task_id))[-1] == "PROCESSING FAILED"
    assert await bench.claims([task_id]) == ["gone"]


async def test_retries_and_releases_do_not_count_as_recoveries(bench: Bench) -> None:
    task_id = await bench.create()
    for _ in range(6):
        await bench.finish(await bench.claim(task_id), Status.PENDING)
        await bench.finish(await bench.claim(task_id), Status.FAILED, retry_in=0)
    await bench.claim(task_id)
    await bench.lose()
    assert [r.status for r in await bench.store.recover(10)] == [Status.PENDING]
    task = await bench.get(task_id)
    assert (task.attempt, task.releases, task.retry_count, task.recoveries) == (13, 6, 6, 1)


async def test_a_task_recovered_by_two_at_once_is_recovered_once(bench: Bench) -> None:
    tasks = [await bench.running() for _ in range(5)]
    await bench.lose()

    async def recover(limit: int) -> None:
        await bench.store.recover(limit)

    async with trio.open_nursery() as nursery:
        for limit in (10, 10, 7, 3):
            nursery.start_soon(recover, limit)
    for task in tasks:
        assert (await bench.get(task.task_id)).recoveries == 1
        assert len(await bench.steps(task.task_id)) == 3
