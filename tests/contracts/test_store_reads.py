"""Reads: one task, its log, lists with filters and keyset paging, settings, the clock; and purge."""

from __future__ import annotations

import msgspec
import pytest
import trio
from msgspec.structs import replace

from atm.errors import StoreError
from atm.store import TaskFilter
from atm.task import RetryStrategy, Status, Task, TaskType
from contracts.bench import Bench, failure_of


async def _ids(bench: Bench, before: str | None = None, limit: int = 500, **where: object) -> list[str]:
    found = await bench.store.find(TaskFilter(**where), before, limit)  # type: ignore[arg-type]
    return [task.task_id for task in found]


def _newest_first(tasks: list[Task]) -> list[str]:
    return sorted((task.task_id for task in tasks), reverse=True)


async def test_the_store_answers(bench: Bench) -> None:
    await bench.store.ping()


async def test_an_unknown_task_is_none(bench: Bench) -> None:
    assert await bench.store.get("unknown") is None
    assert await bench.store.logs("unknown") is None


async def test_whether_a_moment_is_still_to_come_is_the_stores_to_say(bench: Bench) -> None:
    task = await bench.get(await bench.create(delay=100))
    assert await bench.store.is_early(task.due_ms)
    assert not await bench.store.is_early(task.created_ms)
    await bench.advance(101)
    assert not await bench.store.is_early(task.due_ms)


async def test_a_log_tells_the_whole_story_in_order(bench: Bench) -> None:
    task = await bench.running()
    await bench.advance(1)
    await bench.finish(task, Status.FAILED, retry_in=0, details="d")
    await bench.advance(1)
    await bench.finish(await bench.claim(task.task_id), Status.SUCCESS)
    rows = await bench.logs(task.task_id)
    types = [row.log_type for row in rows]
    assert types == ["STATE_CHANGE"] * 2 + ["ERROR", "STATE_CHANGE", "RETRY", "STATE_CHANGE", "STATE_CHANGE"]
    assert [row.attempt for row in rows] == [None, 1, 1, 1, 1, 2, 2]
    assert [row.log_id for row in rows] == sorted({row.log_id for row in rows})
    times = [row.created_ms for row in rows]
    assert times == sorted(times)
    assert times[-1] >= times[0] + 2000


async def test_logs_of_different_tasks_do_not_mix(bench: Bench) -> None:
    one, other = await bench.create_many(2)
    await bench.store.cancel([one])
    assert [len(await bench.logs(task_id)) for task_id in (one, other)] == [2, 1]


# find


async def test_tasks_are_found_newest_first_with_all_fields(bench: Bench) -> None:
    tasks = [await bench.ended(status) for status in (Status.SUCCESS, Status.FAILED, Status.CANCELLED)]
    tasks.append(await bench.running(payload_json='{"a":1.50}'))
    tasks.append(await bench.get(await bench.create()))
    found = await bench.store.find(TaskFilter(), None, 500)
    assert found == tasks[::-1]


async def _one_of_each(bench: Bench) -> dict[Status, Task]:
    made = {status: await bench.ended(status) for status in Status if status not in ("PENDING", "PROCESSING")}
    made[Status.PROCESSING] = await bench.running()
    made[Status.PENDING] = await bench.get(await bench.create())
    return made


@pytest.mark.parametrize("status", list(Status))
async def test_a_list_by_status_has_those_and_no_others(bench: Bench, status: Status) -> None:
    made = await _one_of_each(bench)
    assert await _ids(bench, status=status) == [made[status].task_id]
    assert await _ids(bench, status=status, task_type="echo") == [made[status].task_id]
    assert await _ids(bench, status=status, task_type="other") == []


