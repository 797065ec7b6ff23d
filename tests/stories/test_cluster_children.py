"""A parent on one node, its child on another."""

from __future__ import annotations

from typing import Any

from servers import Databases
from stories.cluster import LEASE, OVERTIME, Cluster, Node, until
from stories.side_by_side import side_by_side

LOST = LEASE + OVERTIME + 25


def parents_and_children(cluster: Cluster, child_type: str) -> tuple[Node, Node]:
    """A node for parents, and one for their children."""
    one = cluster.node("one", {"ATM_WORKER__SUPPORTED_TYPES": "family"}).start()
    two = cluster.node("two", {"ATM_WORKER__SUPPORTED_TYPES": child_type}).start()
    return one.ready(), two.ready()


def child_of(door: Node, task_id: str, status: str) -> dict[str, Any]:
    """The only child, once it has this status."""

    def found() -> list[dict[str, Any]]:
        tasks = door.data(f"/tasks?parent_id={task_id}")["tasks"]
        assert len(tasks) <= 1
        return [task for task in tasks if task["status"] == status]

    return until(found, f"the child of {task_id} is {status}", LOST)[0]


@side_by_side
def test_a_cancel_reaches_the_child_on_the_other_node_and_waits_for_its_end(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        one, two = parents_and_children(cluster, "tidy")
        for door in (one, two):
            task_id = door.create("family", payload={"child": "tidy"})
            child = child_of(door, task_id, "PROCESSING")
            assert (child["worker_id"], door.task(task_id)["worker_id"]) == ("two", "one")
            answer = door.cancel(task_id)
            assert (answer.status_code, answer.json()["message"]) == (200, "Task cancelled successfully")
            assert (two.folder / f"tidied-{child['task_id']}").exists()
            parent, child = door.task(task_id), door.task(child["task_id"])
            assert (parent["status"], child["status"]) == ("CANCELLED", "CANCELLED")
            assert parent["completed_at"] >= child["completed_at"]


@side_by_side
def test_a_retried_parent_does_not_start_its_child_twice(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        one, _ = parents_and_children(cluster, "nap")
        payload = {"child": "nap", "payload": {"seconds": 3}, "fails": True}
        task_id = one.create("family", payload=payload)
        task = one.task(task_id, wait=20)
        assert (task["status"], task["attempt"]) == ("SUCCESS", 2)
        assert task["result"]["result"] == {"node": "two", "attempt": 1}
        assert cluster.runs() == {task_id: 2, task["result"]["child"]: 1}


@side_by_side
def test_a_parent_whose_worker_is_killed_finds_its_child_again(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        one, two = parents_and_children(cluster, "nap")
        task_id = one.create("family", payload={"child": "nap", "payload": {"seconds": 4}}, max_retry=0)
        child = child_of(two, task_id, "PROCESSING")
        one.kill()
        assert two.wait_for(child["task_id"], "SUCCESS")["attempt"] == 1
        one.start().ready()
        task = two.wait_for(task_id, "SUCCESS", LOST)
        assert (task["attempt"], task["recoveries"], task["worker_id"]) == (2, 1, "one")
        assert task["result"]["result"] == {"node": "two", "attempt": 1}
        assert cluster.runs()[child["task_id"]] == 1


@side_by_side
def test_a_cancel_outlives_the_worker_of_the_parent(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        one, two = parents_and_children(cluster, "tidy")
        task_id = one.create("family", payload={"child": "tidy"})
        child_of(two, task_id, "PROCESSING")
        one.kill()
        # The parent's row waits for the lease to end, the child for nothing.
        assert two.cancel(task_id).status_code == 202
        child = child_of(two, task_id, "CANCELLED")
        task = two.wait_for(task_id, "CANCELLED", LOST)
        assert task["completed_at"] >= child["completed_at"]
