"""PENDING → PROCESSING: who gets a task, who does not and why; the fencing token."""

from __future__ import annotations

import trio

from atm.store import Claimed, Refusal, Refused
from atm.task import RetryStrategy, Status, TaskType
from contracts.bench import Bench


async def test_a_claimed_task_runs_for_its_claimer(bench: Bench) -> None:
    task_id = await bench.create(payload_json='{"a":1}', timeout=5)
    task = await bench.claim(task_id)
    assert (task.status, task.attempt, task.worker_id) == (Status.PROCESSING, 1, "worker-1")
    assert task.started_ms is not None
    assert task.started_ms >= task.created_ms
    assert await bench.get(task_id) == task, "the verdict is the row"


async def test_a_claim_is_logged_with_worker_and_attempt(bench: Bench) -> None:
    task = await bench.running()
    row = (await bench.logs(task.task_id))[-1]
    assert (row.log_type, row.from_status, row.to_status) == ("STATE_CHANGE", Status.PENDING, Status.PROCESSING)
    assert (row.message, row.worker_id, row.attempt) == ("Task assigned to worker", "worker-1", 1)
    assert row.created_ms == task.started_ms


async def test_a_claim_brings_the_settings_of_the_type(bench: Bench) -> None:
    settings = TaskType(task_type="echo", retry_strategy=RetryStrategy.FIXED, retry_delay=7, backoff_rate=3)
    await bench.configure("echo", retry_strategy=RetryStrategy.FIXED, retry_delay=7, backoff_rate=3)
    (verdict,) = await bench.store.claim(await bench.lease(), [await bench.create()])
    assert isinstance(verdict, Claimed)
    assert verdict.settings == settings


async def test_a_type_nobody_configured_brings_the_defaults(bench: Bench) -> None:
    (verdict,) = await bench.store.claim(await bench.lease(), [await bench.create()])
    assert isinstance(verdict, Claimed)
    assert verdict.settings == TaskType(task_type=verdict.settings.task_type)


async def test_what_is_not_pending_is_gone(bench: Bench) -> None:
    running = (await bench.running()).task_id
    ends = [(await bench.ended(status)).task_id for status in (Status.SUCCESS, Status.FAILED, Status.CANCELLED)]
    assert await bench.claims(["unknown", running, *ends]) == ["gone"] * 5
    assert (await bench.get(running)).attempt == 1


async def test_a_task_whose_time_has_not_come_says_how_long(bench: Bench) -> None:
    task_id = await bench.create(delay=100)
    (verdict,) = await bench.store.claim(await bench.lease(), [task_id])
    assert isinstance(verdict, Refused)
    assert verdict.reason is Refusal.NOT_DUE
    assert 0 < verdict.due_in <= 100
    assert await bench.steps(task_id) == ["None PENDING"]
    await bench.advance(50)
    assert await bench.claims([task_id]) == ["not_due"]
    await bench.advance(51)
    assert await bench.claims([task_id]) == ["claimed"]


async def test_verdicts_come_row_by_row_in_the_order_asked(bench: Bench) -> None:
    await bench.configure("off", enabled=False)
    one, two = await bench.create_many(2)
    off, later = await bench.create(task_type="off"), await bench.create(delay=9)
    verdicts = await bench.claims([two, "unknown", later, off, one, two])
    assert verdicts == ["claimed", "gone", "not_due", "blocked", "claimed", "gone"]


async def test_a_task_asked_for_twice_in_a_call_is_claimed_once(bench: Bench) -> None:
    task_id = await bench.create()
    assert await bench.claims([task_id, task_id]) == ["claimed", "gone"]
    assert await bench.steps(task_id) == ["None PENDING", "PENDING PROCESSING"]


async def test_a_refusal_is_repeated_for_a_repeated_id(bench: Bench) -> None:
    await bench.configure("off", enabled=False)
    off, later = await bench.create(task_type="off"), await bench.create(delay=9)
    verdicts = await bench.claims([off, later, off, later])
    assert verdicts == ["blocked", "not_due", "blocked", "not_due"], "neither is gone"


async def test_a_large_claim_takes_all(bench: Bench) -> None:
    task_ids = await bench.create_many(700)
    task_ids.reverse()
    verdicts = await bench.store.claim(await bench.lease(), task_ids)
    assert [v.task.task_id for v in verdicts if isinstance(v, Claimed)] == task_ids
    assert await bench.store.running("echo") == 700


async def test_an_empty_claim_claims_nothing(bench: Bench) -> None:
    assert await bench.store.claim(await bench.lease(), []) == []


# caps