async def test_a_list_by_type_or_worker_has_those_and_no_others(bench: Bench) -> None:
    mine, others = await bench.running(), await bench.running(task_type="other")
    far = await bench.claim(await bench.create(), "worker-2")
    waiting = await bench.get(await bench.create())
    assert await _ids(bench, task_type="echo") == _newest_first([mine, far, waiting])
    assert await _ids(bench, task_type="other") == [others.task_id]
    assert await _ids(bench, task_type="unknown") == []
    assert await _ids(bench, worker_id="worker-1") == _newest_first([mine, others])
    assert await _ids(bench, worker_id="worker-2", task_type="echo") == [far.task_id]


async def test_a_list_by_time_includes_its_beginning_but_not_its_end(bench: Bench) -> None:
    tasks: list[Task] = []
    for _ in range(4):
        tasks.append(await bench.get(await bench.create()))
        await bench.advance(10)
    first, second, third, _ = tasks
    assert await _ids(bench, created_after=second.created_ms) == _newest_first(tasks[1:])
    assert await _ids(bench, created_after=second.created_ms + 1) == _newest_first(tasks[2:])
    assert await _ids(bench, created_before=third.created_ms) == _newest_first(tasks[:2])
    between = await _ids(bench, created_after=first.created_ms, created_before=third.created_ms + 1)
    assert between == _newest_first(tasks[:3])


FILTERS = {
    "all": TaskFilter(),
    "pending": TaskFilter(status=Status.PENDING),
    "running": TaskFilter(status=Status.PROCESSING),
    "failed": TaskFilter(status=Status.FAILED),
    "succeeded of a type": TaskFilter(status=Status.SUCCESS, task_type="echo"),
    "of a type": TaskFilter(task_type="other"),
    "of a worker since": TaskFilter(worker_id="worker-1", created_after=0),
}


