"""The plans of the statements that the MySQL store runs: by an index, in its order, with thousands of rows."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest
import trio

from atm.store import Claimed, Note, Position, TaskFilter
from atm.stores.mysql_connection import Connection, Result
from atm.stores.mysql_driver import Address
from atm.task import Status
from contracts.bench import Bench, family_life, new_task, outcome
from mysql_site import new_database, real_mysql, say, server_address, server_kinds, serving

ROWS = 700
LONG = 1e6
EXPLAINED = re.compile(rb"(\(?SELECT .* FROM|UPDATE|DELETE) ")


@dataclass(frozen=True)
class Step:
    """A line of EXPLAIN."""

    statement: str
    table: str
    kind: str
    key: str | None
    extra: str


@dataclass
class Recorder:
    """Notes how each statement of a store is carried out."""

    bench: Bench
    is_mysql: bool

    async def record(
        self, verb: Callable[[Bench], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
    ) -> list[Step]:
        run = Connection.run
        steps: list[Step] = []

        async def run_and_explain(connection: Connection, *statements: bytes) -> list[Result]:
            results: list[Result] = []
            for statement in statements:
                if EXPLAINED.match(statement):
                    tabular = b"EXPLAIN FORMAT = TRADITIONAL " if self.is_mysql else b"EXPLAIN "
                    rows = await run(connection, tabular + statement)
                    steps.extend(_steps(statement, rows[0]))
                results += await run(connection, statement)
            return results

        monkeypatch.setattr(Connection, "run", run_and_explain)
        await verb(self.bench)
        monkeypatch.setattr(Connection, "run", run)
        return steps


def _steps(statement: bytes, answer: Result) -> list[Step]:
    steps = []
    for row in answer.rows:
        cells = [None if cell is None else cell.decode() for cell in row]
        # MySQL has two columns more: partitions, behind the table, and filtered, before the extra.
        kind, key = (cells[4], cells[6]) if len(cells) == 12 else (cells[3], cells[5])
        steps.append(Step(statement.decode()[:400], cells[2] or "", kind or "", key, cells[-1] or ""))
    return steps


async def _fill(address: Address) -> None:
    """Some thousands of tasks that ended, run or wait, and fresh statistics."""
    async with serving(address, lease=LONG, boot_id="plans") as store:
        bench = Bench(store, _no_leap)
        await store.change_task_type("capped", {"max_concurrent": 500})
        lease = await bench.lease()
        for status in (Status.SUCCESS, Status.SUCCESS, Status.FAILED):
            claims = await store.claim(lease, await bench.create_many(ROWS))
            tasks = [item.task for item in claims if isinstance(item, Claimed)]
            await store.finish(lease, [outcome(task, status) for task in tasks])
        await store.claim(lease, await bench.create_many(50))
        await bench.create_many(ROWS)
    await say(address, "ANALYZE TABLE task, task_logs")


async def _no_leap(seconds: float) -> None:
    raise AssertionError


@pytest.fixture(scope="module", params=server_kinds())
def filled(request: pytest.FixtureRequest) -> Iterator[Address]:
    real = real_mysql()
    is_real = request.param == "mysql" and real is not None
    server = real if is_real else server_address(request.getfixturevalue("maria"))
    assert server is not None
    address = trio.run(new_database, server)
    trio.run(_fill, address)
    yield address
    trio.run(say, server, f"DROP DATABASE {address.database}")


@pytest.fixture
async def recorder(filled: Address) -> AsyncIterator[Recorder]:
    """A store that all this has been in for a while."""
    shift = 0

    async def advance(seconds: float) -> None:
        nonlocal shift
        shift += round(seconds * 1000)

    async with serving(filled, lease=LONG, boot_id="plans", shift=lambda: shift) as store:
        bench = Bench(store, advance)
        await advance(100)
        [version] = await say(filled, "SELECT VERSION()")
        yield Recorder(bench, is_mysql=b"MariaDB" not in version.column[0])


async def _finish(bench: Bench) -> None:
    tasks = [await bench.running() for _ in range(5)]
    endings = [outcome(task, Status.SUCCESS, result_json=str(at)) for at, task in enumerate(tasks)]
    endings[0] = outcome(tasks[0], Status.FAILED, retry_in=1.0)
    await bench.store.finish(await bench.lease(), endings)


async def _note(bench: Bench) -> None:
    task = await bench.running()
    await bench.store.note([Note(task.task_id, 1, "worker-1", "m", progress_json="1")])


async def _recover(bench: Bench) -> None:
    await bench.lose()
    assert await bench.store.recover(10)


async def _sweep(bench: Bench) -> None:
    assert await bench.store.sweep((1, 0, -1), 10)


async def _purge(bench: Bench) -> None:
    assert await bench.store.purge(1, 10)


async def _waiting(bench: Bench) -> None:
    page, position = await bench.store.waiting(Position(0, 0, ""), 5)
    assert page
    await bench.store.waiting(position, 5)


async def _poll(bench: Bench) -> None:
    assert await bench.store.poll(await bench.lease(), ["echo", "capped"], 5)


async def _reads(bench: Bench) -> None:
    task_id = await bench.create()
    await bench.get(task_id)
    await bench.logs(task_id)
    await bench.store.running("capped")
    await bench.store.held(await bench.lease())


async def _leases(bench: Bench) -> None:
    lease = await bench.store.register("other", 1, [])
    await bench.store.renew(lease)
    await bench.store.retire(lease)
    await bench.store.expire()


VERBS: dict[str, Callable[[Bench], Awaitable[object]]] = {
    "create": lambda bench: bench.store.create([new_task(), new_task(idempotency_key="k")]),
    "claim": lambda bench: bench.running(),
    "claim of many": lambda bench: _claim_many(bench),
    "claim of a capped type": lambda bench: bench.running(task_type="capped"),
    "claim and finish without caps": lambda bench: _without_caps(bench),
    "poll": _poll,
    "finish": _finish,
    "cancel": lambda bench: _cancel(bench),
    "reopen": lambda bench: _reopen(bench),
    "recover": _recover,
    "family": family_life,
    "sweep": _sweep,
    "note": _note,
    "purge": _purge,
    "waiting": _waiting,
    "reads": _reads,
    "leases": _leases,
}


async def _claim_many(bench: Bench) -> None:
    ids = await bench.create_many(600)
    assert await bench.claims(ids) == ["claimed"] * 600


async def _without_caps(bench: Bench) -> None:
    await bench.store.change_task_type("capped", {"max_concurrent": None})
    ids = await bench.create_many(600)
    assert await bench.claims(ids) == ["claimed"] * 600
    tasks = [await bench.get(task_id) for task_id in ids]
    lease = await bench.lease()
    for results in (["1"] * 300, list(map(str, range(300)))):
        ends = [outcome(tasks.pop(), Status.SUCCESS, result_json=result) for result in results]
        assert {verdict.status for verdict in await bench.store.finish(lease, ends)} == {Status.SUCCESS}
    await bench.store.change_task_type("capped", {"max_concurrent": 500})


async def _cancel(bench: Bench) -> None:
    await bench.store.cancel([(await bench.running()).task_id, await bench.create()])


async def _reopen(bench: Bench) -> None:
    await bench.store.reopen([(await bench.ended(Status.FAILED)).task_id])


def _large(step: Step) -> bool:
    return step.table in ("task", "t", "task_logs")


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_no_verb_walks_through_all_tasks_or_sorts_what_it_locks(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, verb: Callable[[Bench], Awaitable[object]]
) -> None:
    steps = await recorder.record(verb, monkeypatch)
    assert steps
    for step in steps:
        assert not _large(step) or (step.kind not in ("ALL", "index") and step.key), step
        if "FOR UPDATE" in step.statement or step.statement.startswith("UPDATE"):
            assert "filesort" not in step.extra, step
            assert not _large(step) or "temporary" not in step.extra, step


@pytest.mark.parametrize("before", [None, "x"], ids=["first page", "next page"])
@pytest.mark.parametrize(
    ("where", "key"),
    [
        (TaskFilter(), "PRIMARY"),
        (TaskFilter(status=Status.SUCCESS), "PRIMARY"),
        (TaskFilter(worker_id="w", created_after=1), "PRIMARY"),
        (TaskFilter(task_type="echo"), "task_type_newest"),
        (TaskFilter(task_type="echo", status=Status.SUCCESS), "task_type_newest"),
        (TaskFilter(status=Status.PENDING), "task_live"),
        (TaskFilter(status=Status.PROCESSING), "task_live"),
        (TaskFilter(status=Status.FAILED), "task_live"),
    ],
    ids=str,
)
async def test_lists_go_by_the_index_of_their_order_or_of_a_rare_status(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, where: TaskFilter, key: str, before: str | None
) -> None:
    steps = await recorder.record(lambda bench: bench.store.find(where, before, 5), monkeypatch)
    walks = [step for step in steps if step.table == "task" and "JSON_ARRAY" in step.statement]
    assert [step.key for step in walks] == [key]
    if key != "task_live":
        assert "filesort" not in walks[0].extra
    assert [step.key for step in steps if step.table == "t"] == ["PRIMARY"]


async def test_counts_of_running_tasks_read_nothing_but_the_index(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    [step] = await recorder.record(lambda bench: bench.store.running("echo"), monkeypatch)
    assert (step.key, "Using index" in step.extra) == ("task_live", True)
