"""The embedded store in trouble: a full disk, a foreign lock, a bad call in a group, a damaged page."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from atm.errors import StartError, StoreDamaged, StoreUnavailable, leaf_of
from atm.serial import Call
from atm.store import Claimed, Note, TaskFilter
from atm.stores import sqlite_file, sqlite_leases, sqlite_writer
from atm.stores.sqlite import SqliteStore
from atm.stores.sqlite_writer import Writer
from atm.task import Status, TaskType
from contracts.bench import Bench, OpenBench, failure_of, new_task

LARGE = '{"text":"' + "x" * 100_000 + '"}'


def _writer(bench: Bench) -> sqlite3.Connection:
    assert isinstance(bench.store, SqliteStore)
    return bench.store._writer.db


@contextmanager
def _full_disk(bench: Bench) -> Iterator[None]:
    """The file may grow no further."""
    writer = _writer(bench)
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    (most,) = writer.execute("PRAGMA max_page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}")
    yield
    writer.execute(f"PRAGMA max_page_count = {most}")


# a full disk


async def test_a_full_disk_is_an_outage_that_decides_nothing(serve: OpenBench) -> None:
    async with serve() as bench:
        task = await bench.running()
        waiting = await bench.create()
        wanted = new_task(payload_json=LARGE, idempotency_key="k")
        with _full_disk(bench):
            with pytest.raises(StoreUnavailable, match="the store cannot write: database or disk is full"):
                await bench.store.create([new_task(), wanted])
            with pytest.raises(StoreUnavailable):
                await bench.finish(task, Status.SUCCESS, result_json=LARGE)
            assert await bench.get(task.task_id) == task, "reads go on"
            assert await bench.store.get(wanted.task_id) is None
        assert await bench.finish(task, Status.SUCCESS, result_json=LARGE) is Status.SUCCESS
        assert (await bench.store.create([wanted]))[0].replayed is False
        assert len(await bench.steps(task.task_id)) == 3
        left = await bench.store.find(TaskFilter(), None, 10)
        assert {item.task_id for item in left} == {task.task_id, waiting, wanted.task_id}


async def test_with_a_full_disk_the_node_lives_and_nothing_answered_is_lost(serve: OpenBench) -> None:
    done: list[str] = []
    refused: list[str] = []

    async def create(bench: Bench) -> None:
        task = new_task(payload_json=LARGE)
        error = await failure_of(bench.store.create([task]))
        assert error is None or isinstance(error, StoreUnavailable)
        (refused if error else done).append(task.task_id)

    async def create_many(bench: Bench) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(create, bench)

    async with serve(inline=False) as bench:
        await create_many(bench)
        with _full_disk(bench):
            await create_many(bench)
        assert refused
        await create_many(bench)
        refused_at_full = list(refused)
        assert len(done) + len(refused) == 36
    async with serve() as bench:
        found = await bench.store.find(TaskFilter(), None, 100)
        assert {task.task_id for task in found} == set(done)
        assert not {task.task_id for task in found} & set(refused_at_full)


async def test_settings_that_could_not_be_stored_are_not_shown(serve: OpenBench) -> None:
    async with serve() as bench:
        before = TaskType(task_type="a", max_concurrent=1)
        assert await bench.configure("a", max_concurrent=1) == before
        with _full_disk(bench):
            error = await failure_of(bench.configure("b" * 9000))
            assert isinstance(error, StoreUnavailable)
        assert await bench.store.task_types() == {"a": before}
        assert await bench.claims(await bench.create_many(2, task_type="a")) == ["claimed", "blocked"]


async def test_log_ids_grow_even_if_the_transaction_that_took_a_block_failed(
    serve: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "LOG_ID_BLOCK", 3)
    async with serve() as bench:
        task = await bench.running()
        note = Note(task.task_id, task.attempt, "worker-1", "m")
        await bench.store.note([note])
        with _full_disk(bench):
            too_long = Note(task.task_id, task.attempt, "worker-1", LARGE)
            assert isinstance(await failure_of(bench.store.note([too_long])), StoreUnavailable)
        await bench.store.note([note, note])
    async with serve() as bench:
        await bench.store.recover(1)
        rows = await bench.logs(task.task_id)
        assert [row.message for row in rows[2:5]] == ["m"] * 3
        assert rows[5].to_status is Status.PENDING, "what was written last stands last"


async def test_a_foreign_lock_is_an_outage(serve: OpenBench, path: Path) -> None:
    async with serve() as bench:
        _writer(bench).execute("PRAGMA busy_timeout = 0")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="database is locked"):
                await bench.create()
            other.execute("ROLLBACK")
        assert await bench.status(await bench.create()) is Status.PENDING


# a bad call in a group


def _settings(name: str) -> Callable[..., None]:
    """A verb that puts a row into task_config."""

    def verb(_: object, calls: list[Call], writer: Writer, now: int) -> None:
        writer.db.execute("INSERT INTO task_config VALUES (?, '{}')", (name,))
        for call in calls:
            call.succeed(name)

    return verb


def _failing(*errors: Exception) -> Callable[..., None]:
    """A verb that raises these in turn."""
    left = list(errors)

    def verb(_: object, calls: list[Call], writer: Writer, now: int) -> None:
        raise left.pop(0)

    return verb


def _away() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error


def _damage() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _rows(writer: Writer) -> set[str]:
    return {name for (name,) in writer.db.execute("SELECT task_type FROM task_config")}


def _call(verb: Callable[..., Any]) -> Call:
    return Call(verb, None, (), 0)


@pytest.fixture
def opened(path: Path) -> Iterator[Writer]:
    store = SqliteStore(path, inline=True)
    store.open()
    yield store._writer
    store.close()


def test_only_the_culprit_of_a_group_fails(opened: Writer) -> None:
    bad = ValueError("bad")
    calls = [_call(_settings("a")), _call(_failing(bad, bad)), _call(_settings("b"))]
    opened.commit(calls)
    assert [calls[0].result.unwrap(), calls[2].result.unwrap()] == ["a", "b"]
    with pytest.raises(ValueError, match="bad"):
        calls[1].result.unwrap()
    assert _rows(opened) == {"a", "b"}


def test_an_outage_fails_the_whole_group(opened: Writer) -> None:
    calls = [_call(_settings("a")), _call(_failing(_away()))]
    opened.commit(calls)
    for call in calls:
        with pytest.raises(StoreUnavailable):
            call.result.unwrap()
    assert _rows(opened) == set()


def test_an_error_that_is_no_outage_stays_what_it_is(opened: Writer) -> None:
    call = _call(lambda argument, calls, writer, now: writer.db.execute("SELECT * FROM nowhere"))
    opened.commit([call])
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        call.result.unwrap()


def test_damage_fails_the_whole_group_and_ends_the_store(opened: Writer) -> None:
    calls = [_call(_settings("a")), _call(_failing(_damage()))]
    with pytest.raises(StoreDamaged):
        opened.commit(calls)
    for call in calls:
        with pytest.raises(StoreDamaged):
            call.result.unwrap()
    assert _rows(opened) == set()


def test_damage_during_a_split_acknowledges_nothing_that_was_undone(opened: Writer) -> None:
    good = _settings("a")
    first, later = _call(good), _call(good)  # judged together, so both had succeeded in the first try
    bad = _call(_failing(ValueError("bad"), _damage()))
    with pytest.raises(StoreDamaged):
        opened.commit([first, bad, later])
    assert first.result.unwrap() == "a"
    with pytest.raises(StoreDamaged):
        bad.result.unwrap()
    with pytest.raises(StoreUnavailable):
        later.result.unwrap()


async def test_what_a_store_keeps_in_mind_is_undone_with_its_transaction(serve: OpenBench) -> None:
    async with serve() as bench:
        store = bench.store
        assert isinstance(store, SqliteStore)
        before = TaskType(task_type="a", max_concurrent=1)
        assert await bench.configure("a", max_concurrent=1) == before
        lease, retiring = await bench.lease("worker-1"), await bench.lease("worker-2")
        undone = [
            Call(sqlite_leases.change_task_type, ("a", '{"enabled":false}'), (), 0),
            Call(sqlite_leases.change_task_type, ("echo", '{"enabled":false}'), (), 0),
            Call(sqlite_leases.register, ("worker-1", 1, ()), (), 0),
            Call(sqlite_leases.retire, retiring, (), 0),
            _call(_failing(_away())),
        ]
        store._writer.commit(undone)
        assert await store.task_types() == {"a": before}
        assert await bench.claims(await bench.create_many(2, task_type="a")) == ["claimed", "blocked"]
        for alive in (lease, retiring):
            assert await store.renew(alive) > 0
            (verdict,) = await store.claim(alive, [await bench.create()])
            assert isinstance(verdict, Claimed)


# a damaged page


def _damage_page_of(path: Path, text: str) -> None:
    """Overwrite the page that holds this text."""
    content = bytearray(path.read_bytes())
    at = content.index(text.encode()) // 4096 * 4096
    content[at : at + 4096] = b"\xff" * 4096
    path.write_bytes(content)


async def _damaged_store(serve: OpenBench, path: Path) -> tuple[str, str]:
    """A store with a damaged page; the id of a task on it, and of one elsewhere."""
    filler = '{"text":"' + "x" * 500 + '"}'
    async with serve() as bench:
        fine = await bench.create()
        await bench.create_many(50, payload_json=filler)
        lost = await bench.create(payload_json='{"text":"MARK"}')
        await bench.create_many(50, payload_json=filler)
    _damage_page_of(path, "MARK")
    return lost, fine


async def _serve_until_it_ends(
    store: SqliteStore, ends: list[BaseException], *, task_status: trio.TaskStatus[None]
) -> None:
    try:
        await store.run(task_status=task_status)
    except BaseException as error:
        found = leaf_of(error, StoreDamaged)
        if found is None:
            raise
        ends.append(found)


VERBS: dict[str, Callable[[SqliteStore, str], Awaitable[object]]] = {
    "writer": lambda store, task_id: store.cancel([task_id]),
    "reader": lambda store, task_id: store.get(task_id),
    "reader of lists": lambda store, task_id: store.find(TaskFilter(), None, 500),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_damage_met_at_run_time_ends_the_store(
    serve: OpenBench,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: Callable[[SqliteStore, str], Awaitable[object]],
) -> None:
    lost, fine = await _damaged_store(serve, path)
    with pytest.raises(StartError, match="is damaged"):
        SqliteStore(path, inline=True).open()
    monkeypatch.setattr(sqlite_file, "CHECKED_SIZE", 0)
    store = SqliteStore(path)
    ends: list[BaseException] = []
    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_until_it_ends, store, ends)
            assert await store.get(fine) is not None
            error = await failure_of(verb(store, lost))
            assert isinstance(error, StoreDamaged)
            assert "\n" not in str(error)
    assert len(ends) == 1, "the node stops rather than go on with damaged data"
    assert isinstance(await failure_of(store.get(fine)), StoreUnavailable)