@pytest.mark.parametrize("where", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_pages_put_together_are_the_whole_list(bench: Bench, where: TaskFilter, limit: int) -> None:
    for number in range(4):
        task_type = "other" if number % 2 else "echo"
        await bench.ended(Status.SUCCESS, task_type=task_type)
        await bench.ended(Status.FAILED, task_type=task_type)
        await bench.running(task_type=task_type)
        await bench.create(task_type=task_type)
    whole = await bench.store.find(where, None, 500)
    assert len(whole) >= 2
    pages: list[Task] = []
    while page := await bench.store.find(where, pages[-1].task_id if pages else None, limit):
        assert len(page) <= limit
        pages += page
    assert pages == whole


async def test_a_task_created_between_two_pages_shifts_none_of_them(bench: Bench) -> None:
    ids = sorted(await bench.create_many(6), reverse=True)
    first = await _ids(bench, limit=3)
    await bench.create_many(3)
    assert first + await _ids(bench, before=first[-1], limit=3) == ids


async def test_running_counts_one_types_running_tasks(bench: Bench) -> None:
    await bench.running(task_type="a")
    await bench.running(task_type="a")
    await bench.running(task_type="a ")
    await bench.ended(Status.SUCCESS, task_type="a")
    await bench.create(task_type="a")
    assert [await bench.store.running(name) for name in ("a", "a ", "A")] == [2, 1, 0]


@pytest.mark.parametrize("bad", ["\ud800", "a\ud800b"])
async def test_a_read_with_a_text_that_is_none_fails_alone(bench: Bench, bad: str) -> None:
    task_id = await bench.create()
    for verb in (
        bench.store.get(bad),
        bench.store.logs(bad),
        bench.store.running(bad),
        _ids(bench, task_type=bad),
    ):
        error = await failure_of(verb)
        assert error is not None
        assert not isinstance(error, StoreError), "it is the caller's error, not the store's"
    assert await bench.store.get(task_id) is not None
    assert await _ids(bench) == [task_id]


# settings of types


async def test_nothing_is_configured_at_first(bench: Bench) -> None:
    await bench.create()
    assert await bench.store.task_types() == {}


async def test_settings_are_kept_whole_and_changed_field_by_field(bench: Bench) -> None:
    first = TaskType(
        task_type="a",
        default_timeout=0.5,
        default_max_retry=0,
        retry_strategy=RetryStrategy.FIXED,
        retry_delay=12.25,
        backoff_rate=1.5,
        max_concurrent=3,
        enabled=False,
    )
    fields = {name: value for name, value in msgspec.structs.asdict(first).items() if name != "task_type"}
    assert await bench.configure("a", **fields) == first
    assert await bench.store.task_types() == {"a": first}
    second = replace(first, max_concurrent=None, enabled=True)
    assert await bench.configure("a", max_concurrent=None, enabled=True) == second
    assert await bench.configure("A") == TaskType(task_type="A"), "nothing changed, all as by default"
    assert await bench.store.task_types() == {"a": second, "A": TaskType(task_type="A")}


async def test_changes_at_once_do_not_undo_each_other(bench: Bench) -> None:
    changes: list[dict[str, object]] = [
        {"default_timeout": 1.5},
        {"default_max_retry": 7},
        {"retry_strategy": "FIXED"},
        {"retry_delay": 2.5},
        {"backoff_rate": 3.5},
        {"max_concurrent": 4},
        {"enabled": False},
    ]
    async with trio.open_nursery() as nursery:
        for change in changes:
            nursery.start_soon(bench.store.change_task_type, "a", change)
    assert await bench.store.task_types() == {
        "a": TaskType(
            task_type="a",
            default_timeout=1.5,
            default_max_retry=7,
            retry_strategy=RetryStrategy.FIXED,
            retry_delay=2.5,
            backoff_rate=3.5,
            max_concurrent=4,
            enabled=False,
        )
    }


# purge


async def test_only_what_ended_long_ago_is_removed(bench: Bench) -> None:
    old = await _one_of_each(bench)
    await bench.advance(1000)
    fresh = await _one_of_each(bench)
    assert await bench.store.purge(500, 100) == 4
    left = [*fresh.values(), old[Status.PENDING], old[Status.PROCESSING]]
    assert await _ids(bench) == _newest_first(left)
    for status in (Status.SUCCESS, Status.FAILED, Status.TIMEOUT, Status.CANCELLED):
        assert await bench.store.logs(old[status].task_id) is None, "its log is gone with it"
    for task in left:
        assert await bench.steps(task.task_id)
    assert await bench.store.purge(500, 100) == 0


async def test_the_age_of_an_ended_task_counts_from_its_end(bench: Bench) -> None:
    task = await bench.running()
    await bench.advance(1000)
    await bench.finish(task, Status.SUCCESS)
    await bench.advance(490)
    assert await bench.store.purge(500, 100) == 0
    await bench.advance(11)
    assert await bench.store.purge(500, 100) == 1


async def test_a_task_that_was_opened_again_is_kept(bench: Bench) -> None:
    task = await bench.ended(Status.FAILED)
    await bench.store.reopen([task.task_id])
    await bench.advance(1000)
    assert await bench.store.purge(1, 100) == 0
    await bench.finish(await bench.claim(task.task_id), Status.SUCCESS)
    await bench.advance(1000)
    assert await bench.store.purge(1, 100) == 1
    assert await bench.store.logs(task.task_id) is None


async def test_a_purge_goes_in_slices_oldest_first(bench: Bench) -> None:
    ended: list[str] = []
    for _ in range(5):
        ended.append((await bench.ended(Status.SUCCESS)).task_id)
        await bench.advance(10)
    await bench.advance(1000)
    left: list[int] = []
    while (removed := await bench.store.purge(1, 2)) == 2:
        left.append(len(await _ids(bench)))
        assert set(await _ids(bench)) == set(ended[5 - left[-1] :])
    assert (left, removed) == ([3, 1], 1)


async def test_two_purges_at_once_remove_each_task_once(bench: Bench) -> None:
    for _ in range(6):
        await bench.ended(Status.SUCCESS)
    await bench.advance(1000)
    removed: list[int] = []

    async def purge(limit: int) -> None:
        removed.append(await bench.store.purge(1, limit))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(purge, 2)
        nursery.start_soon(purge, 3)
    assert sorted(removed) == [2, 3]
    assert len(await _ids(bench)) == 1
