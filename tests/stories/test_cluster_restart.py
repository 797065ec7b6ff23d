"""All nodes are replaced, one after the other, while clients go on."""

from __future__ import annotations

import httpx

from servers import Databases
from stories.cluster import Cluster, Node, all_succeed, until


def restart(node: Node) -> None:
    assert node.stop() == 0
    node.start().ready()
    until(lambda: node.is_ready, f"{node.name} asks for requests")


def test_a_rolling_restart_under_load(mariadb: Databases) -> None:
    """A client that goes to the next node when one cannot be reached does not notice."""
    with Cluster(mariadb) as cluster:
        nodes = cluster.start("one", "two", "three")
        with cluster.load(*nodes, task_type="nap", payload={"seconds": 0.1}) as load:
            load.wait_for_more()
            for node in nodes:
                restart(node)
                load.wait_for_more()
        # The documented set: no node there, and 503 from one that goes. No request was accepted and then dropped.
        assert load.unexpected == []
        reasons = {type(error) for error in load.unanswered}
        assert reasons <= {httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError}, reasons
        assert None not in load.put_off, "a 503 says when to try again"
        all_succeed(nodes[0], load.acknowledged)
        assert len(set(load.acknowledged)) == len(load.acknowledged), "no create was carried out twice"
        # A task may have been claimed by a node that was about to go, and given back before it began.
        runs = cluster.runs()
        assert {runs[task_id] for task_id in load.acknowledged} == {1}, "what ran was let finish"
