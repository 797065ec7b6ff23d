"""The quick start's cluster: nodes with its config.yaml, one truth, whoever is asked."""

from __future__ import annotations

from servers import Databases, RedisServer
from stories.cluster import Cluster, Node, until

CONFIG = """
app:
  name: "async-task-manager"

database:
  host: "127.0.0.1"
  port: {mysql_port}
  user: "{user}"
  password: "{password}"
  database: "{database}"

redis:
  addr: "127.0.0.1:{redis_port}"
  password: ""
  db: 0

scheduler:
  enabled: {scheduler}
  scan_interval: 100ms

worker:
  enabled: true
  id: "{worker}"
  capacity: 10
"""

EMAIL = {"to": "user@example.com", "subject": "Hello", "body": "Test email"}


def configured(cluster: Cluster, name: str, *, scheduler: bool) -> Node:
    """A node that has its settings from the file alone, but for its ports and executors."""
    node = cluster.node(name)
    for key in list(node.environ):
        if key.startswith(("ATM_DATABASE", "ATM_REDIS", "ATM_SCHEDULER", "ATM_WORKER")):
            del node.environ[key]
    server, redis = cluster.mariadb, cluster.redis
    text = CONFIG.format(
        mysql_port=server.port,
        user=server.user,
        password=server.password,
        database=cluster.database,
        redis_port=redis.port,
        scheduler=str(scheduler).lower(),
        worker=name,
    )
    (node.folder / "config.yaml").write_text(text)
    return node


def test_three_nodes_with_two_schedulers_run_the_quick_start(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        # All at once, over an empty database: one of them makes the tables.
        nodes = [
            configured(cluster, name, scheduler=name != "worker-003").start()
            for name in ("worker-001", "worker-002", "worker-003")
        ]
        one, two, three = [node.ready() for node in nodes]

        leader = cluster.wait_for_leader()
        assert leader in (one, two)
        until(lambda: leader.metric("atm_leader") == 1, "the leader's metrics say so")
        assert sum(node.metric("atm_leader") for node in nodes) == 1

        task_id = one.create("send_email", priority=1, payload=EMAIL)
        task = two.task(task_id, wait=10)
        assert (task["status"], list(task["result"])) == ("SUCCESS", ["message_id"])
        assert [node.task(task_id) for node in nodes] == [task] * 3
        sender = cluster.nodes[task["worker_id"]]
        until(lambda: "Test email" in sender.out.read_text(), "the node that sent it has printed it")
        steps = [(row["from_status"], row["to_status"]) for row in three.logs(task_id)]
        assert steps == [(None, "PENDING"), ("PENDING", "PROCESSING"), ("PROCESSING", "SUCCESS")]

        too_late = three.cancel(task_id)
        assert too_late.status_code == 409

        look_as_the_troubleshooting_says(cluster.redis)
        assert [node.stop() for node in nodes] == [0, 0, 0]
        assert [node.complaints for node in nodes] == [[], [], []]


def look_as_the_troubleshooting_says(redis: RedisServer) -> None:
    names = ("worker-001", "worker-002", "worker-003")
    assert {f"worker:{name}" for name in names} <= set(redis.call("KEYS", "worker:*"))
    assert redis.call("HGET", "worker:worker-001", "capacity") == "10"
    assert set(redis.call("SMEMBERS", "worker:type:send_email")) == set(names)
    assert redis.call("GET", "scheduler:leader").startswith("worker-00")
    assert [redis.call("LLEN", f"queue:{name}") for name in ("high", "normal", "low")] == [0, 0, 0]


def test_work_is_shared_among_the_workers(mariadb: Databases) -> None:
    with Cluster(mariadb, environ={"ATM_WORKER__CAPACITY": "2"}) as cluster:
        one, _two = cluster.start("one", "two")
        task_ids = [one.create("nap", payload={"seconds": 0.5}) for _ in range(8)]
        results = [one.task(task_id, wait=20)["result"] for task_id in task_ids]
        assert {result["node"] for result in results} == {"one", "two"}


def test_each_node_has_the_roles_that_it_is_given(mariadb: Databases) -> None:
    """One takes requests, one hands out, one works; together they are the product."""
    with Cluster(mariadb) as cluster:
        [door] = cluster.start("door", roles="api")
        waits = door.create("quick")
        assert door.task(waits)["status"] == "PENDING"
        assert door.cancel(door.create("quick", delay=1000)).status_code == 200
        assert door.cancel(door.create("quick", priority=1)).status_code == 200
        queues = door.data("/queues")
        assert [queue["length"] for queue in queues["queues"]] == [0, 1, 0], "the cancelled ones do not wait"
        assert queues["delayed"] == 0

        [hand] = cluster.start("hand", roles="worker")
        [head] = cluster.start("head", roles="scheduler")
        assert cluster.wait_for_leader() is head
        assert door.task(waits, wait=20)["result"] == {"node": "hand", "attempt": 1}
        assert door.task(door.create("quick"), wait=20)["result"]["node"] == "hand"

        assert [worker["id"] for worker in door.data("/workers")] == ["hand"]
        for node in (hand, head):
            assert "API      off" in node.out.read_text()
        assert [node.stop() for node in (head, hand, door)] == [0, 0, 0]


def test_a_cancel_reaches_the_node_that_runs_the_task(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        [door] = cluster.start("door", roles="api scheduler")
        [hand] = cluster.start("hand", roles="worker")
        task_id = door.create("tidy")
        door.wait_for(task_id, "PROCESSING")

        answer = door.cancel(task_id)
        assert (answer.status_code, answer.json()["message"]) == (200, "Task cancelled successfully")
        assert door.task(task_id)["status"] == "CANCELLED"
        assert (hand.folder / f"tidied-{task_id}").exists(), "the work has ended when the cancel is answered"
        assert door.cancel(task_id).status_code == 200, "once more is the same"
