"""The MySQL store in trouble: connections cut around a commit, a server that dies, stops or comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from atm.errors import StoreUnavailable
from atm.store import CancelState, Claimed, Note, Refusal, Refused, TaskFilter
from atm.stores import mysql_pool, mysql_transaction
from atm.stores.mysql import MySqlStore
from atm.stores.mysql_driver import Address, connect
from atm.stores.mysql_values import bind
from atm.task import Status
from contracts.bench import Bench, failure_of, new_task, outcome
from mysql_site import Wire, database_on, say, server_address, serving, wired
from servers import MariaDb


@asynccontextmanager
async def _bench(address: Address, **options: object) -> AsyncIterator[Bench]:
    async def advance(seconds: float) -> None:
        raise AssertionError("time is the server's here")

    async with serving(address, **options) as store:
        yield Bench(store, advance)


@pytest.fixture
async def wire(database: Address) -> AsyncIterator[Wire]:
    async with wired(database) as opened:
        yield opened


@pytest.fixture
async def bench(wire: Wire) -> AsyncIterator[Bench]:
    """A store behind the wire."""
    async with _bench(wire.address) as opened:
        yield opened


@pytest.fixture
def own_server() -> Iterator[MariaDb]:
    """One to be stopped and paused."""
    with MariaDb() as server:
        yield server


def commits(data: bytes) -> bool:
    return data.endswith(b"COMMIT")


# a cut around the commit: it counts once, and the caller hears so

BEFORE = pytest.mark.parametrize("before", [True, False], ids=["before the commit", "after the commit"])


@BEFORE
@pytest.mark.parametrize("key", [None, "k"], ids=["plain", "keyed"])
async def test_a_create_that_is_cut_off_creates_once(
    bench: Bench, wire: Wire, before: bool, key: str | None
) -> None:
    await bench.create()
    tasks = [new_task(idempotency_key=key, delay=50), new_task()]
    wire.cut(commits, before=before)
    created = await bench.store.create(tasks)
    assert wire.cuts == 1
    assert [(item.task_id, item.replayed) for item in created] == [(task.task_id, False) for task in tasks]
    assert created[0].due_in == pytest.approx(50, abs=5)
    for task in tasks:
        assert await bench.steps(task.task_id) == ["None PENDING"]


@BEFORE
async def test_a_claim_that_is_cut_off_claims_once_and_knows_it(bench: Bench, wire: Wire, before: bool) -> None:
    task_ids = await bench.create_many(3)
    lease = await bench.lease()
    wire.cut(commits, before=before)
    verdicts = await bench.store.claim(lease, [*task_ids, "unknown", task_ids[0]])
    assert wire.cuts == 1
    assert [isinstance(verdict, Claimed) for verdict in verdicts] == [True] * 3 + [False] * 2
    for verdict, task_id in zip(verdicts[:3], task_ids, strict=True):
        assert isinstance(verdict, Claimed)
        assert verdict.task == await bench.get(task_id)
        assert await bench.steps(task_id) == ["None PENDING", "PENDING PROCESSING"]


def looks_with_care(data: bytes) -> bool:
    return b"status = 'PENDING' FOR UPDATE" in data


@BEFORE
async def test_what_a_claim_has_got_stays_its_own_when_its_second_look_is_cut_off(
    bench: Bench, wire: Wire, before: bool
) -> None:
    task_id, later = await bench.create(), await bench.create(delay=50)
    lease = await bench.lease()
    wire.cut(looks_with_care, before=before)
    claimed, refused = await bench.store.claim(lease, [task_id, later])
    assert wire.cuts == 1
    assert isinstance(claimed, Claimed)
    assert claimed.task == await bench.get(task_id)
    assert refused == Refused(Refusal.NOT_DUE, pytest.approx(50, abs=5))
    assert await bench.steps(task_id) == ["None PENDING", "PENDING PROCESSING"]


@BEFORE
async def test_a_poll_that_is_cut_off_claims_once_and_knows_it(bench: Bench, wire: Wire, before: bool) -> None:
    task_ids = await bench.create_many(3)
    lease = await bench.lease()
    wire.cut(commits, before=before)
    got = await bench.store.poll(lease, ["echo"], 3)
    assert wire.cuts == 1
    assert sorted(item.task.task_id for item in got) == sorted(task_ids)
    for task_id in task_ids:
        assert await bench.steps(task_id) == ["None PENDING", "PENDING PROCESSING"]


@BEFORE
@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILED, Status.PENDING])
async def test_an_end_that_is_cut_off_ends_once(bench: Bench, wire: Wire, before: bool, status: Status) -> None:
    task = await bench.running()
    retry_in = 30.0 if status is Status.FAILED else None
    wire.cut(commits, before=before)
    [verdict] = await bench.store.finish(await bench.lease(), [outcome(task, status, retry_in=retry_in)])
    assert wire.cuts == 1
    expected = Status.PENDING if retry_in else status
    assert verdict.status is expected
    after = await bench.get(task.task_id)
    assert (after.status, after.retry_count, after.releases) == (
        expected,
        int(bool(retry_in)),
        int(expected is status is Status.PENDING),
    )
    assert len(await bench.steps(task.task_id)) == (4 if retry_in else 3)


@BEFORE
async def test_a_cancel_that_is_cut_off_cancels(bench: Bench, wire: Wire, before: bool) -> None:
    task_id = await bench.create()
    wire.cut(commits, before=before)
    [verdict] = await bench.store.cancel([task_id])
    assert verdict.state is CancelState.CANCELLED
    assert await bench.steps(task_id) == ["None PENDING", "PENDING CANCELLED"]


@BEFORE
async def test_a_registration_that_is_cut_off_leaves_one_lease_alive(
    bench: Bench, wire: Wire, before: bool
) -> None:
    wire.cut(commits, before=before)
    lease = await bench.store.register("w", 1, [])
    assert wire.cuts == 1
    assert await bench.store.renew(lease) > 0
    [alive] = await say(wire.address, "SELECT epoch FROM worker_registry WHERE state = 'ALIVE'")
    assert alive.column == [str(lease.epoch).encode()]


async def test_a_read_that_is_cut_off_is_read_again(bench: Bench, wire: Wire) -> None:
    task_id = await bench.create()
    wire.cut(lambda data: b"FROM task" in data)
    assert await bench.status(task_id) is Status.PENDING
    assert wire.cuts == 1


# trouble between transactions


async def test_deadlocked_calls_are_run_again(database: Address) -> None:
    async with _bench(database) as one, _bench(database) as other:
        tasks = [await one.running() for _ in range(40)]
        lease = await one.lease()
        ends: list[Status | None] = []

        async def finish(store: MySqlStore, part: list[object]) -> None:
            ends.extend(item.status for item in await store.finish(lease, part))  # type: ignore[arg-type]

        async def note(store: MySqlStore, number: int) -> None:
            await store.note(
                [Note(task.task_id, 1, "w", f"{number}") for task in tasks[:: -1 if number % 2 else 1]]
            )

        async with trio.open_nursery() as nursery:
            for number in range(8):
                store = (one.store, other.store)[number % 2]
                part = [outcome(task, Status.SUCCESS) for task in tasks[number::8]]
                nursery.start_soon(finish, store, part)
                nursery.start_soon(note, store, number)
                nursery.start_soon(store.cancel, [task.task_id for task in reversed(tasks[:5])])
        assert len(ends) == 40
        assert None not in ends
        for task in tasks:
            assert (await one.steps(task.task_id))[-1] in ("PROCESSING SUCCESS", "PROCESSING CANCELLED")


async def test_a_row_that_is_held_too_long_is_an_outage_and_nothing_is_half_done(
    database: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _bench(database) as bench:
        one, other = await bench.create_many(2)
        holder = await connect(database)
        await holder.run(b"BEGIN", bind("SELECT 1 FROM task WHERE task_id = %s FOR UPDATE", other))
        monkeypatch.setattr(mysql_transaction, "TRIES", 1)
        error = await failure_of(bench.store.cancel([one, other]))
        assert isinstance(error, StoreUnavailable)
        assert await bench.steps(one) == ["None PENDING"]
        holder.close()
        assert [verdict.changed for verdict in await bench.store.cancel([one, other])] == [True, True]


# the server


async def test_a_server_that_dies_and_comes_back(own_server: MariaDb) -> None:
    async with database_on(server_address(own_server)) as address, _bench(address) as bench:
        acknowledged: list[str] = []
        refused = 0
        stop = trio.Event()

        async def create() -> None:
            nonlocal refused
            while not stop.is_set():
                try:
                    acknowledged.append(await bench.create())
                except StoreUnavailable:
                    refused += 1
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(create)
            with trio.fail_after(40):
                for _ in range(2):
                    before = len(acknowledged)
                    while len(acknowledged) < before + 30:
                        await trio.sleep(0.01)
                    await trio.to_thread.run_sync(own_server.kill)
                    seen = refused
                    while refused == seen:
                        await trio.sleep(0.01)
                    await trio.to_thread.run_sync(own_server.start)
                before = len(acknowledged)
                while len(acknowledged) < before + 30:
                    await trio.sleep(0.01)
            stop.set()
        for task_id in acknowledged:
            assert await bench.steps(task_id) == ["None PENDING"]


async def test_a_server_that_stops_to_answer_is_an_outage_until_it_goes_on(own_server: MariaDb) -> None:
    async with database_on(server_address(own_server)) as address, _bench(address, patience=0.3) as bench:
        task_id = await bench.create()
        own_server.pause()
        try:
            errors: list[Exception | None] = []

            async def ask() -> None:
                errors.append(await failure_of(bench.store.ping()))

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(ask)
            assert len(errors) == 3
            assert all(isinstance(error, StoreUnavailable) for error in errors)
            assert bench.store.address.password not in "".join(map(str, errors))  # type: ignore[attr-defined]
        finally:
            own_server.resume()
        with trio.fail_after(30):
            while await failure_of(bench.store.ping()) is not None:
                await trio.sleep(0.01)
        assert await bench.status(task_id) is Status.PENDING


async def test_a_store_ends_soon_though_its_server_does_not_answer(own_server: MariaDb) -> None:
    async with database_on(server_address(own_server)) as address:
        ends: list[Exception | None] = []

        async def create(store: MySqlStore) -> None:
            ends.append(await failure_of(store.create([new_task()])))

        async with trio.open_nursery() as callers:
            async with _bench(address) as bench:
                assert isinstance(bench.store, MySqlStore)
                await bench.create()
                own_server.pause()
                for _ in range(5):
                    callers.start_soon(create, bench.store)
                await trio.testing.wait_all_tasks_blocked(0.05)
            own_server.resume()
        assert len(ends) == 5
        assert all(isinstance(error, StoreUnavailable) for error in ends)


async def test_idle_connections_are_kept_fresh(database: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_pool, "KEEP_ALIVE", 0.05)
    async with _bench(database) as bench:
        await bench.create()
        [connection, *_] = bench.store._pool._idle  # type: ignore[attr-defined]
        before = connection.used_at
        with trio.fail_after(10):
            while connection.used_at == before:
                await trio.sleep(0.01)
        assert not connection.broken


async def test_a_call_that_no_packet_holds_fails_alone(database: Address) -> None:
    async with _bench(database) as bench:
        large = new_task(payload_json='{"text":"' + "x" * (17 << 20) + '"}')
        error = await failure_of(bench.store.create([large]))
        assert error is not None
        assert not isinstance(error, StoreUnavailable)
        many = [new_task(payload_json='{"text":"' + "\\\\'\\\"" * 150_000 + '"}') for _ in range(12)]
        await bench.store.create(many)
        found = await bench.store.find(TaskFilter(), None, 50)
        assert {task.payload_json for task in found} == {many[0].payload_json}
        assert len(found) == 12
        claimed = await bench.claims([task.task_id for task in many])
        assert claimed == ["claimed"] * 12
