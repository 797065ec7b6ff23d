"""Many callers at once share transactions, and none of them notices the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from atm.errors import StoreUnavailable
from atm.store import Lease, Note, Outcome, Store, TaskFilter
from atm.task import Status
from contracts.bench import Bench, OpenBench, failure_of, new_task


async def test_each_of_many_callers_gets_its_own_answer(bench: Bench) -> None:
    answers: dict[int, list[str]] = {}
    batches = {number: [new_task() for _ in range(number % 7 + 1)] for number in range(60)}

    async def create(number: int) -> None:
        answers[number] = [created.task_id for created in await bench.store.create(batches[number])]

    async with trio.open_nursery() as nursery:
        for number in batches:
            nursery.start_soon(create, number)
    assert answers == {number: [task.task_id for task in batch] for number, batch in batches.items()}
    assert len(await bench.store.find(TaskFilter(), None, 500)) == sum(map(len, batches.values()))


async def test_callers_with_more_than_a_group_holds_are_all_served(bench: Bench) -> None:
    async def create() -> None:
        assert len(await bench.store.create([new_task() for _ in range(400)])) == 400

    async with trio.open_nursery() as nursery:
        for _ in range(7):
            nursery.start_soon(create)
    count = 0
    position = None
    while True:
        page, position = await bench.store.waiting(position, 500)
        count += len(page)
        if position is None:
            break
    assert count == 2800


@pytest.mark.parametrize("bad", ["an id that exists", "a text that is none"])
async def test_a_callers_data_error_fails_that_caller_alone(bench: Bench, bad: str) -> None:
    known = await bench.create()
    failed: list[int] = []
    task_ids: list[str] = []

    async def create(number: int) -> None:
        tasks = [new_task(), new_task()]
        if number == 13:
            tasks.append(new_task(task_id=known) if bad == "an id that exists" else new_task("\ud800"))
        else:
            task_ids.extend(task.task_id for task in tasks)
        error = await failure_of(bench.store.create(tasks))
        if error is not None:
            assert not isinstance(error, StoreUnavailable), "asking again would not help"
            failed.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(create, number)
    assert failed == [13]
    found = await bench.store.find(TaskFilter(), None, 500)
    assert {task.task_id for task in found} == {known, *task_ids}, "nothing of the failed call"
    for task_id in task_ids:
        assert await bench.steps(task_id) == ["None PENDING"]


async def test_a_data_error_of_one_verb_leaves_the_others_in_its_group_alone(bench: Bench) -> None:
    tasks = [await bench.running() for _ in range(6)]
    waiting = await bench.create()
    await bench.lease()
    ends: list[Status | None] = []
    errors: list[Exception | None] = []

    async def finish(number: int) -> None:
        ends.append(await bench.finish(tasks[number], Status.SUCCESS))

    async def create() -> None:
        errors.append(await failure_of(bench.store.create([new_task(task_id=waiting)])))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(finish, number)
            nursery.start_soon(create)
        nursery.start_soon(bench.store.cancel, [waiting])
        nursery.start_soon(bench.store.change_task_type, "t", {"max_concurrent": 4})
    assert ends == [Status.SUCCESS] * 6
    assert all(errors)
    assert await bench.steps(waiting) == ["None PENDING", "PENDING CANCELLED"]
    assert (await bench.store.task_types())["t"].max_concurrent == 4
    for task in tasks:
        assert len(await bench.steps(task.task_id)) == 3


async def test_a_caller_that_stops_waiting_does_no_harm(bench: Bench) -> None:
    batches = [[new_task(), new_task()] for _ in range(40)]
    answered: list[int] = []

    async def create(number: int, patience: trio.CancelScope) -> None:
        with patience:
            await bench.store.create(batches[number])
            answered.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(40):
            patience = trio.CancelScope()
            nursery.start_soon(create, number, patience)
            if number % 3 == 0:
                nursery.start_soon(_cancel, patience)
    patient = {number for number in range(40) if number % 3}
    assert patient <= set(answered)
    for number, batch in enumerate(batches):
        stored = [await bench.store.get(task.task_id) is not None for task in batch]
        assert stored[0] == stored[1], "all of a call or none"
        assert stored[0] or number not in answered


async def _cancel(scope: trio.CancelScope) -> None:
    scope.cancel()


async def test_a_caller_that_is_cancelled_already_writes_nothing(bench: Bench) -> None:
    task = new_task()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bench.store.create([task])
    assert scope.cancelled_caught
    assert await bench.store.get(task.task_id) is None


async def test_whoever_has_an_answer_can_read_what_it_says(bench: Bench) -> None:
    async def live(number: int) -> None:
        task_id = await bench.create(payload_json=f'{{"n":{number}}}')
        assert await bench.status(task_id) is Status.PENDING
        task = await bench.claim(task_id)
        assert await bench.get(task_id) == task
        await bench.finish(task, Status.SUCCESS, result_json=str(number))
        assert (await bench.get(task_id)).result_json == str(number)
        assert len(await bench.logs(task_id)) == 3

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(live, number)


_LEASE = Lease("worker-1", 1)

VERBS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "create": lambda store: store.create([new_task()]),
    "claim": lambda store: store.claim(_LEASE, ["a"]),
    "finish": lambda store: store.finish(
        _LEASE, [Outcome(task_id="a", attempt=1, status=Status.SUCCESS, message="")]
    ),
    "cancel": lambda store: store.cancel(["a"]),
    "reopen": lambda store: store.reopen(["a"]),
    "recover": lambda store: store.recover(1),
    "sweep": lambda store: store.sweep([0], 1),
    "note": lambda store: store.note([Note("a", 1, "w", "m")]),
    "purge": lambda store: store.purge(1, 1),
    "register": lambda store: store.register("w", 1, []),
    "retire": lambda store: store.retire(_LEASE),
    "poll": lambda store: store.poll(_LEASE, ["a"], 1),
    "change_task_type": lambda store: store.change_task_type("a", {"enabled": False}),
    "ping": lambda store: store.ping(),
    "get": lambda store: store.get("a"),
    "logs": lambda store: store.logs("a"),
    "find": lambda store: store.find(TaskFilter(), None, 1),
    "running": lambda store: store.running("a"),
    "waiting": lambda store: store.waiting(None, 1),
    "held": lambda store: store.held(_LEASE),
}


async def test_a_store_that_has_ended_is_unavailable(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        await bench.store.ping()
    for name, verb in VERBS.items():
        assert isinstance(await failure_of(verb(bench.store)), StoreUnavailable), name


async def test_calls_under_way_at_the_end_are_answered(open_bench: OpenBench) -> None:
    ends: list[bool] = []

    async def create(store: Store) -> None:
        error = await failure_of(store.create([new_task()]))
        assert error is None or isinstance(error, StoreUnavailable)
        ends.append(error is None)

    async with trio.open_nursery() as callers, open_bench() as bench:
        for _ in range(20):
            callers.start_soon(create, bench.store)
        await trio.lowlevel.checkpoint()
    assert len(ends) == 20
