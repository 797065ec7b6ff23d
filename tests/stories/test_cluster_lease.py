"""A worker's right to its tasks is a lease. Who does not renew it loses them, and cannot harm them any more."""

from __future__ import annotations

from servers import Databases
from stories.cluster import LEASE, OVERTIME, Cluster, Node, until
from stories.side_by_side import side_by_side

CONFIG_EXIT = 78
LOST = LEASE + OVERTIME + 25
"""Seconds until a lost worker's task has to run elsewhere, on a busy machine."""


def holder_of(cluster: Cluster, door: Node, task_id: str) -> Node:
    """The node that runs the task."""
    return cluster.nodes[door.wait_for(task_id, "PROCESSING")["worker_id"]]


@side_by_side
def test_a_killed_workers_task_is_carried_out_by_another(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [door] = cluster.start("door", roles="api scheduler")
        cluster.start("one", "two", roles="worker")
        task_id = door.create("stubborn", max_retry=0)
        victim = holder_of(cluster, door, task_id)
        victim.kill()

        task = door.wait_for(task_id, "SUCCESS", LOST)
        assert task["result"] == {"node": "two" if victim.name == "one" else "one", "attempt": 2}
        assert (task["recoveries"], task["retry_count"]) == (1, 0), "a lost worker costs no retry"
        told = [(row["message"], row.get("worker_id")) for row in door.logs(task_id)]
        assert ("Task assigned to worker", victim.name) in told
        assert "Recovered: its worker was lost" in [message for message, _ in told]


@side_by_side
def test_what_a_paused_worker_comes_back_with_is_refused(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [door] = cluster.start("door", roles="api scheduler")
        cluster.start("one", "two", roles="worker")
        task_id = door.create("blind", payload={"seconds": 3}, max_retry=0)
        paused = until(
            lambda: [node for node in cluster.nodes.values() if (node.folder / "blind").exists()], "it runs"
        )[0]
        paused.pause()

        task = door.wait_for(task_id, "SUCCESS", LOST)
        other = "two" if paused.name == "one" else "one"
        assert task["result"] == {"node": other, "attempt": 2}

        # It wakes up in the middle of its attempt, which ends well.
        paused.resume()
        until(lambda: paused.metric("atm_stale_results_total") == 1, "its result is refused")
        assert door.task(task_id) == task, "the other's result stands"
        assert paused.metric("atm_lease_losses_total") == 1

        # It goes on, under a new lease.
        cluster.nodes[other].stop()
        assert door.task(door.create("quick"), wait=20)["result"]["node"] == paused.name


@side_by_side
def test_a_second_node_of_the_same_worker_id_gives_up_while_the_first_lives(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [first] = cluster.start("first", environ={"ATM_WORKER__ID": "twin"})
        [second] = cluster.start("second", environ={"ATM_WORKER__ID": "twin"})
        # It serves its API meanwhile, and the first does the work.
        assert second.task(second.create("quick"), wait=20)["result"]["node"] == "first"

        assert second.ended() == CONFIG_EXIT
        assert second.complaints == [
            "atm: worker.id: twin is in use by another node; each node needs an id of its own"
        ]
        assert first.task(first.create("quick"), wait=20)["result"] == {"node": "first", "attempt": 1}


@side_by_side
def test_a_second_node_of_the_same_worker_id_takes_over_from_one_that_was_killed(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [first] = cluster.start("first", environ={"ATM_WORKER__ID": "twin"})
        task_id = first.create("stubborn", max_retry=0)
        first.wait_for(task_id, "PROCESSING")
        first.kill()

        [second] = cluster.start("second", environ={"ATM_WORKER__ID": "twin"})
        assert second.task(task_id)["status"] == "PROCESSING", "until the lease is over it is the first one's"
        task = second.wait_for(task_id, "SUCCESS", LOST)
        assert task["result"] == {"node": "second", "attempt": 2}
        assert second.running


@side_by_side
def test_a_paused_node_whose_worker_id_another_has_taken_over_ends_when_it_wakes(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [first] = cluster.start("first", environ={"ATM_WORKER__ID": "twin"})
        task_id = first.create("stubborn", max_retry=0)
        first.wait_for(task_id, "PROCESSING")
        first.pause()

        [second] = cluster.start("second", environ={"ATM_WORKER__ID": "twin"})
        task = second.wait_for(task_id, "SUCCESS", LOST)
        assert task["result"] == {"node": "second", "attempt": 2}

        first.resume()
        assert first.ended() == CONFIG_EXIT
        assert first.complaints[-1] == (
            "atm: worker.id: twin is in use by another node; each node needs an id of its own"
        )
        assert second.task(task_id) == task
        assert second.task(second.create("quick"), wait=20)["result"]["node"] == "second"