async def test_a_cap_holds_within_a_call_and_across_calls(bench: Bench) -> None:
    await bench.configure("echo", max_concurrent=2)
    task_ids = await bench.create_many(4)
    assert await bench.claims(task_ids[:3]) == ["claimed", "claimed", "blocked"]
    assert await bench.claims(task_ids[2:], "worker-2") == ["blocked", "blocked"]
    assert await bench.store.running("echo") == 2
    assert await bench.steps(task_ids[3]) == ["None PENDING"]


async def test_a_cap_holds_up_no_other_type(bench: Bench) -> None:
    await bench.configure("echo", max_concurrent=1)
    task_ids = [*await bench.create_many(2), *await bench.create_many(2, task_type="other")]
    assert await bench.claims(task_ids) == ["claimed", "blocked", "claimed", "claimed"]


async def test_every_end_of_an_attempt_makes_room(bench: Bench) -> None:
    await bench.configure("echo", max_concurrent=1)
    waiting = await bench.create()
    for status in (Status.SUCCESS, Status.FAILED, Status.TIMEOUT, Status.CANCELLED, Status.PENDING):
        task = await bench.running()
        assert await bench.claims([waiting]) == ["blocked"]
        await bench.finish(task, status)
    assert await bench.store.running("echo") == 0
    assert await bench.claims([waiting]) == ["claimed"]


async def test_a_lost_worker_makes_room(bench: Bench) -> None:
    await bench.configure("echo", max_concurrent=1)
    await bench.running()
    await bench.lose()
    assert len(await bench.store.recover(10)) == 1
    assert await bench.claims([await bench.create()], "worker-2") == ["claimed"]


async def test_refused_tasks_take_no_room(bench: Bench) -> None:
    await bench.configure("echo", max_concurrent=1)
    task_ids = [await bench.create(delay=60), await bench.create()]
    assert await bench.claims([*task_ids, "unknown"]) == ["not_due", "claimed", "gone"]


async def test_a_disabled_type_waits_until_it_is_enabled(bench: Bench) -> None:
    await bench.configure("echo", enabled=False, max_concurrent=5)
    task_id = await bench.create()
    assert await bench.claims([task_id]) == ["blocked"]
    await bench.configure("echo", enabled=True)
    assert await bench.claims([task_id]) == ["claimed"]


async def test_a_cap_below_what_runs_stops_nothing_and_admits_nothing(bench: Bench) -> None:
    task_ids = await bench.create_many(4)
    assert await bench.claims(task_ids[:3]) == ["claimed"] * 3
    await bench.configure("echo", max_concurrent=1)
    assert await bench.claims([task_ids[3]]) == ["blocked"]
    assert await bench.store.running("echo") == 3


# the fencing token


async def test_the_attempt_number_is_never_reset(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, retry_in=0)
    task = await bench.claim(task.task_id)
    assert task.attempt == 2
    await bench.finish(task, Status.PENDING)
    task = await bench.claim(task.task_id)
    assert task.attempt == 3
    await bench.lose()
    await bench.store.recover(1)
    await bench.advance(60)
    task = await bench.claim(task.task_id)
    assert task.attempt == 4
    await bench.finish(task, Status.FAILED)
    await bench.store.reopen([task.task_id])
    task = await bench.claim(task.task_id)
    assert task.attempt == 5
    assert (task.retry_count, task.releases, task.recoveries) == (0, 0, 0)


async def test_progress_begins_anew_with_each_attempt(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, retry_in=0, progress_json='{"fraction":0.5}')
    assert (await bench.get(task.task_id)).progress_json == '{"fraction":0.5}'
    await bench.claim(task.task_id)
    assert (await bench.get(task.task_id)).progress_json is None


# many at once


async def test_of_many_claimers_one_gets_each_task(bench: Bench) -> None:
    task_ids = await bench.create_many(40)
    got: list[str] = []

    async def claim(worker_id: str, order: list[str]) -> None:
        lease = await bench.lease(worker_id)
        for at in range(0, len(order), 8):
            verdicts = await bench.store.claim(lease, order[at : at + 8])
            got.extend(v.task.task_id for v in verdicts if isinstance(v, Claimed))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(claim, f"worker-{number}", task_ids[number:] + task_ids[:number])
    assert sorted(got) == sorted(task_ids)
    for task_id in task_ids:
        assert await bench.steps(task_id) == ["None PENDING", "PENDING PROCESSING"]


async def test_many_claimers_never_exceed_a_cap(bench: Bench) -> None:
    await bench.configure("echo", max_concurrent=3)
    task_ids = await bench.create_many(20)
    verdicts: list[str] = []

    async def claim(worker_id: str, task_id: str) -> None:
        verdicts.extend(await bench.claims([task_id], worker_id))

    async with trio.open_nursery() as nursery:
        for number, task_id in enumerate(task_ids):
            nursery.start_soon(claim, f"worker-{number % 4}", task_id)
    assert sorted(verdicts) == ["blocked"] * 17 + ["claimed"] * 3
    assert await bench.store.running("echo") == 3
