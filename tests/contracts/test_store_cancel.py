"""Cancel: a waiting task at once, a running one by its worker; once asked for it outlives everything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from atm.store import CancelState, CancelVerdict
from atm.task import Status, Task
from contracts.bench import Bench


async def test_a_waiting_task_is_cancelled_at_once(bench: Bench) -> None:
    task_id = await bench.create(priority=-1)
    (verdict,) = await bench.store.cancel([task_id])
    told = {"task_type": "echo", "priority": -1}
    assert verdict == CancelVerdict(CancelState.CANCELLED, Status.CANCELLED, changed=True, **told)
    task = await bench.get(task_id)
    assert task.status is Status.CANCELLED
    assert task.completed_ms == task.cancel_requested_ms is not None
    assert await bench.steps(task_id) == ["None PENDING", "PENDING CANCELLED"]
    row = (await bench.logs(task_id))[-1]
    assert (row.log_type, row.message) == ("STATE_CHANGE", "Task cancelled")
    assert await bench.claims([task_id]) == ["gone"]


async def test_a_delayed_task_is_cancelled_at_once(bench: Bench) -> None:
    task_id = await bench.create(delay=100)
    assert (await bench.store.cancel([task_id]))[0].changed
    await bench.advance(200)
    assert await bench.claims([task_id]) == ["gone"]


async def test_a_task_between_two_attempts_is_cancelled_with_its_error_kept(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, retry_in=50, error_json='{"message":"m"}')
    assert (await bench.store.cancel([task.task_id]))[0].state is CancelState.CANCELLED
    after = await bench.get(task.task_id)
    assert (after.status, after.error_json, after.retry_count) == (Status.CANCELLED, '{"message":"m"}', 1)


async def test_a_running_task_is_marked_for_its_worker_to_end(bench: Bench) -> None:
    task = await bench.running()
    (verdict,) = await bench.store.cancel([task.task_id])
    assert verdict == CancelVerdict(CancelState.REQUESTED, Status.PROCESSING, "worker-1", 1, changed=True)
    after = await bench.get(task.task_id)
    assert (after.status, after.attempt, after.completed_ms) == (Status.PROCESSING, 1, None)
    assert after.cancel_requested_ms is not None
    row = (await bench.logs(task.task_id))[-1]
    assert (row.log_type, row.from_status, row.to_status) == ("INFO", None, None)
    assert (row.message, row.worker_id, row.attempt) == ("Cancellation requested", "worker-1", 1)


async def test_asked_again_the_mark_stays_as_it_was(bench: Bench) -> None:
    task = await bench.running()
    await bench.store.cancel([task.task_id])
    row, logs = await bench.get(task.task_id), await bench.logs(task.task_id)
    await bench.advance(5)
    (verdict,) = await bench.store.cancel([task.task_id])
    assert verdict == CancelVerdict(CancelState.REQUESTED, Status.PROCESSING, "worker-1", 1, changed=False)
    assert (await bench.get(task.task_id), await bench.logs(task.task_id)) == (row, logs)


async def test_a_cancelled_task_answers_the_same_again(bench: Bench) -> None:
    waiting = await bench.create()
    await bench.store.cancel([waiting])
    ran = await bench.ended(Status.CANCELLED)
    row, logs = await bench.get(waiting), await bench.logs(waiting)
    await bench.advance(5)
    verdicts = await bench.store.cancel([waiting, ran.task_id])
    assert verdicts == [CancelVerdict(CancelState.CANCELLED, Status.CANCELLED)] * 2
    assert (await bench.get(waiting), await bench.logs(waiting)) == (row, logs)


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILED, Status.TIMEOUT])
async def test_an_ended_task_cannot_be_cancelled(bench: Bench, status: Status) -> None:
    task = await bench.ended(status)
    assert await bench.store.cancel([task.task_id]) == [CancelVerdict(CancelState.TERMINAL, status)]
    assert await bench.get(task.task_id) == task


async def test_an_unknown_task_cannot_be_cancelled(bench: Bench) -> None:
    assert await bench.store.cancel(["unknown"]) == [CancelVerdict(CancelState.UNKNOWN)]


async def test_verdicts_come_in_the_order_asked_and_a_repetition_changes_nothing(bench: Bench) -> None:
    running, waiting = await bench.running(), await bench.create()
    done = await bench.ended(Status.SUCCESS)
    asked = [waiting, "unknown", running.task_id, done.task_id, waiting, running.task_id]
    verdicts = await bench.store.cancel(asked)
    assert [(verdict.state, verdict.changed) for verdict in verdicts] == [
        (CancelState.CANCELLED, True),
        (CancelState.UNKNOWN, False),
        (CancelState.REQUESTED, True),
        (CancelState.TERMINAL, False),
        (CancelState.CANCELLED, False),
        (CancelState.REQUESTED, False),
    ]
    assert len(await bench.logs(waiting)) == 2
    assert len(await bench.logs(running.task_id)) == 3


async def test_an_empty_cancel_cancels_nothing(bench: Bench) -> None:
    assert await bench.store.cancel([]) == []


# cancel outlives everything


async def _recover(bench: Bench, task: Task) -> Status | None:
    await bench.lose()
    (recovered,) = await bench.store.recover(10)
    assert recovered.task_id == task.task_id
    return recovered.status


AFTERWARDS: dict[str, Callable[[Bench, Task], Awaitable[Status | None]]] = {
    "success": lambda b, t: b.finish(t, Status.SUCCESS, result_json="1"),
    "failed": lambda b, t: b.finish(t, Status.FAILED),
    "failed with a retry left": lambda b, t: b.finish(t, Status.FAILED, retry_in=0.0),
    "timeout": lambda b, t: b.finish(t, Status.TIMEOUT),
    "timeout with a retry left": lambda b, t: b.finish(t, Status.TIMEOUT, retry_in=0.0),
    "released": lambda b, t: b.finish(t, Status.PENDING),
    "cancelled": lambda b, t: b.finish(t, Status.CANCELLED),
    "worker lost": _recover,
}


@pytest.mark.parametrize("afterwards", AFTERWARDS.values(), ids=AFTERWARDS)
async def test_once_asked_for_a_cancel_outlives_everything(
    bench: Bench, afterwards: Callable[[Bench, Task], Awaitable[Status | None]]
) -> None:
    task = await bench.running()
    await bench.store.cancel([task.task_id])
    assert await afterwards(bench, task) is Status.CANCELLED
    after = await bench.get(task.task_id)
    assert (after.status, after.result_json) == (Status.CANCELLED, None)
    assert (after.retry_count, after.releases, after.recoveries) == (0, 0, 0)
    assert after.completed_ms is not None
    assert after.cancel_requested_ms is not None
    steps = await bench.steps(task.task_id)
    assert steps == ["None PENDING", "PENDING PROCESSING", "PROCESSING CANCELLED"]
    assert await bench.claims([task.task_id]) == ["gone"]


async def test_a_cancel_of_poison_is_a_cancel(bench: Bench) -> None:
    task = await bench.running()
    for _ in range(3):
        await _recover(bench, task)
        await bench.advance(60)
        await bench.claim(task.task_id)
    await bench.store.cancel([task.task_id])
    assert await _recover(bench, task) is Status.CANCELLED


async def test_details_of_a_cancelled_attempt_are_kept_in_the_log(bench: Bench) -> None:
    task = await bench.running()
    await bench.store.cancel([task.task_id])
    await bench.finish(task, Status.FAILED, retry_in=1.0, message="Boom: x", details="Traceback")
    *_, error, change = await bench.logs(task.task_id)
    assert (error.log_type, error.message) == ("ERROR", "Traceback")
    assert change.to_status is Status.CANCELLED
    assert "Boom: x" in change.message


async def test_a_worker_that_ends_a_cancelled_run_gives_the_message(bench: Bench) -> None:
    task = await bench.running()
    await bench.store.cancel([task.task_id])
    await bench.finish(task, Status.CANCELLED, message="Task cancelled")
    assert (await bench.logs(task.task_id))[-1].message == "Task cancelled"


async def test_cancel_against_claim_leaves_one_winner(bench: Bench) -> None:
    task_ids = await bench.create_many(20)
    states: dict[str, CancelState] = {}

    async def cancel(task_id: str) -> None:
        states[task_id] = (await bench.store.cancel([task_id]))[0].state

    async def claim(task_id: str) -> None:
        await bench.claims([task_id])

    async with trio.open_nursery() as nursery:
        for task_id in task_ids:
            nursery.start_soon(cancel, task_id)
            nursery.start_soon(claim, task_id)
    for task_id in task_ids:
        task = await bench.get(task_id)
        assert task.cancel_requested_ms is not None
        expected = Status.CANCELLED if states[task_id] is CancelState.CANCELLED else Status.PROCESSING
        assert task.status is expected
        await bench.steps(task_id)
