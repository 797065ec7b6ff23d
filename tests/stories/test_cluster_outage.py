"""Redis holds hints, MariaDB the truth. Either may vanish while the nodes work."""

from __future__ import annotations

from servers import Databases, MariaDb
from stories.cluster import Cluster, all_succeed, until
from stories.side_by_side import side_by_side


def test_redis_is_killed_and_comes_back_empty(mariadb: Databases) -> None:
    """Creates go on, what runs goes on, and even what is new runs, as the nodes ask the store."""
    with Cluster(mariadb) as cluster:
        nodes = cluster.start("one", "two", environ={"ATM_WORKER__CAPACITY": "20"})
        running = nodes[0].create("nap", payload={"seconds": 4})
        nodes[0].wait_for(running, "PROCESSING")
        with cluster.load(*nodes) as load:
            load.wait_for_more()
            cluster.redis.kill()
            load.wait_for_more()
            meanwhile = load.acknowledged[-1]
            assert nodes[0].task(meanwhile, wait=20)["status"] == "SUCCESS"
            cluster.redis.start()
            cluster.wait_for_leader()
            load.wait_for_more()
        assert (load.put_off, load.unanswered, load.unexpected) == ([], [], [])
        all_succeed(nodes[1], [running, *load.acknowledged])
        assert nodes[0].task(running)["attempt"] == 1, "nobody was declared dead"
        workers = {"worker:one", "worker:two"}
        until(lambda: workers <= set(cluster.redis.call("KEYS", "worker:*")), "the workers are registered again")


def test_redis_is_flushed_under_load(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        nodes = cluster.start("one", "two")
        later = nodes[0].create("quick", delay=3)
        with cluster.load(*nodes) as load:
            for _ in range(3):
                load.wait_for_more()
                cluster.redis.flushall()
            cluster.wait_for_leader()
            load.wait_for_more()
        assert (load.put_off, load.unanswered, load.unexpected) == ([], [], [])
        all_succeed(nodes[1], [later, *load.acknowledged])
        runs = cluster.runs()
        assert {runs[task_id] for task_id in [later, *load.acknowledged]} == {1}, "nothing ran twice"


def test_a_redis_that_stalls_holds_nobody_up(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [node] = cluster.start("one")
        assert node.task(node.create("quick"), wait=20)["status"] == "SUCCESS"
        cluster.redis.pause()
        task_id = node.create("quick")
        assert node.task(task_id, wait=20)["status"] == "SUCCESS"
        cluster.redis.resume()
        assert cluster.wait_for_leader() is node
        assert node.task(node.create("quick"), wait=20)["status"] == "SUCCESS"


@side_by_side
def test_the_database_is_killed_and_comes_back(shared: Databases) -> None:
    """Creates are put off in words, and what runs is recorded as if nothing had happened."""
    with MariaDb() as mariadb, Cluster(mariadb) as cluster:
        nodes = cluster.start("one", "two")
        running = nodes[0].create("nap", payload={"seconds": 3})
        nodes[0].wait_for(running, "PROCESSING")
        with cluster.load(*nodes) as load:
            load.wait_for_more()
            mariadb.kill()
            until(lambda: load.put_off, "creates are put off")
            until(lambda: not any(node.is_ready for node in nodes), "no node asks for requests")
            mariadb.start()
            until(lambda: all(node.is_ready for node in nodes), "both ask for requests again")
            load.wait_for_more()
        assert all(value is not None and int(value) > 0 for value in load.put_off), "each says when to try again"
        assert (load.unanswered, load.unexpected) == ([], [])
        all_succeed(nodes[1], [running, *load.acknowledged])
        assert nodes[0].task(running)["attempt"] == 1, "it ran on during the outage, and once"
        assert len(set(load.acknowledged)) == len(load.acknowledged), "no create was carried out twice"


@side_by_side
def test_the_database_is_away_for_longer_than_a_lease(shared: Databases) -> None:
    """Nobody may work without a lease: the run is ended, and begins again when the database is back."""
    with MariaDb() as mariadb, Cluster(mariadb) as cluster:
        [node] = cluster.start("one")
        task_id = node.create("stubborn", max_retry=0)
        node.wait_for(task_id, "PROCESSING")
        mariadb.pause()
        until(lambda: node.metric("atm_lease_losses_total") == 1, "the worker gives up its lease")
        mariadb.resume()
        task = node.wait_for(task_id, "SUCCESS")
        assert task["result"] == {"node": "one", "attempt": 2}
        assert (task["releases"], task["recoveries"], task["retry_count"]) == (1, 0, 0), (
            "it gave the task back itself"
        )
