"""A user's retry: FAILED, TIMEOUT, CANCELLED → PENDING, with everything fresh but the fencing token."""

from __future__ import annotations

import pytest

from atm.store import Reopened
from atm.task import MAX_RECOVERIES, Status
from contracts.bench import Bench

REOPENABLE = [Status.FAILED, Status.TIMEOUT, Status.CANCELLED]


@pytest.mark.parametrize("status", REOPENABLE)
async def test_an_unsuccessful_task_runs_again(bench: Bench, status: Status) -> None:
    task = await bench.running()
    ending = {"error_json": '{"message":"m"}', "progress_json": '{"fraction":0.5}', "result_json": "1"}
    await bench.finish(task, status, **ending)
    await bench.advance(30)
    (verdict,) = await bench.store.reopen([task.task_id])
    after = await bench.get(task.task_id)
    assert verdict == Reopened(after, changed=True)
    assert (after.status, after.attempt) == (Status.PENDING, 1)
    assert after.worker_id is after.started_ms is after.completed_ms is after.cancel_requested_ms is None
    assert after.result_json is after.error_json is after.progress_json is None
    assert after.due_ms > task.due_ms
    row = (await bench.logs(task.task_id))[-1]
    assert (row.log_type, row.from_status, row.to_status) == ("RETRY", status, Status.PENDING)
    assert await bench.steps(task.task_id)
    assert (await bench.claim(task.task_id)).attempt == 2


async def test_budgets_begin_anew(bench: Bench) -> None:
    task = await bench.running(max_retry=1)
    await bench.finish(task, Status.FAILED, retry_in=0)
    await bench.finish(await bench.claim(task.task_id), Status.PENDING)
    await bench.claim(task.task_id)
    await bench.lose()
    await bench.store.recover(1)
    await bench.advance(60)
    await bench.finish(await bench.claim(task.task_id), Status.FAILED)
    spent = await bench.get(task.task_id)
    assert (spent.attempt, spent.retry_count, spent.releases, spent.recoveries) == (4, 1, 1, 1)
    await bench.store.reopen([task.task_id])
    fresh = await bench.get(task.task_id)
    assert (fresh.attempt, fresh.retry_count, fresh.releases, fresh.recoveries) == (4, 0, 0, 0)
    assert fresh.max_retry == 1


async def test_poison_that_is_reopened_may_lose_workers_again(bench: Bench) -> None:
    task_id = await bench.create()
    for _ in range(MAX_RECOVERIES + 1):
        await bench.advance(60)
        await bench.claim(task_id)
        await bench.lose()
        await bench.store.recover(1)
    assert await bench.status(task_id) is Status.FAILED
    await bench.store.reopen([task_id])
    await bench.claim(task_id)
    await bench.lose()
    (recovered,) = await bench.store.recover(1)
    assert recovered.status is Status.PENDING


async def test_a_cancelled_delayed_task_is_due_at_once_when_reopened(bench: Bench) -> None:
    task_id = await bench.create(delay=1000)
    await bench.store.cancel([task_id])
    (verdict,) = await bench.store.reopen([task_id])
    assert verdict.changed
    assert await bench.claims([task_id]) == ["claimed"]


async def test_the_old_cancel_does_not_reach_the_new_run(bench: Bench) -> None:
    task = await bench.running()
    await bench.store.cancel([task.task_id])
    await bench.finish(task, Status.CANCELLED)
    await bench.store.reopen([task.task_id])
    task = await bench.claim(task.task_id)
    assert await bench.finish(task, Status.FAILED, retry_in=0) is Status.PENDING


async def test_what_succeeded_waits_or_runs_is_left_alone(bench: Bench) -> None:
    done, running = await bench.ended(Status.SUCCESS), await bench.running()
    waiting = await bench.get(await bench.create())
    verdicts = await bench.store.reopen([done.task_id, running.task_id, waiting.task_id])
    assert verdicts == [Reopened(done), Reopened(running), Reopened(waiting)]
    assert len(await bench.logs(done.task_id)) == 3


async def test_an_unknown_task_cannot_be_reopened(bench: Bench) -> None:
    assert await bench.store.reopen(["unknown"]) == [Reopened(None)]


async def test_verdicts_come_in_the_order_asked_and_the_second_of_a_pair_changes_nothing(bench: Bench) -> None:
    failed, other = await bench.ended(Status.FAILED), await bench.ended(Status.TIMEOUT)
    verdicts = await bench.store.reopen([other.task_id, failed.task_id, "unknown", failed.task_id])
    assert [verdict.changed for verdict in verdicts] == [True, True, False, False]
    assert [v.task and v.task.task_id for v in verdicts] == [
        other.task_id,
        failed.task_id,
        None,
        failed.task_id,
    ]
    assert len(await bench.logs(failed.task_id)) == 4


async def test_an_empty_reopen_opens_nothing(bench: Bench) -> None:
    assert await bench.store.reopen([]) == []


async def test_ended_again_it_can_be_opened_again(bench: Bench) -> None:
    task_id = (await bench.ended(Status.FAILED)).task_id
    for attempt in range(2, 5):
        assert (await bench.store.reopen([task_id]))[0].changed
        task = await bench.claim(task_id)
        assert task.attempt == attempt
        assert await bench.finish(task, Status.TIMEOUT) is Status.TIMEOUT
    assert len(await bench.steps(task_id)) == 3 + 3 * 3
