"""What nodes leave in Redis, and what they tell each other through it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import redis
import trio
import trio.testing

from atm.coordinator import CancelRequest, Hint, TaskEvent
from atm.coordinators import redis_words
from atm.coordinators.redis import RedisCoordinator
from atm.coordinators.redis_dispatch import VIEW_AGE
from atm.coordinators.redis_wire import Line, Script
from atm.nursery.balance import LeastTask
from atm.nursery.scanner import scan
from atm.task import Status
from contracts.hall import PATIENCE, PATIENT_TTL, Hall, hint, leading, redis_hall, serving, worker
from coordinators.conftest import OpenNode, eventually, settings_of
from servers import RedisServer


@pytest.fixture
async def hall(redis_server: RedisServer) -> Any:
    async with redis_hall(redis_server) as opened, serving(opened.coordinator), leading(opened.coordinator):
        yield opened


def keys(server: RedisServer) -> set[str]:
    """But for those that come and go by themselves."""
    return set(server.call("KEYS", "*")) - {"scheduler:leader", "scheduler:bell", "scheduler:probe"}


# what an operator sees


async def test_an_operator_finds_workers_leader_and_queues(hall: Hall, redis_server: RedisServer) -> None:
    await hall.worker("w1", types=["a", "b:c"], capacity=3, load=1, address="http://10.0.0.1:8080", last_seen=5.25)
    await hall.push("a1", "a2", "x3")
    await hall.push("a4", priority=1)
    await hall.push("a5", delay=1000)
    await hall.overview()
    assert redis_server.call("GET", "scheduler:leader") == "node-1"
    assert redis_server.call("LLEN", "queue:high") == 1
    assert redis_server.call("LRANGE", "queue:normal", 0, -1) == ["a1:a", "a2:a", "x3:x"]
    assert redis_server.call("ZRANGE", "queue:delayed", 0, -1) == ["a5:a:0"]
    assert redis_server.call("SMEMBERS", "worker:type:b:c") == ["w1"]
    facts = redis_server.call("HGETALL", "worker:w1")
    assert dict(zip(facts[::2], facts[1::2], strict=True)) == {
        "id": "w1",
        "name": "w1",
        "address": "http://10.0.0.1:8080",
        "capacity": "3",
        "current_load": "1",
        "supported_types": '["a","b:c"]',
        "last_heartbeat": "5.250",
        "draining": "0",
        "leader": "node-1",
    }
    assert 0 < redis_server.call("TTL", "worker:w1") <= 30
    assert await hall.dispatch() == 2
    assert redis_server.call("LRANGE", "worker:w1:queue", 0, -1) == ["a4:a:1", "a1:a:0"]
    await hall.take("w1")
    assert redis_server.call("LRANGE", "worker:w1:taken", 0, -1) == ["a4:a:1", "a1:a:0"]


async def test_parked_tasks_stand_in_lines_of_their_own(hall: Hall, redis_server: RedisServer) -> None:
    await hall.worker(types=["a"])
    await hall.push("x1", "y2", "x3")
    await hall.push("x4", priority=-1)
    assert await hall.dispatch() == 0
    assert redis_server.call("LRANGE", "queue:parked:x:0", 0, -1) == ["x1:x", "x3:x"]
    assert sorted(redis_server.call("SMEMBERS", "queue:parked")) == ["x:-1", "x:0", "y:0"]


async def test_types_may_have_colons(hall: Hall) -> None:
    await hall.worker(types=["mail:send:1"])
    await hall.coordinator.push([Hint("t1", "mail:send:1", -1), Hint("t2", "mail:send:1", 1, 0.01)])
    await hall.sleep(2)
    assert await hall.serve() == ["t2", "t1"]
    assert hall.taken["t1"] == Hint("t1", "mail:send:1", -1)
    await hall.block("t1")
    await hall.coordinator.unblock("mail:send:1", 1)
    assert await hall.serve() == ["t1"]


async def test_of_what_is_withdrawn_no_key_is_left(hall: Hall, redis_server: RedisServer) -> None:
    await hall.worker(types=["a"])
    await hall.overview()
    before = keys(redis_server)
    hints = [Hint("t1", "mail:send:1", -1), Hint("t2", "mail:send:1", 1), Hint("t3", "mail:send:1", 1, 1000.0)]
    await hall.coordinator.push([*hints, hint("a4", delay=1000.0), hint("x5")])
    assert await hall.dispatch() == 0
    assert sorted(redis_server.call("SMEMBERS", "queue:parked")) == ["mail:send:1:-1", "mail:send:1:1", "x:0"]
    await hall.coordinator.withdraw([*hints, hint("a4"), hint("x5")])
    await hall.overview()
    assert keys(redis_server) == before


async def test_what_is_withdrawn_is_not_searched_for_in_long_lists(hall: Hall, redis_server: RedisServer) -> None:
    await hall.worker(types=["a"], capacity=2)
    lengths = {"queue:parked:x:0": 10_000, "queue:parked:y:0": 10_001, "queue:normal": 10_001}
    for key, length in lengths.items():
        name = key[-3] if "parked" in key else "z"
        redis_server.call("RPUSH", key, *(f"{name}{number}:{name}" for number in range(length)))
    redis_server.call("SADD", "queue:parked", "x:0", "y:0")
    await hall.withdraw("x7", "y7", "z7")
    await hall.overview()
    left = {key: redis_server.call("LLEN", key) for key in lengths}
    assert left == lengths | {"queue:parked:x:0": 9_999}


async def test_keys_return_to_what_they_were(hall: Hall, redis_server: RedisServer) -> None:
    await hall.overview()
    before = keys(redis_server)
    for turn in range(3):
        await hall.worker(f"w{turn}", types=["a", "b"])
        names = [f"{kind}{number}" for number in range(5) for kind in "ab"]
        await hall.push(*names, priority=turn - 1)
        await hall.push("a-late", delay=1)
        await hall.sleep(2)
        taken = await hall.serve(f"w{turn}")
        await hall.block(*taken[:3], worker_id=f"w{turn}")
        await hall.coordinator.unblock("a", None)
        await hall.coordinator.unblock("b", None)
        await hall.settle(*taken[3:], worker_id=f"w{turn}")
        taken = await hall.serve_one_by_one(f"w{turn}")
        await hall.coordinator.unregister(f"w{turn}")
    await hall.overview()
    assert keys(redis_server) == before


async def test_the_age_of_a_queue_is_that_of_the_id_at_its_head(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 1_760_000_000
    monkeypatch.setattr(redis_words.time, "time", lambda: made + 30.0)
    prefix = f"{made * 1000:012x}"
    task_id = f"{prefix[:8]}-{prefix[8:]}-7abc-8abc-0123456789ab"
    await hall.coordinator.push([Hint(task_id, "a", 0), Hint("b", "a", 1)])
    assert [queue.oldest_age for queue in await hall.queues()] == [0, 30, 0]


# hand-over


async def test_what_a_worker_does_not_take_goes_to_another(hall: Hall, redis_server: RedisServer) -> None:
    await hall.worker("deaf", capacity=2)
    await hall.push("a1", "a2", "a3")
    assert await hall.dispatch() == 2
    with trio.fail_after(PATIENCE):
        while redis_server.call("LLEN", "worker:deaf:queue"):
            await hall.sleep(1)
            await hall.dispatch()
    assert redis_server.call("LRANGE", "queue:normal", 0, -1) == ["a1:a", "a2:a", "a3:a"]
    assert await hall.dispatch() == 0, "suspect until heard"
    await hall.worker("other", capacity=2)
    assert await hall.serve("other") == ["a1", "a2"]
    assert await hall.dispatch() == 0
    await hall.settle(worker_id="deaf")
    assert await hall.dispatch() == 1
    assert redis_server.call("LRANGE", "worker:deaf:queue", 0, -1) == ["a3:a:0"]


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the scripts that went to Redis together, but for renewals."""
    told: list[list[str]] = []
    evaluate = Line.evaluate

    async def and_tell(line: Line, requests: Sequence[tuple[Script, tuple[bytes, ...]]]) -> list[Any]:
        names = [script.name for script, _ in requests]
        if names != ["renew"]:
            told.append(names)
        return await evaluate(line, requests)

    monkeypatch.setattr(Line, "evaluate", and_tell)
    return told


