"""Who leads: terms, their ends, and what a new leader finds."""

from __future__ import annotations

import trio

from atm.nursery.balance import LeastTask
from contracts.hall import PATIENCE, hint, leading, worker
from coordinators.conftest import OpenNode, eventually, standing
from servers import RedisServer

LONG = 60.0


async def test_the_leader_s_name_stands_in_redis(redis_db: RedisServer, open_node: OpenNode) -> None:
    node = await open_node(leader_ttl=0.6)
    async with leading(node, "one:boot"):
        assert redis_db.call("GET", "scheduler:leader") == "one:boot"
        assert 0 < redis_db.call("PTTL", "scheduler:leader") <= 600
        assert node.leader() == "one:boot"


async def test_one_leads_and_the_others_know_who(open_node: OpenNode) -> None:
    one, two = await open_node(), await open_node()
    async with leading(one, "one:boot"), standing(two, "two:boot") as terms:
        await eventually(lambda: two.leader() == "one:boot")
        assert terms.begun == 0


async def test_a_term_outlasts_its_ttl_while_it_is_renewed(open_node: OpenNode) -> None:
    one, two = await open_node(leader_ttl=1.5), await open_node(leader_ttl=1.5)
    async with standing(one, "one:boot") as first:
        await eventually(lambda: first.begun)
        async with standing(two, "two:boot") as second:
            await trio.sleep(2)
            assert (first.begun, first.ended, second.begun) == (1, 0, 0)


async def test_another_leads_when_the_leader_died_without_a_word(
    redis_db: RedisServer, open_node: OpenNode
) -> None:
    redis_db.call("SET", "scheduler:leader", "dead:boot", "PX", 300)
    async with leading(await open_node(), "one:boot"):
        assert redis_db.call("GET", "scheduler:leader") == "one:boot"


async def test_a_leader_that_leaves_hands_over_at_once(open_node: OpenNode) -> None:
    """Without the word the follower would come back a minute later."""
    one, two = await open_node(leader_ttl=LONG, renew_interval=LONG), await open_node(renew_interval=LONG)
    async with trio.open_nursery() as nursery:
        async with leading(one, "one:boot"):
            terms = await nursery.start(_stand_for_good, two)
            await eventually(lambda: two.leader() == "one:boot")
        await eventually(lambda: terms.begun)
        nursery.cancel_scope.cancel()


async def _stand_for_good(coordinator: object, *, task_status: trio.TaskStatus[object]) -> None:
    async with standing(coordinator, "two:boot") as terms:  # type: ignore[arg-type]
        task_status.started(terms)
        await trio.sleep_forever()


async def test_a_leader_whose_right_another_has_steps_down(redis_db: RedisServer, open_node: OpenNode) -> None:
    one = await open_node()
    async with standing(one, "one:boot") as terms:
        await eventually(lambda: terms.begun)
        redis_db.call("SET", "scheduler:leader", "other:boot", "PX", 60_000)
        await eventually(lambda: terms.ended)
        await eventually(lambda: one.leader() == "other:boot")
        assert terms.begun == 1
        redis_db.call("DEL", "scheduler:leader")
        await eventually(lambda: terms.begun == 2)


async def test_a_leader_that_leaves_takes_no_other_s_right(redis_db: RedisServer, open_node: OpenNode) -> None:
    one = await open_node(renew_interval=LONG, leader_ttl=LONG)
    async with leading(one, "one:boot"):
        redis_db.call("SET", "scheduler:leader", "other:boot")
    await one.overview()
    assert redis_db.call("GET", "scheduler:leader") == "other:boot"


async def test_a_leader_steps_down_while_redis_does_not_answer(open_node: OpenNode) -> None:
    with RedisServer() as server:
        one = await open_node(server, leader_ttl=0.6)
        async with standing(one, "one:boot") as terms:
            await eventually(lambda: terms.begun)
            server.pause()
            try:
                await eventually(lambda: terms.ended)
                assert one.leader() is None
            finally:
                server.resume()
            await eventually(lambda: terms.begun == 2)


async def test_a_new_leader_asks_for_what_the_last_one_handed_over(
    redis_db: RedisServer, open_node: OpenNode
) -> None:
    one, two, working = await open_node(), await open_node(), await open_node()
    async with leading(one, "one:boot"):
        await working.register(worker("w"))
        await eventually(lambda: redis_db.call("HGET", "worker:w", "leader") == "one:boot")
        await one.push([hint("a1")])
        assert await one.dispatch(LeastTask(), 10) == 1
        assert redis_db.call("LLEN", "worker:w:queue") == 1
    async with leading(two, "two:boot"):
        assert redis_db.call("LLEN", "worker:w:queue") == 0
        await eventually(lambda: redis_db.call("HGET", "worker:w", "leader") == "two:boot")
        assert await two.dispatch(LeastTask(), 10) == 1


