"""Notes of a running task: log rows and progress, for the attempt that runs and no other."""

from __future__ import annotations

import pytest
import trio

from atm.store import Note
from atm.task import LogType, Status, Task
from contracts.bench import Bench


def _note(task: Task, message: str | None = "hello", **fields: object) -> Note:
    known: dict[str, object] = {"attempt": task.attempt, "worker_id": "worker-1", **fields}
    return Note(task_id=task.task_id, message=message, **known)  # type: ignore[arg-type]


async def test_a_note_is_a_row_of_the_log_without_states(bench: Bench) -> None:
    task = await bench.running()
    await bench.store.note([_note(task, "a\0b é"), _note(task, "bad", log_type=LogType.ERROR)])
    info, error = (await bench.logs(task.task_id))[-2:]
    assert (info.log_type, info.message, info.worker_id, info.attempt) == ("INFO", "a\0b é", "worker-1", 1)
    assert (error.log_type, error.message) == ("ERROR", "bad")
    assert info.from_status is info.to_status is error.from_status is error.to_status is None
    assert await bench.get(task.task_id) == task


async def test_progress_alone_writes_no_row(bench: Bench) -> None:
    task = await bench.running()
    before = await bench.logs(task.task_id)
    await bench.store.note([_note(task, None, progress_json='{"fraction":0.50}')])
    assert (await bench.get(task.task_id)).progress_json == '{"fraction":0.50}'
    assert await bench.logs(task.task_id) == before


async def test_the_last_progress_of_a_batch_stays(bench: Bench) -> None:
    one, other = await bench.running(), await bench.running()
    notes = [_note(one, "first", progress_json="1"), _note(other, None, progress_json="7"), _note(one, None)]
    await bench.store.note([*notes, _note(one, "second", progress_json="2"), _note(one, "third")])
    assert (await bench.get(one.task_id)).progress_json == "2"
    assert (await bench.get(other.task_id)).progress_json == "7"
    assert [row.message for row in (await bench.logs(one.task_id))[2:]] == ["first", "second", "third"]


async def test_an_error_that_is_noted_stands_in_the_row_until_the_attempt_has_ended(bench: Bench) -> None:
    one, other = await bench.running(), await bench.running()
    await bench.store.note(
        [_note(one, "stuck", error_json='{"type":"Stuck"}'), _note(other, None, progress_json="1")]
    )
    await bench.store.note([_note(one, None, progress_json="2"), _note(one, "more")])
    noted = await bench.get(one.task_id)
    assert (noted.status, noted.error_json, noted.progress_json) == (Status.PROCESSING, '{"type":"Stuck"}', "2")
    assert (await bench.get(other.task_id)).error_json is None
    await bench.finish(one, Status.SUCCESS)
    assert (await bench.get(one.task_id)).error_json is None


async def test_notes_are_taken_while_a_cancel_is_asked_for(bench: Bench) -> None:
    task = await bench.running()
    await bench.store.cancel([task.task_id])
    await bench.store.note([_note(task, "cleaning up")])
    assert (await bench.logs(task.task_id))[-1].message == "cleaning up"


@pytest.mark.parametrize("attempt", [0, 1, 3])
async def test_notes_of_another_attempt_are_dropped(bench: Bench, attempt: int) -> None:
    task = await bench.running()
    await bench.finish(task, Status.PENDING)
    task = await bench.claim(task.task_id)
    logs = await bench.logs(task.task_id)
    await bench.store.note([_note(task, attempt=attempt, progress_json="1")])
    assert await bench.get(task.task_id) == task
    assert await bench.logs(task.task_id) == logs


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILED, Status.TIMEOUT, Status.CANCELLED])
async def test_notes_behind_the_end_are_dropped(bench: Bench, status: Status) -> None:
    task = await bench.ended(status)
    logs = await bench.logs(task.task_id)
    await bench.store.note([_note(task, progress_json="1")])
    assert (await bench.get(task.task_id), await bench.logs(task.task_id)) == (task, logs)


async def test_notes_of_a_task_that_was_released_or_is_unknown_are_dropped(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.PENDING)
    row, logs = await bench.get(task.task_id), await bench.logs(task.task_id)
    await bench.store.note([_note(task, progress_json="1"), Note("unknown", 1, "worker-1", "m")])
    assert (await bench.get(task.task_id), await bench.logs(task.task_id)) == (row, logs)
    assert await bench.store.logs("unknown") is None


async def test_no_notes_are_no_error(bench: Bench) -> None:
    await bench.store.note([])


async def test_rows_of_the_log_stay_in_the_order_of_the_calls(bench: Bench) -> None:
    tasks = [await bench.running() for _ in range(5)]

    async def talk(task: Task) -> None:
        for number in range(8):
            await bench.store.note([_note(task, f"{number}a"), _note(task, f"{number}b")])

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(talk, task)
    for task in tasks:
        rows = await bench.logs(task.task_id)
        assert [row.message for row in rows[2:]] == [f"{number}{half}" for number in range(8) for half in "ab"]
        assert [row.log_id for row in rows] == sorted({row.log_id for row in rows})