async def test_what_the_leader_hands_to_its_own_node_is_taken_in_the_same_trip(
    hall: Hall, trips: list[list[str]]
) -> None:
    await hall.worker()
    await hall.dispatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hall.coordinator.take, "w")
        await hall.sleep(5)  # the subscription wakes it too
        await hall.push("a1")
        await hall.dispatch()
    assert ["move", "take"] in trips


@asynccontextmanager
async def scanning(hall: Hall) -> AsyncIterator[None]:
    """Dispatch goes on as it does while a node leads, but for what it does at intervals."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scan, hall.coordinator, hall.balance, 60.0, 100)
        await hall.sleep(5)
        yield
        nursery.cancel_scope.cancel()


async def moved(hall: Hall, trips: list[list[str]]) -> list[str]:
    """The first trip, once something was handed over."""
    await hall.eventually(lambda: any("move" in names for names in trips))
    return trips[0]


async def test_what_is_pushed_where_the_leader_is_is_handed_over_in_the_same_trip_by_what_it_saw_last(
    hall: Hall, trips: list[list[str]]
) -> None:
    await hall.worker()
    async with scanning(hall):
        for name in ("a1", "b2"):
            trips.clear()
            await hall.push(name)
            assert (await moved(hall, trips))[:2] == ["push", "move"]
            assert await hall.take() == [name]


async def test_what_was_seen_long_ago_does_not_count(hall: Hall, trips: list[list[str]]) -> None:
    await hall.worker()
    async with scanning(hall):
        await trio.sleep(VIEW_AGE)
        trips.clear()
        await hall.push("a1")
        assert await moved(hall, trips) == ["push", "look"]


async def test_after_any_other_news_there_is_a_look(hall: Hall, trips: list[list[str]]) -> None:
    await hall.worker()
    async with scanning(hall):
        await hall.push("a1")
        assert await hall.take() == ["a1"]
        trips.clear()
        await hall.block("a1")
        await hall.push("b2")
        await moved(hall, trips)
        assert [name for names in trips for name in names][:3] == ["block", "push", "look"]
        assert await hall.take() == ["b2"]


async def test_no_more_is_handed_over_without_a_look_than_was_free(hall: Hall, trips: list[list[str]]) -> None:
    await hall.worker(capacity=3)
    async with scanning(hall):
        await hall.push("a1")
        await hall.push("a2", "a3", "a4")
        await hall.eventually(lambda: sum("move" in names for names in trips) >= 2)
        await hall.sleep(5)
        assert sum("look" in names for names in trips) >= 2
        assert await hall.take() == ["a1", "a2", "a3"]
        assert await hall.lengths() == [0, 1, 0]


async def test_a_type_that_nobody_runs_is_parked_by_a_look(hall: Hall, trips: list[list[str]]) -> None:
    await hall.worker(types=["a"])
    async with scanning(hall):
        trips.clear()
        await hall.push("b1", "a2")
        assert await moved(hall, trips) == ["push", "look"]
        assert await hall.take() == ["a2"]
        assert await hall.parked() == [0, 1, 0]


async def test_a_worker_that_has_gone_gets_nothing_by_an_old_view(hall: Hall, redis_server: RedisServer) -> None:
    await hall.worker("gone")
    async with scanning(hall):
        redis_server.call("DEL", "worker:gone")
        await hall.push("a1")
        await hall.sleep(5)
        assert redis_server.call("LRANGE", "queue:normal", 0, -1) == ["a1:a"]


async def test_slots_that_become_free_are_filled_by_the_look_of_the_same_trip_and_no_other(
    hall: Hall, trips: list[list[str]]
) -> None:
    await hall.worker(capacity=1)
    await hall.push("a1", "a2")
    assert await hall.serve() == ["a1"]
    await hall.settle("a1", load=1)
    await hall.settled_down()
    trips.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scan, hall.coordinator, hall.balance, 60.0, 100)
        await hall.sleep(5)
        trips.clear()
        await hall.settle(load=0)
        await hall.eventually(lambda: bool(trips) and "move" in trips[-1])
        await hall.sleep(5)
        nursery.cancel_scope.cancel()
    assert trips[0] == ["settle", "look"]
    assert [name for names in trips for name in names].count("look") == 1


async def test_what_a_forgotten_worker_had_goes_back(hall: Hall, redis_server: RedisServer) -> None:
    await hall.worker("w", capacity=2)
    await hall.push("a1", "a2", "b3")
    assert await hall.serve() == ["a1", "a2"]
    await hall.settle("a1")
    await hall.dispatch()
    with trio.fail_after(PATIENCE):
        # A node whose subscription comes late announces its workers once more.
        while redis_server.call("LRANGE", "queue:normal", 0, -1) != ["a2:a", "b3:b"]:
            redis_server.call("DEL", "worker:w")  # as when its time to live is over
            await hall.dispatch()
    assert not {name for name in keys(redis_server) if name.startswith("worker")}
    await hall.settle("a2")
    await hall.sleep(1)
    assert [info.id for info in await hall.workers()] == ["w"], "whoever is heard of is registered again"


async def test_a_worker_that_drains_gives_back_what_it_has_not_taken(
    hall: Hall, redis_server: RedisServer
) -> None:
    await hall.worker(capacity=2)
    await hall.push("a1", "a2")
    assert await hall.serve() == ["a1", "a2"]
    await hall.settle("a1", "a2")
    await hall.push("a3", "a4")
    await hall.dispatch()
    await hall.worker(draining=True)
    await hall.overview()
    assert redis_server.call("LRANGE", "queue:normal", 0, -1) == ["a3:a", "a4:a"]


async def test_a_take_that_is_cancelled_on_its_way_gives_back(open_node: OpenNode) -> None:
    with RedisServer() as server:
        node = await open_node(server)
        async with leading(node):
            await node.register(worker("w"))
            await node.push([hint("a1"), hint("a2", 1)])
            assert await node.dispatch(LeastTask(), 10) == 2
            server.pause()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.take, "w")
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            server.resume()
            await node.overview()
            assert server.call("LRANGE", "queue:normal", 0, -1) == ["a1:a"]
            assert server.call("LRANGE", "queue:high", 0, -1) == ["a2:a"]
            assert server.call("EXISTS", "worker:w:queue", "worker:w:taken") == 0


async def test_an_answer_that_was_lost_is_asked_for_again(redis_db: RedisServer, open_node: OpenNode) -> None:
    node = await open_node()
    async with leading(node):
        await node.register(worker("w"))
        await node.push([hint("a1"), hint("a2")])
        assert await node.dispatch(LeastTask(), 10) == 2
        # As if the answer of an earlier take had not come.
        redis_db.call("RENAME", "worker:w:queue", "worker:w:taken")
        with trio.fail_after(20):
            await node.back()
            redis_db.call("CLIENT", "KILL", "TYPE", "normal")
            await node.overview()
            await node.back()
            assert [item.task_id for item in await node.take("w")] == ["a1", "a2"]


async def test_a_leader_hears_of_other_nodes_pushes(redis_db: RedisServer, open_node: OpenNode) -> None:
    one, two = await open_node(), await open_node()
    async with leading(one):
        await _quiet(one)
        await two.push([hint("a1")])
        with trio.fail_after(20):
            await one.changed()
        await two.push([hint("a2")])
        await two.overview()
        assert redis_db.call("GET", "scheduler:bell") == "1", "rung, and not again until the leader looks"
        await one.dispatch(LeastTask(), 10)
        assert redis_db.call("GET", "scheduler:bell") is None


async def _quiet(node: RedisCoordinator) -> None:
    """Until no news comes any more."""
    while True:
        await node.dispatch(LeastTask(), 10)
        with trio.move_on_after(0.3):
            await node.changed()
            continue
        return


async def test_a_task_runs_from_node_to_node_without_the_scan_interval(open_node: OpenNode) -> None:
    one, two = await open_node(), await open_node()

    async def duties() -> None:
        while True:
            await one.changed()
            await one.dispatch(LeastTask(), 100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.lead, "one:boot", duties)
        await two.register(worker("w"))
        for number in range(20):
            await two.push([hint(f"a{number}")])
            with trio.fail_after(20):
                taken = await two.take("w")
            assert [item.task_id for item in taken] == [f"a{number}"]
            await two.settle("w", taken, 0)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def pair(open_node: OpenNode) -> AsyncIterator[tuple[RedisCoordinator, RedisCoordinator]]:
    """A node that leads, and another one with a worker that has nothing to do."""
    one, two = await open_node(), await open_node()
    async with leading(one):
        await two.register(worker("w"))
        with trio.move_on_after(0.3):
            await two.take("w")  # after a first answer it goes by what it is told
        yield one, two


async def _hand_over(leader: RedisCoordinator, *names: str) -> None:
    await leader.push([hint(name) for name in names])
    with trio.fail_after(PATIENCE):
        while not await leader.dispatch(LeastTask(), 10):
            await trio.sleep(0.005)


async def _take(node: RedisCoordinator) -> list[str]:
    with trio.fail_after(PATIENCE):
        return [item.task_id for item in await node.take("w")]


async def test_what_comes_with_the_wake_up_is_taken_without_a_question(
    pair: tuple[RedisCoordinator, RedisCoordinator], trips: list[list[str]], redis_db: RedisServer
) -> None:
    one, two = pair
    trips.clear()
    await _hand_over(one, "a1", "b2")
    assert await _take(two) == ["a1", "b2"]
    await two.overview()
    assert not any("take" in names for names in trips)
    assert redis_db.call("LRANGE", "worker:w:taken", 0, -1) == ["a1:a:0", "b2:b:0"]
    await two.settle("w", [hint("a1"), hint("b2")], 0)
    await two.overview()
    assert redis_db.call("EXISTS", "worker:w:queue", "worker:w:taken") == 0


async def test_what_is_handed_over_behind_the_wake_up_is_asked_for(
    pair: tuple[RedisCoordinator, RedisCoordinator], redis_db: RedisServer
) -> None:
    one, two = pair
    await _hand_over(one, "a1")
    await _hand_over(one, "a2")
    assert await _take(two) == ["a1"]
    assert await _take(two) == ["a2"]
    assert redis_db.call("LRANGE", "worker:w:taken", 0, -1) == ["a1:a:0", "a2:a:0"]


async def test_what_was_moved_back_before_it_was_taken_does_not_come_to_lie_there_twice(
    pair: tuple[RedisCoordinator, RedisCoordinator], redis_db: RedisServer
) -> None:
    one, two = pair
    await _hand_over(one, "a1", "a2")
    redis_db.call("LREM", "worker:w:queue", 1, "a1:a:0")
    redis_db.call("RPUSH", "queue:normal", "a1:a")
    assert await _take(two) == ["a1", "a2"], "the store will say whose they are"
    await two.overview()
    assert redis_db.call("LRANGE", "worker:w:taken", 0, -1) == ["a2:a:0"]
    assert redis_db.call("LRANGE", "queue:normal", 0, -1) == ["a1:a"]


async def test_scripts_come_back_when_redis_has_forgotten_them(hall: Hall, redis_server: RedisServer) -> None:
    await hall.worker()
    redis_server.call("SCRIPT", "FLUSH")
    await hall.push("a1")
    assert await hall.serve() == ["a1"]


# messages


async def test_a_cancel_reaches_another_node_and_leaves_a_mark(redis_db: RedisServer, open_node: OpenNode) -> None:
    one, two = await open_node(), await open_node()
    got: list[CancelRequest] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(two.listen_cancels, "w", got.append)
        await one.request_cancel("w", CancelRequest("t1", 3))
        await eventually(lambda: got)
        nursery.cancel_scope.cancel()
    assert got == [CancelRequest("t1", 3)]
    assert redis_db.call("GET", "task:cancel:t1") == "3"
    assert 3500 < redis_db.call("TTL", "task:cancel:t1") <= 3600


async def test_ends_are_heard_on_all_nodes_once(open_node: OpenNode) -> None:
    one, two = await open_node(), await open_node()
    heard: tuple[list[TaskEvent], list[TaskEvent]] = ([], [])
    end, last = TaskEvent("t1", Status.SUCCESS), TaskEvent("t3", Status.CANCELLED)
    async with trio.open_nursery() as nursery:
        await nursery.start(one.listen_events, heard[0].extend)
        await nursery.start(two.listen_events, heard[1].extend)
        await one.publish([end, TaskEvent("t2", Status.PROCESSING)])
        await two.publish([last])
        await eventually(lambda: last in heard[0] and end in heard[1])
        nursery.cancel_scope.cancel()
    assert heard[0] == [end, TaskEvent("t2", Status.PROCESSING), last]
    assert sorted(event.task_id for event in heard[1]) == ["t1", "t3"], "of other nodes the ends alone"


async def test_noise_on_the_channels_does_no_harm(redis_db: RedisServer, open_node: OpenNode) -> None:
    node = await open_node()
    ends: list[TaskEvent] = []
    cancels: list[CancelRequest] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(node.listen_events, ends.extend)
        await nursery.start(node.listen_cancels, "w", cancels.append)
        for noise in ("", "x", "a b", "[1]", "\u0000", '{"node":1}'):
            redis_db.call("PUBLISH", "task:ended", noise)
            redis_db.call("PUBLISH", "worker:w:cancel", noise)
        redis_db.call("PUBLISH", "worker:w:cancel", "t1 1")
        await eventually(lambda: cancels)
        nursery.cancel_scope.cancel()
    assert (ends, cancels) == ([], [CancelRequest("t1", 1)])


@contextmanager
def subscribed(server: RedisServer, how: str, name: str) -> Iterator[Any]:
    with redis.Redis(port=server.port, protocol=2) as client, client.pubsub(ignore_subscribe_messages=True) as ear:
        getattr(ear, how)(name)
        assert ear.get_message(timeout=PATIENCE) is None, "the word that it is subscribed"
        yield ear


@pytest.mark.parametrize(("how", "name"), [("subscribe", "task:events"), ("psubscribe", "task:*")])
async def test_programs_may_listen_to_what_happens_to_tasks(
    redis_db: RedisServer, open_node: OpenNode, how: str, name: str
) -> None:
    node = await open_node()
    with subscribed(redis_db, how, name) as ear:
        await node.publish([TaskEvent(f"t-{status}", status) for status in Status])
        await node.overview()
        messages = iter(lambda: ear.get_message(timeout=1), None)
        told = [json.loads(m["data"]) for m in messages if m["channel"] == b"task:events"]
    assert [(event["event"], event["task_id"], event["status"]) for event in told] == [
        ("task_created", "t-PENDING", "PENDING"),
        ("task_assigned", "t-PROCESSING", "PROCESSING"),
        ("task_completed", "t-SUCCESS", "SUCCESS"),
        ("task_failed", "t-FAILED", "FAILED"),
        ("task_failed", "t-TIMEOUT", "TIMEOUT"),
        ("task_cancelled", "t-CANCELLED", "CANCELLED"),
    ]


async def test_with_a_prefix_nothing_stands_or_is_said_without_it(redis_db: RedisServer) -> None:
    node = RedisCoordinator(settings_of(redis_db, prefix="{atm}"), leader_ttl=PATIENT_TTL)
    got: list[CancelRequest] = []
    async with serving(node), leading(node), trio.open_nursery() as nursery:
        await nursery.start(node.listen_cancels, "w", got.append)
        await node.register(worker("w"))
        await node.push([hint("x1"), hint("a2"), hint("a3", 0, 60)])
        assert await node.dispatch(LeastTask(), 10) == 1
        assert [item.task_id for item in await node.take("w")] == ["a2"]
        await node.begin_rebuild()
        await node.end_rebuild()
        redis_db.call("PUBLISH", "{atm}worker:w:cancel", "t1 1")
        await eventually(lambda: got)
        assert all(name.startswith("{atm}") for name in redis_db.call("KEYS", "*"))
        assert all(name.startswith("{atm}") for name in redis_db.call("PUBSUB", "CHANNELS"))
        nursery.cancel_scope.cancel()
