"""The plans of every statement that the embedded store runs: by an index, in its order, whatever has piled up."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from atm.store import Note, Position, TaskFilter
from atm.stores.sqlite import SqliteStore
from atm.task import Status
from contracts.bench import Bench, OpenBench, family_life, new_task, outcome


class Recorder:
    """A connection that notes how each of its statements is carried out."""

    def __init__(self, connection: sqlite3.Connection, plans: list[str]) -> None:
        self._connection = connection
        self._plans = plans

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        if re.match(r"\s*(SELECT|UPDATE|DELETE|WITH)\b", sql):
            rows = self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)
            self._plans.append("\n".join(row[3] for row in rows))
        return self._connection.execute(sql, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


async def _plans_of(bench: Bench, verb: Callable[[Bench], Awaitable[object]]) -> list[str]:
    """The plans of all statements of a verb."""
    store = bench.store
    assert isinstance(store, SqliteStore)
    writer = store._writer
    plans: list[str] = []
    connections = (writer.db, store._read_db, store._slow_db)
    writer.db, store._read_db, store._slow_db = (Recorder(c, plans) for c in connections)  # type: ignore[assignment]
    try:
        await verb(bench)
    finally:
        writer.db, store._read_db, store._slow_db = connections
    return plans


async def _fill(bench: Bench) -> None:
    await bench.configure("capped", max_concurrent=2)
    for status in (Status.SUCCESS, Status.FAILED, Status.CANCELLED):
        await bench.ended(status)
    await bench.advance(100)
    await bench.create_many(20)


async def _finish(bench: Bench) -> None:
    tasks = [await bench.running() for _ in range(3)]
    again = {"retry_in": 1.0}
    endings = [outcome(tasks[0], Status.SUCCESS), outcome(tasks[1], Status.FAILED, **again)]
    await bench.store.finish(await bench.lease(), [*endings, outcome(tasks[2], Status.PENDING)])


async def _cancel(bench: Bench) -> None:
    await bench.store.cancel([(await bench.running()).task_id, await bench.create()])


async def _reopen(bench: Bench) -> None:
    await bench.store.reopen([(await bench.ended(Status.FAILED)).task_id])


async def _recover(bench: Bench) -> None:
    await bench.running()
    await bench.lose()
    assert await bench.store.recover(10)


async def _sweep(bench: Bench) -> None:
    await bench.advance(100)
    assert await bench.store.sweep((1, 0, -1), 10)


async def _note(bench: Bench) -> None:
    task = await bench.running()
    await bench.store.note([Note(task.task_id, 1, "worker-1", "m", progress_json="1")])


async def _purge(bench: Bench) -> None:
    assert await bench.store.purge(1, 10)


async def _poll(bench: Bench) -> None:
    await bench.advance(1)
    assert await bench.store.poll(await bench.lease(), ["capped", "echo"], 5)


async def _held(bench: Bench) -> None:
    await bench.store.held(await bench.lease())


async def _waiting(bench: Bench) -> None:
    page, position = await bench.store.waiting(Position(0, 0, 0), 5)
    assert page
    await bench.store.waiting(position, 5)


async def _reads(bench: Bench) -> None:
    task_id = await bench.create()
    await bench.get(task_id)
    await bench.logs(task_id)
    await bench.store.running("capped")
    await bench.store.ping()


VERBS: dict[str, Callable[[Bench], Awaitable[object]]] = {
    "create": lambda bench: bench.store.create([new_task(), new_task(idempotency_key="k")]),
    "claim": lambda bench: bench.running(),
    "claim of a capped type": lambda bench: bench.running(task_type="capped"),
    "poll": _poll,
    "finish": _finish,
    "cancel": _cancel,
    "reopen": _reopen,
    "recover": _recover,
    "family": family_life,
    "sweep": _sweep,
    "note": _note,
    "purge": _purge,
    "register": lambda bench: bench.lose(),
    "held": _held,
    "waiting": _waiting,
    "reads": _reads,
}

_SCAN = re.compile(r"^SCAN (task|task_logs|p)\b", re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_no_verb_walks_through_all_tasks_or_sorts(
    serve: OpenBench, verb: Callable[[Bench], Awaitable[object]]
) -> None:
    async with serve() as bench:
        await _fill(bench)
        plans = await _plans_of(bench, verb)
    assert plans or verb is VERBS["create"]
    for plan in plans:
        assert not _SCAN.search(plan), plan
        # A family may be sorted, found by its index.
        assert "TEMP B-TREE" not in plan or "task_idempotency (idempotency_key>?" in plan, plan


async def _plan_of_list(bench: Bench, where: TaskFilter, before: str | None) -> str:
    *_, plan = await _plans_of(bench, lambda bench: bench.store.find(where, before, 5))
    return plan


@pytest.mark.parametrize("before", [None, "x"], ids=["first page", "next page"])
@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMEOUT, Status.CANCELLED])
async def test_unsuccessful_tasks_are_found_among_many_successes(
    serve: OpenBench, status: Status, before: str | None
) -> None:
    async with serve() as bench:
        plan = await _plan_of_list(bench, TaskFilter(status=status), before)
    assert plan.startswith("SEARCH task USING INDEX task_unsuccessful (status=?")
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("status", [Status.PENDING, Status.PROCESSING])
async def test_live_tasks_are_found_among_many_that_ended(serve: OpenBench, status: Status) -> None:
    async with serve() as bench:
        plan = await _plan_of_list(bench, TaskFilter(status=status), None)
    # They are sorted: an index in both orders would cost every claim.
    assert plan.startswith("SEARCH task USING INDEX task_live (status=?)")


@pytest.mark.parametrize("status", [None, Status.SUCCESS])
async def test_tasks_of_a_type_are_found_in_their_order(serve: OpenBench, status: Status | None) -> None:
    async with serve() as bench:
        plan = await _plan_of_list(bench, TaskFilter(task_type="echo", status=status), "x")
    assert plan.startswith("SEARCH task USING INDEX task_type_newest (task_type=? AND task_id<?)")
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize(
    "where",
    [TaskFilter(), TaskFilter(status=Status.SUCCESS), TaskFilter(worker_id="w", created_after=1)],
    ids=repr,
)
async def test_other_lists_go_newest_first_without_sorting(serve: OpenBench, where: TaskFilter) -> None:
    async with serve() as bench:
        first, following = [await _plan_of_list(bench, where, before) for before in (None, "x")]
    assert first.startswith("SCAN task USING INDEX")
    assert following.startswith("SEARCH task USING INDEX")
    assert "TEMP B-TREE" not in first + following
