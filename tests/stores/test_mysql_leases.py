"""Leases that several processes share, by the database's clock; and who leads while nobody coordinates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import trio

from atm.errors import WorkerIdTaken
from atm.store import Claimed, Lease, Refusal, Refused
from atm.stores.mysql import MySqlStore
from atm.stores.mysql_driver import Address, connect
from atm.stores.mysql_leases import Watch
from atm.stores.mysql_values import bind
from atm.task import Status
from contracts.bench import new_task
from mysql_site import say, serving

L, D = 10.0, 5.0


@dataclass
class Cluster:
    """Two processes on one database, with a hand on the clock."""

    one: MySqlStore
    other: MySqlStore
    advance: Callable[[float], None]
    address: Address

    async def look(self, seconds: float) -> list[str]:
        """Let so much time pass while ``other`` looks for leases that ran out; whom it took for lost."""
        lost: list[str] = []
        for _ in range(round(seconds)):
            self.advance(1)
            lost += await self.other.expire()
        return lost


@pytest.fixture
async def cluster(database: Address) -> AsyncIterator[Cluster]:
    shift = 0

    def advance(seconds: float) -> None:
        nonlocal shift
        shift += round(seconds * 1000)

    options = {"lease": L, "margin": D, "shift": lambda: shift}
    async with serving(database, **options) as one, serving(database, **options) as other:
        yield Cluster(one, other, advance, database)


async def test_a_lease_lasts_from_its_last_renewal(cluster: Cluster) -> None:
    lease = await cluster.one.register("w", 1, [])
    tasks = [new_task() for _ in range(3)]
    await cluster.one.create(tasks)
    cluster.advance(L - 1)
    assert await cluster.one.renew(lease) == L
    cluster.advance(L - 1)
    [claimed] = await cluster.one.claim(lease, [tasks[0].task_id])
    assert isinstance(claimed, Claimed)
    cluster.advance(2)
    assert await cluster.one.claim(lease, [tasks[1].task_id]) == [Refused(Refusal.NO_LEASE)]
    assert await cluster.one.poll(lease, ["echo"], 5) == []
    assert await cluster.one.renew(lease) == L, "nobody has taken it for lost yet"
    assert isinstance((await cluster.one.claim(lease, [tasks[1].task_id]))[0], Claimed)


async def test_another_process_gets_a_worker_id_when_its_lease_is_over_for_good(cluster: Cluster) -> None:
    await cluster.one.register("w", 1, [])
    with pytest.raises(WorkerIdTaken) as caught:
        await cluster.other.register("w", 1, [])
    assert caught.value.worker_id == "w"
    assert caught.value.wait == pytest.approx(L + D, abs=1)
    cluster.advance(L + D - 2)
    with pytest.raises(WorkerIdTaken) as caught:
        await cluster.other.register("w", 1, [])
    assert caught.value.wait == pytest.approx(2, abs=1)
    cluster.advance(4)
    lease = await cluster.other.register("w", 1, [])
    assert await cluster.other.renew(lease) == L


async def test_a_retired_lease_makes_way_at_once(cluster: Cluster) -> None:
    await cluster.one.retire(await cluster.one.register("w", 1, []))
    assert await cluster.other.renew(await cluster.other.register("w", 1, [])) == L


async def test_who_was_superseded_never_gets_the_id_again(cluster: Cluster) -> None:
    old = await cluster.one.register("w", 1, [])
    cluster.advance(L + D + 1)
    lease = await cluster.other.register("w", 1, [])
    assert await cluster.one.renew(old) == 0
    for _ in range(2):
        with pytest.raises(WorkerIdTaken) as caught:
            await cluster.one.register("w", 1, [])
        assert caught.value.wait is None
        await cluster.other.retire(lease)


async def test_of_many_processes_that_register_an_id_at_once_one_gets_it(database: Address) -> None:
    ends: list[str] = []

    async def register(store: MySqlStore) -> None:
        try:
            await store.register("w", 1, [])
            ends.append("registered")
        except WorkerIdTaken:
            ends.append("taken")

    async with trio.open_nursery() as stores:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                store = MySqlStore(database, pool_size=2)
                await stores.start(store.run)
                nursery.start_soon(register, store)
        stores.cancel_scope.cancel()
    assert sorted(ends) == ["registered"] + ["taken"] * 5


async def test_over_leases_are_forgotten_and_the_others_kept(cluster: Cluster) -> None:
    for _ in range(3):
        await cluster.one.register("again", 1, [])
    await cluster.one.retire(await cluster.one.register("gone", 1, []))
    [rows] = await say(cluster.address, "SELECT COUNT(*) FROM worker_registry")
    assert rows.number == 2
    cluster.advance(90_000)
    await cluster.one.register("new", 1, [])
    [rows] = await say(cluster.address, "SELECT worker_id FROM worker_registry ORDER BY epoch")
    assert rows.column == [b"again", b"new"]


# expire


async def test_a_worker_that_stays_silent_is_lost_and_its_task_waits_again(cluster: Cluster) -> None:
    lease = await cluster.one.register("w", 1, [])
    task = new_task()
    await cluster.one.create([task])
    await cluster.one.claim(lease, [task.task_id])
    assert await cluster.look(L + D - 1) == []
    assert await cluster.other.recover(10) == []
    assert await cluster.look(3) == ["w"]
    assert await cluster.one.renew(lease) == 0
    [recovered] = await cluster.other.recover(10)
    assert (recovered.task_id, recovered.status) == (task.task_id, Status.PENDING)


async def test_who_renews_is_never_lost(cluster: Cluster) -> None:
    lease = await cluster.one.register("w", 1, [])
    for _ in range(10):
        assert await cluster.look(3) == []
        assert await cluster.one.renew(lease) == L


@pytest.mark.parametrize("what", ["begins to look", "a break", "an outage"])
async def test_nobody_is_lost_within_a_leases_length_after(cluster: Cluster, what: str) -> None:
    if what != "begins to look":
        await cluster.look(L + 2)
    await cluster.one.register("w", 1, [])
    if what == "an outage":
        await cluster.look(L + D - 1)
        cluster.other._leases.watch.interrupt()
        cluster.advance(3)
    else:
        cluster.advance(L + D + 1)
    assert await cluster.look(L - 1) == []
    assert await cluster.look(3) == ["w"]


def test_a_step_of_the_servers_clock_begins_the_wait_anew() -> None:
    watch = Watch(10_000)
    seen = [watch.look(1_000_000 + at, at) for at in range(0, 12_000, 2000)]
    assert seen == [False] * 5 + [True]
    stepped = [watch.look(9_000_000 + at, at) for at in range(12_000, 24_000, 2000)]
    assert stepped == [False] * 5 + [True]
    back = [watch.look(5_000 + at, at) for at in range(24_000, 36_000, 2000)]
    assert back == [False] * 5 + [True]


def test_an_outage_or_a_break_begins_the_wait_anew() -> None:
    watch = Watch(10_000)
    assert [watch.look(at, at) for at in range(0, 12_000, 2000)][-1]
    watch.interrupt()
    assert not watch.look(12_000, 12_000)
    assert [watch.look(at, at) for at in range(14_000, 24_000, 2000)][-1]
    assert not watch.look(40_000, 40_000)


# poll, and caps over processes


async def test_polls_share_out_what_is_due_high_priority_first(cluster: Cluster) -> None:
    tasks = [new_task(priority=number % 3 - 1) for number in range(12)]
    late, foreign = new_task(delay=100), new_task("foreign")
    await cluster.one.create([*tasks, late, foreign])
    leases = [await store.register(name, 9, []) for store, name in ((cluster.one, "a"), (cluster.other, "b"))]
    first = await cluster.one.poll(leases[0], ["echo"], 5)
    rest = await cluster.other.poll(leases[1], ["echo", "unknown"], 50)
    assert [item.task.priority for item in first + rest] == [1] * 4 + [0] * 4 + [-1] * 4
    assert {item.task.task_id for item in first + rest} == {task.task_id for task in tasks}
    assert await cluster.one.get(first[0].task.task_id) == first[0].task


async def test_what_another_transaction_holds_is_passed_over(cluster: Cluster) -> None:
    tasks = [new_task() for _ in range(3)]
    await cluster.one.create(tasks)
    lease = await cluster.one.register("w", 9, [])

    holder = await connect(cluster.address)
    await holder.run(b"BEGIN", bind("SELECT 1 FROM task WHERE task_id = %s FOR UPDATE", tasks[1].task_id))
    got = await cluster.one.poll(lease, ["echo"], 9)
    holder.close()
    assert [item.task.task_id for item in got] == [tasks[0].task_id, tasks[2].task_id]


@pytest.mark.parametrize("ends", [True, False])
async def test_a_claim_waits_for_who_may_be_ending_its_lease(cluster: Cluster, ends: bool) -> None:
    task = new_task()
    await cluster.one.create([task])
    lease = await cluster.one.register("w", 9, [])
    verdicts: list[Claimed | Refused] = []

    async def claim() -> None:
        verdicts.extend(await cluster.one.claim(lease, [task.task_id]))

    judge = await connect(cluster.address)
    await judge.run(b"BEGIN", bind("UPDATE worker_registry SET state = 'LOST' WHERE epoch = %s", lease.epoch))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim)
        await trio.sleep(0.3)
        assert not verdicts
        await judge.run(b"COMMIT" if ends else b"ROLLBACK")
    judge.close()
    if ends:
        assert verdicts == [Refused(Refusal.NO_LEASE)]
    assert isinstance(verdicts[0], Refused) == ends


@pytest.mark.parametrize("how", ["claim", "poll"])
async def test_a_cap_holds_over_processes(cluster: Cluster, how: str) -> None:
    await cluster.one.change_task_type("echo", {"max_concurrent": 3})
    tasks = [new_task() for _ in range(30)]
    await cluster.one.create(tasks)
    got: list[str] = []

    async def take(store: MySqlStore, lease: Lease, part: int) -> None:
        if how == "poll":
            verdicts = list(await store.poll(lease, ["echo"], 2))
        else:
            verdicts = list(await store.claim(lease, [task.task_id for task in tasks[part::5]]))
        got.extend(item.task.task_id for item in verdicts if isinstance(item, Claimed))

    leases = [
        (store, await store.register(str(store is cluster.one), 9, [])) for store in (cluster.one, cluster.other)
    ]
    async with trio.open_nursery() as nursery:
        for store, lease in leases:
            for part in range(5):
                nursery.start_soon(take, store, lease, part)
    assert len(got) == len(set(got)) == 3
    assert await cluster.one.running("echo") == 3


async def test_settings_changed_by_several_at_once_lose_no_change(cluster: Cluster) -> None:
    changes = [{"max_concurrent": 7}, {"enabled": False}, {"retry_delay": 9.5}, {"default_timeout": 1.5}]
    async with trio.open_nursery() as nursery:
        for number, change in enumerate(changes):
            nursery.start_soon((cluster.one, cluster.other)[number % 2].change_task_type, "t", change)
    settings = (await cluster.one.task_types())["t"]
    assert (settings.max_concurrent, settings.enabled) == (7, False)
    assert (settings.retry_delay, settings.default_timeout) == (9.5, 1.5)


# the leader


async def test_one_leads_until_its_time_is_over(cluster: Cluster) -> None:
    one, other = cluster.one, cluster.other
    assert await one.campaign("a", 5)
    assert not await other.campaign("b", 5)
    cluster.advance(4)
    assert await one.campaign("a", 5), "it goes on"
    cluster.advance(4)
    assert not await other.campaign("b", 5)
    cluster.advance(2)
    assert await other.campaign("b", 5)
    assert not await one.campaign("a", 5)


async def test_who_resigns_is_followed_at_once(cluster: Cluster) -> None:
    assert await cluster.one.campaign("a", 5)
    assert await cluster.one.campaign("a", 0)
    assert await cluster.other.campaign("b", 5)


async def test_of_many_candidates_one_leads(cluster: Cluster) -> None:
    won: list[str] = []

    async def run(store: MySqlStore, name: str) -> None:
        if await store.campaign(name, 5):
            won.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(run, (cluster.one, cluster.other)[number % 2], str(number))
    assert len(won) == 1