async def test_a_worker_not_heard_in_this_term_gets_nothing(redis_db: RedisServer, open_node: OpenNode) -> None:
    facts = ("name", "w", "address", "", "capacity", 10, "current_load", 0, "last_heartbeat", 5, "draining", 0)
    redis_db.call("HSET", "workers", "w", '["a"]')
    redis_db.call("HSET", "worker:w", *facts, "leader", "before:boot")
    node = await open_node()
    async with leading(node, "one:boot"):
        await node.push([hint("a1")])
        assert await node.dispatch(LeastTask(), 10) == 0
        redis_db.call("HSET", "worker:w", "leader", "one:boot")
        assert await node.dispatch(LeastTask(), 10) == 1


async def test_who_does_not_lead_dispatches_nothing(redis_db: RedisServer, open_node: OpenNode) -> None:
    one, two = await open_node(), await open_node()
    async with leading(one, "one:boot"):
        await two.register(worker("w"))
        await two.push([hint("a1")])
        await two.overview()
        assert await two.dispatch(LeastTask(), 10) == 0
        redis_db.call("SET", "scheduler:leader", "two:boot")
        assert await one.dispatch(LeastTask(), 10) == 0
    assert redis_db.call("LLEN", "queue:normal") == 1


# what the queues hold


async def _rebuild(node: object) -> None:
    await node.begin_rebuild()  # type: ignore[attr-defined]
    await node.push([hint("a1")])  # type: ignore[attr-defined]
    await node.end_rebuild()  # type: ignore[attr-defined]


async def test_new_queues_are_forgotten_ones_until_they_are_filled(
    redis_db: RedisServer, open_node: OpenNode
) -> None:
    node = await open_node()
    async with leading(node):
        assert await node.has_forgotten()
        await node.push([hint("old", 1), hint("x", 0, 5), hint("b1")])
        await _rebuild(node)
        assert not await node.has_forgotten()
        assert redis_db.call("LRANGE", "queue:normal", 0, -1) == ["a1:a"]
        assert redis_db.call("EXISTS", "queue:high", "queue:delayed") == 0
    async with leading(node, "another:boot"):
        assert not await node.has_forgotten()


async def test_a_rebuild_drops_what_stood_anywhere(redis_db: RedisServer, open_node: OpenNode) -> None:
    node = await open_node()
    async with leading(node):
        await node.register(worker("w", types="ab", capacity=2))
        await node.push([hint("x1"), hint("a2"), hint("b3"), hint("a4", 0, 50)])
        assert await node.dispatch(LeastTask(), 10) == 2
        taken = await node.take("w")
        await node.block("w", taken[:1])
        await node.begin_rebuild()
        lists = [name for name in redis_db.call("KEYS", "*") if redis_db.call("TYPE", name) in ("list", "zset")]
        assert lists == []
        assert redis_db.call("EXISTS", "queue:parked", "queue:room") == 0


async def test_when_all_was_flushed_the_term_ends_and_the_next_one_knows(
    redis_db: RedisServer, open_node: OpenNode
) -> None:
    node = await open_node()
    async with standing(node, "one:boot") as terms:
        await eventually(lambda: terms.begun)
        await _rebuild(node)
        assert not await node.has_forgotten()
        redis_db.flushall()
        await eventually(lambda: terms.begun == 2)
        assert await node.has_forgotten()


async def test_when_the_mark_alone_is_gone_the_next_look_ends_the_term(
    redis_db: RedisServer, open_node: OpenNode
) -> None:
    node = await open_node()
    async with standing(node, "one:boot") as terms:
        await eventually(lambda: terms.begun)
        await _rebuild(node)
        redis_db.call("DEL", "scheduler:incarnation")
        await node.dispatch(LeastTask(), 10)
        await eventually(lambda: terms.begun == 2)


async def test_queues_out_of_an_old_dump_are_forgotten_ones(open_node: OpenNode) -> None:
    with RedisServer("save 3600 1") as server:
        node = await open_node(server, leader_ttl=LONG)
        async with standing(node, "one:boot") as terms:
            await eventually(lambda: terms.begun)
            await _rebuild(node)
            assert not await node.has_forgotten()
            server.restart()
            assert server.call("GET", "scheduler:leader") == "one:boot"
            assert server.call("LLEN", "queue:normal") == 1
            await eventually(lambda: terms.begun == 2)
            with trio.fail_after(PATIENCE):
                await node.back()
            assert await node.has_forgotten()


async def test_a_rebuild_that_lost_something_ends_the_term(redis_db: RedisServer, open_node: OpenNode) -> None:
    node = await open_node()
    async with standing(node, "one:boot") as terms:
        await eventually(lambda: terms.begun)
        await node.begin_rebuild()
        redis_db.call("CLIENT", "KILL", "TYPE", "normal")
        await node.push([hint("a1")])
        await node.end_rebuild()
        await eventually(lambda: terms.begun == 2)
        with trio.fail_after(PATIENCE):
            await node.back()
        assert await node.has_forgotten()
