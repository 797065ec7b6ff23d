"""Who hands out the tasks may vanish at any time: another does it, and nothing is lost."""

from __future__ import annotations

from servers import Databases
from stories.cluster import Cluster, all_succeed, until


def test_the_leader_is_killed_under_load(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [door] = cluster.start("door", roles="api worker")
        cluster.start("first", "second", roles="scheduler")
        with cluster.load(door) as load:
            load.wait_for_more()
            leader = cluster.wait_for_leader()
            leader.kill()
            cluster.wait_for_leader(other_than=leader)
            load.wait_for_more()
            # Back again, it is one who waits for its turn.
            leader.start().ready()
            load.wait_for_more()
        assert (load.put_off, load.unanswered, load.unexpected) == ([], [], [])
        all_succeed(door, load.acknowledged)


def test_a_leader_that_stops_hands_over(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [door] = cluster.start("door", roles="api worker")
        cluster.start("first", "second", roles="scheduler")
        with cluster.load(door) as load:
            load.wait_for_more()
            leader = cluster.wait_for_leader()
            assert leader.stop() == 0
            cluster.wait_for_leader(other_than=leader)
            load.wait_for_more()
        all_succeed(door, load.acknowledged)


def test_a_leader_that_was_paused_finds_itself_replaced(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [door] = cluster.start("door", roles="api worker")
        cluster.start("first", "second", roles="scheduler")
        former = cluster.wait_for_leader()
        former.pause()
        leader = cluster.wait_for_leader(other_than=former)
        former.resume()
        until(lambda: former.metric("atm_leader") == 0, "the former leader knows that its term is over")
        assert door.task(door.create("quick"), wait=20)["status"] == "SUCCESS"
        assert leader.metric("atm_leader") == 1
