"""PROCESSING → how the attempt ended: ends, retries, releases, and all that comes too late."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from atm.store import Finished, Note, Outcome
from atm.task import Status
from contracts.bench import Bench, outcome

ENDS = [Status.SUCCESS, Status.FAILED, Status.TIMEOUT, Status.CANCELLED]


@pytest.mark.parametrize("status", ENDS)
async def test_an_attempt_ends_its_task(bench: Bench, status: Status) -> None:
    task = await bench.running()
    await bench.advance(3)
    ending = outcome(task, status, error_json='{"message":"m"}', progress_json='{"fraction":1.0}')
    assert await bench.store.finish(await bench.lease(), [ending]) == [Finished(status, 0.0)]
    after = await bench.get(task.task_id)
    assert (after.status, after.attempt, after.worker_id) == (status, 1, "worker-1")
    assert (after.retry_count, after.releases, after.recoveries) == (0, 0, 0)
    assert (after.error_json, after.progress_json) == ('{"message":"m"}', '{"fraction":1.0}')
    assert after.started_ms == task.started_ms
    assert after.completed_ms is not None
    assert task.started_ms is not None
    assert after.completed_ms >= task.started_ms + 3000


@pytest.mark.parametrize("status", ENDS)
async def test_the_end_is_logged_with_worker_and_attempt(bench: Bench, status: Status) -> None:
    task = await bench.ended(status)
    row = (await bench.logs(task.task_id))[-1]
    assert (row.log_type, row.from_status, row.to_status) == ("STATE_CHANGE", Status.PROCESSING, status)
    assert (row.message, row.worker_id, row.attempt) == (f"ended {status}", "worker-1", 1)


async def test_a_success_stores_its_result(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.SUCCESS, result_json='{"message_id":"1"}')
    after = await bench.get(task.task_id)
    assert (after.result_json, after.error_json) == ('{"message_id":"1"}', None)


async def test_details_become_an_error_row_without_states(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, details="Traceback\n  …\0")
    error = (await bench.logs(task.task_id))[-2]
    assert (error.log_type, error.from_status, error.to_status) == ("ERROR", None, None)
    assert (error.message, error.worker_id, error.attempt) == ("Traceback\n  …\0", "worker-1", 1)
    assert await bench.steps(task.task_id) == ["None PENDING", "PENDING PROCESSING", "PROCESSING FAILED"]


@pytest.mark.parametrize("ending", [{}, {"retry_in": 0.0}], ids=["end", "retry"])
async def test_an_end_without_progress_keeps_what_was_noted(bench: Bench, ending: dict[str, float]) -> None:
    task = await bench.running()
    await bench.store.note([Note(task.task_id, 1, "worker-1", progress_json='{"fraction":0.5}')])
    await bench.finish(task, Status.FAILED, **ending)
    assert (await bench.get(task.task_id)).progress_json == '{"fraction":0.5}'


# retries and releases


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMEOUT])
async def test_a_retry_waits_its_delay_and_is_logged_in_two_rows(bench: Bench, status: Status) -> None:
    task = await bench.running(max_retry=2)
    ending = outcome(task, status, error_json='{"message":"m"}', retry_in=40.0)
    assert await bench.store.finish(await bench.lease(), [ending]) == [Finished(Status.PENDING, 40.0)]
    after = await bench.get(task.task_id)
    assert (after.status, after.attempt, after.retry_count) == (Status.PENDING, 1, 1)
    assert (after.error_json, after.result_json) == ('{"message":"m"}', None)
    assert after.worker_id is after.started_ms is after.completed_ms is None
    change, retry = (await bench.logs(task.task_id))[-2:]
    assert (change.log_type, change.from_status, change.to_status) == ("STATE_CHANGE", Status.PROCESSING, status)
    assert (change.message, change.worker_id, change.attempt) == (f"ended {status}", "worker-1", 1)
    assert (retry.log_type, retry.from_status, retry.to_status) == ("RETRY", status, Status.PENDING)
    assert retry.attempt == 1
    assert await bench.steps(task.task_id)
    await bench.advance(20)
    assert await bench.claims([task.task_id]) == ["not_due"]
    await bench.advance(21)
    assert await bench.claims([task.task_id]) == ["claimed"]


async def test_a_retry_at_once_can_be_claimed_at_once(bench: Bench) -> None:
    task = await bench.running()
    assert await bench.finish(task, Status.FAILED, retry_in=0.0) is Status.PENDING
    assert (await bench.claim(task.task_id)).retry_count == 1


async def test_a_release_costs_the_task_nothing(bench: Bench) -> None:
    task = await bench.running()
    assert await bench.finish(task, Status.PENDING, message="Released: drain") is Status.PENDING
    after = await bench.get(task.task_id)
    assert (after.status, after.retry_count, after.recoveries, after.releases) == (Status.PENDING, 0, 0, 1)
    assert after.worker_id is after.started_ms is after.error_json is None
    row = (await bench.logs(task.task_id))[-1]
    assert (row.log_type, row.from_status, row.to_status) == (
        "STATE_CHANGE",
        Status.PROCESSING,
        Status.PENDING,
    )
    assert (row.message, row.worker_id, row.attempt) == ("Released: drain", "worker-1", 1)
    assert await bench.claims([task.task_id]) == ["claimed"]


async def test_a_release_keeps_the_error_of_the_attempt_before(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, retry_in=0, error_json='{"message":"first"}')
    await bench.finish(await bench.claim(task.task_id), Status.PENDING)
    after = await bench.get(task.task_id)
    assert (after.error_json, after.retry_count, after.releases) == ('{"message":"first"}', 1, 1)


async def test_a_success_after_a_failure_leaves_no_error(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, retry_in=0, error_json='{"message":"first"}')
    await bench.finish(await bench.claim(task.task_id), Status.SUCCESS, result_json="1")
    after = await bench.get(task.task_id)
    assert (after.result_json, after.error_json, after.retry_count) == ("1", None, 1)


# guards


async def _untouched(bench: Bench, task_id: str, ending: Outcome) -> None:
    """The outcome is refused as stale and leaves neither row nor log another."""
    row, logs = await bench.get(task_id), await bench.logs(task_id)
    assert await bench.store.finish(await bench.lease(), [ending]) == [Finished(None)]
    assert await bench.get(task_id) == row
    assert await bench.logs(task_id) == logs


@pytest.mark.parametrize("status", [*ENDS, Status.PENDING])
async def test_an_attempt_that_is_not_the_one_that_runs_writes_nothing(bench: Bench, status: Status) -> None:
    task = await bench.running()
    await bench.finish(task, Status.PENDING)
    assert (await bench.claim(task.task_id)).attempt == 2
    for attempt in (0, 1, 3):
        ending = outcome(task, status, attempt=attempt, result_json="1", details="d", progress_json="{}")
        await _untouched(bench, task.task_id, ending)


@pytest.mark.parametrize("status", ENDS)
async def test_a_task_that_does_not_run_cannot_end(bench: Bench, status: Status) -> None:
    task = await bench.running()
    waiting = await bench.get(await bench.create())
    await _untouched(bench, waiting.task_id, outcome(waiting, status))
    await bench.finish(task, Status.PENDING)
    await _untouched(bench, task.task_id, outcome(task, status))


@pytest.mark.parametrize("first", ENDS)
async def test_a_second_and_different_end_writes_nothing(bench: Bench, first: Status) -> None:
    for second in [status for status in ENDS if status is not first]:
        task = await bench.running()
        await bench.finish(task, first, result_json="1")
        row, logs = await bench.get(task.task_id), await bench.logs(task.task_id)
        verdict = await bench.finish(task, second, result_json="2")
        # Whoever hears CANCELLED knows that its own outcome does not count.
        assert verdict is (Status.CANCELLED if first is Status.CANCELLED else None)
        assert (await bench.get(task.task_id), await bench.logs(task.task_id)) == (row, logs)


async def test_an_end_after_recovery_writes_nothing(bench: Bench) -> None:
    task = await bench.running()
    await bench.lose()
    await bench.store.recover(1)
    await _untouched(bench, task.task_id, outcome(task, Status.SUCCESS, result_json="1"))
    await bench.advance(60)
    await bench.claim(task.task_id)
    await _untouched(bench, task.task_id, outcome(task, Status.SUCCESS, result_json="1"))


async def test_an_end_from_before_a_users_retry_writes_nothing(bench: Bench) -> None:
    task = await bench.ended(Status.FAILED)
    await bench.store.reopen([task.task_id])
    await _untouched(bench, task.task_id, outcome(task, Status.FAILED))


async def test_the_end_of_an_unknown_task_is_stale(bench: Bench) -> None:
    ending = Outcome(task_id="unknown", attempt=1, status=Status.SUCCESS, message="")
    assert await bench.store.finish(await bench.lease(), [ending]) == [Finished(None)]


# the same end again

SAME: dict[str, dict[str, Any]] = {
    "success": {"status": Status.SUCCESS, "result_json": "1"},
    "failed": {"status": Status.FAILED, "error_json": "{}", "details": "d"},
    "timeout": {"status": Status.TIMEOUT},
    "cancelled": {"status": Status.CANCELLED},
    "retry": {"status": Status.FAILED, "retry_in": 7.0, "details": "d"},
    "retry after timeout": {"status": Status.TIMEOUT, "retry_in": 0.0},
    "released": {"status": Status.PENDING},
}


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME)
async def test_finishing_twice_answers_like_the_first(bench: Bench, fields: dict[str, Any]) -> None:
    task = await bench.running()
    lease, ending = await bench.lease(), outcome(task, **fields)
    first = await bench.store.finish(lease, [ending])
    row, logs = await bench.get(task.task_id), await bench.logs(task.task_id)
    assert first[0].status is row.status
    (again,) = await bench.store.finish(lease, [ending])
    assert again.status is first[0].status
    assert again.due_in == pytest.approx(first[0].due_in, abs=1), "some of the time has passed"
    assert await bench.get(task.task_id) == row
    assert await bench.logs(task.task_id) == logs


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME)
async def test_finishing_twice_in_one_call_is_one_finish(bench: Bench, fields: dict[str, Any]) -> None:
    task = await bench.running()
    ending = outcome(task, **fields)
    first, second = await bench.store.finish(await bench.lease(), [ending, ending])
    assert first.status is second.status is await bench.status(task.task_id)
    after = await bench.get(task.task_id)
    assert after.retry_count + after.releases <= 1
    steps = await bench.steps(task.task_id)
    assert len(steps) == (4 if "retry_in" in fields else 3)
    assert sum(row.log_type == "ERROR" for row in await bench.logs(task.task_id)) == ("details" in fields)


async def test_a_replay_behind_a_cancel_hears_of_the_cancel(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, retry_in=7.0)
    await bench.store.cancel([task.task_id])
    assert await bench.finish(task, Status.FAILED, retry_in=7.0) is Status.CANCELLED


# batches


async def test_verdicts_of_a_batch_come_in_the_order_asked(bench: Bench) -> None:
    tasks = [await bench.running() for _ in range(5)]
    await bench.store.cancel([tasks[3].task_id])
    endings = [
        outcome(tasks[4], Status.SUCCESS),
        outcome(tasks[0], Status.FAILED, attempt=9),
        outcome(tasks[1], Status.TIMEOUT, retry_in=3.0),
        outcome(tasks[3], Status.SUCCESS),
        Outcome(task_id="unknown", attempt=1, status=Status.SUCCESS, message=""),
        outcome(tasks[2], Status.PENDING),
    ]
    assert await bench.store.finish(await bench.lease(), endings) == [
        Finished(Status.SUCCESS),
        Finished(None),
        Finished(Status.PENDING, 3.0),
        Finished(Status.CANCELLED),
        Finished(None),
        Finished(Status.PENDING),
    ]
    assert await bench.status(tasks[0].task_id) is Status.PROCESSING


async def test_an_empty_batch_finishes_nothing(bench: Bench) -> None:
    assert await bench.store.finish(await bench.lease(), []) == []


async def test_many_ends_at_once_each_count_once(bench: Bench) -> None:
    tasks = [await bench.running() for _ in range(12)]
    verdicts: list[Status | None] = []

    async def finish(number: int, status: Status) -> None:
        verdicts.append(await bench.finish(tasks[number], status, result_json=f'"{status}"'))

    async with trio.open_nursery() as nursery:
        for number in range(len(tasks)):
            for status in (Status.SUCCESS, Status.FAILED, Status.TIMEOUT):
                nursery.start_soon(finish, number, status)
    assert sum(verdict is not None for verdict in verdicts) == len(tasks)
    for task in tasks:
        after = await bench.get(task.task_id)
        assert after.result_json == f'"{after.status}"', "the result is of the end that counted"
        assert len(await bench.steps(task.task_id)) == 3
