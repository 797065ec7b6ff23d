"""Without a coordinator: work found in the store itself, leases that ran out, who leads."""

from __future__ import annotations

import trio

from atm.store import Claimed
from atm.task import Status
from contracts.bench import Bench


async def polled(bench: Bench, *task_types: str, limit: int = 100, worker_id: str = "worker-1") -> list[str]:
    """The ids of what a poll claims."""
    claimed = await bench.store.poll(await bench.lease(worker_id), task_types, limit)
    return [verdict.task.task_id for verdict in claimed]


# poll


async def test_a_poll_claims_as_a_claim_does(bench: Bench) -> None:
    settings = await bench.configure("echo", retry_delay=7)
    task_id = await bench.create(payload_json='{"a":1}')
    (claimed,) = await bench.store.poll(await bench.lease(), ["echo"], 10)
    assert isinstance(claimed, Claimed)
    assert claimed.settings == settings
    assert claimed.task == await bench.get(task_id), "the verdict is the row"
    assert (claimed.task.status, claimed.task.attempt, claimed.task.worker_id) == (
        Status.PROCESSING,
        1,
        "worker-1",
    )
    assert await bench.steps(task_id) == ["None PENDING", "PENDING PROCESSING"]
    assert [held.task_id for held in await bench.store.held(await bench.lease())] == [task_id]


async def test_high_is_polled_before_normal_before_low_and_each_oldest_first(bench: Bench) -> None:
    expected: list[str] = []
    for priority in (-1, 0, 1):
        ids = []
        for _ in range(2):
            ids.append(await bench.create(priority=priority))
            await bench.advance(1)
        expected = [*ids, *expected]
    assert await polled(bench, "echo") == expected


async def test_no_more_are_polled_than_asked_for(bench: Bench) -> None:
    task_ids = await bench.create_many(5)
    assert await polled(bench, "echo", limit=0) == []
    found = [await polled(bench, "echo", limit=2) for _ in range(4)]
    assert [len(part) for part in found] == [2, 2, 1, 0]
    assert sorted(task_id for part in found for task_id in part) == sorted(task_ids)


async def test_only_the_types_asked_for_are_polled(bench: Bench) -> None:
    echo, other = await bench.create(), await bench.create(task_type="other")
    await bench.create(task_type="third")
    assert await polled(bench) == []
    assert sorted(await polled(bench, "echo", "other")) == sorted([echo, other])
    assert await polled(bench, "nobody-knows") == []


async def test_what_is_not_due_or_not_waiting_is_not_polled(bench: Bench) -> None:
    later = await bench.create(delay=100)
    running, ended = await bench.running(), await bench.ended(Status.FAILED)
    assert await polled(bench, "echo") == []
    assert await bench.status(running.task_id) is Status.PROCESSING
    assert await bench.status(ended.task_id) is Status.FAILED
    await bench.advance(101)
    assert await polled(bench, "echo") == [later]


async def test_a_retry_is_polled_at_its_time(bench: Bench) -> None:
    task = await bench.running()
    await bench.finish(task, Status.FAILED, retry_in=30)
    await bench.advance(29)
    assert await polled(bench, "echo") == []
    await bench.advance(2)
    assert await polled(bench, "echo") == [task.task_id]
    assert (await bench.get(task.task_id)).attempt == 2


async def test_a_task_is_polled_though_the_sweep_has_looked_at_it(bench: Bench) -> None:
    task_id = await bench.create()
    for _ in range(8):
        await bench.advance(70)
        assert [waiting.task_id for waiting in await bench.store.sweep([0], 10)] == [task_id]
    assert await polled(bench, "echo") == [task_id]


async def test_a_poll_keeps_to_the_caps_and_they_hold_up_no_other_type(bench: Bench) -> None:
    await bench.configure("echo", max_concurrent=2)
    await bench.configure("off", enabled=False)
    capped = await bench.create_many(4, priority=1)
    await bench.create_many(4, task_type="off", priority=1)
    free = await bench.create_many(3, task_type="free")
    first = await polled(bench, "echo", "off", "free", limit=2)
    assert len(first) == 2
    assert set(first) < set(capped)
    assert sorted(await polled(bench, "echo", "off", "free", limit=3, worker_id="worker-2")) == sorted(free)
    assert await polled(bench, "echo", "off", "free") == []
    assert await bench.store.running("echo") == 2
    await bench.finish(await bench.get(first[0]), Status.SUCCESS)
    assert len(await polled(bench, "echo", "off", "free")) == 1


async def test_a_poll_under_a_lease_that_is_over_gets_nothing(bench: Bench) -> None:
    task_id = await bench.create()
    superseded = await bench.lease()
    await bench.lose()
    assert await bench.store.poll(superseded, ["echo"], 10) == []
    retired = await bench.lease("worker-2")
    await bench.store.retire(retired)
    assert await bench.store.poll(retired, ["echo"], 10) == []
    assert await bench.steps(task_id) == ["None PENDING"]
    assert await polled(bench, "echo") == [task_id]


async def test_of_many_that_poll_one_gets_each_task(bench: Bench) -> None:
    task_ids = await bench.create_many(40)
    found: list[str] = []

    async def poll(worker_id: str) -> None:
        while part := await polled(bench, "echo", limit=3, worker_id=worker_id):
            found.extend(part)

    # What others hold locked is passed over, so that one of them may stop early: nobody is to do so at the end.
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(poll, f"worker-{number}")
    found += await polled(bench, "echo")
    assert sorted(found) == sorted(task_ids)
    assert await bench.store.running("echo") == 40


async def test_polls_and_claims_at_once_share_a_cap(bench: Bench) -> None:
    await bench.configure("echo", max_concurrent=3)
    task_ids = await bench.create_many(12)
    got: list[str] = []

    async def poll(worker_id: str) -> None:
        got.extend(await polled(bench, "echo", limit=4, worker_id=worker_id))

    async def claim(worker_id: str) -> None:
        verdicts = await bench.claims(task_ids[:4], worker_id)
        got.extend(task_id for task_id, verdict in zip(task_ids, verdicts, strict=False) if verdict == "claimed")

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(poll, f"polls-{number}")
            nursery.start_soon(claim, f"claims-{number}")
    assert len(got) == len(set(got)) == await bench.store.running("echo") <= 3
    got += await polled(bench, "echo")
    assert await bench.store.running("echo") == len(got) == 3


# leases that run out


async def test_nobody_whose_lease_is_renewed_in_time_expires(bench: Bench) -> None:
    task = await bench.running()
    assert await bench.store.expire() == []
    await bench.advance(1)
    assert await bench.store.renew(await bench.lease()) > 0
    assert await bench.store.expire() == []
    assert await bench.get(task.task_id) == task


async def test_a_lease_that_was_given_up_does_not_expire_as_well(bench: Bench) -> None:
    await bench.store.retire(await bench.lease("worker-1"))
    await bench.lease("worker-2")
    await bench.lose("worker-2")
    assert await bench.store.expire() == []


# who leads


async def test_who_leads_may_go_on(bench: Bench) -> None:
    assert await bench.store.campaign("one", 5)
    assert await bench.store.campaign("one", 5)
    await bench.advance(60)
    assert await bench.store.campaign("one", 5)
