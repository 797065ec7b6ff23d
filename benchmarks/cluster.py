"""The cluster against its targets, and beside BullMQ in the same rounds.

    python benchmarks/cluster.py
    python benchmarks/cluster.py --only backlog --rounds 5 --peers
    python benchmarks/cluster.py --only failover
    python benchmarks/cluster.py --large

MariaDB and Redis are private ones: commits are durable and go to a disk. Every node is a real one, a process with
all features on. A ratio of 1 or more meets the target. Figures drift from run to run, so the ratios against the
peer, measured in turns with it, say more than the absolute numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.embedded import (
    DONE,
    LARGE,
    SMALL,
    Plan,
    load,
    medians,
    one_cancel,
    one_pickup,
    post_batches,
    wait_for,
)
from benchmarks.ground import PARTS, Cluster, Ground
from benchmarks.inside import UNSUPPORTED
from benchmarks.load import percentile
from benchmarks.nodes import NodeProcess
from benchmarks.peers.compare import bullmq_in_memory
from benchmarks.peers.fetch import NotToBeHadError
from benchmarks.table import Figure, render
from benchmarks.wire import Connection, request_bytes

WARM_UP = 20
"""Samples of a latency that do not count."""

PEER_TARGET = 1.3
MANY_SLOTS = 700
"""Of a node whose tasks mostly wait, or are over at once: the larger its batches, the less each task costs.
With more than are handed out at a time (500), some are claimed while others are recorded."""

FAILOVERS = 25
PEER_SAMPLES = 20
POLL = 0.25
"""Seconds between two looks at whether all is done; each costs the nodes some milliseconds."""

SLICE = 50_000
"""Rows that are copied by a statement."""

IDLE = 5.0
"""Seconds for which the cost of doing nothing is measured."""

TASK_COLUMNS = (
    "task_type, status, priority, payload, timeout, max_retry, created_at, due_at, sweep_at, log_count, slack"
)
LOG_COLUMNS = "log_id, log_type, from_status, to_status, message, worker_id, attempt, created_at"

T = TypeVar("T")


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def latencies(name: str, found: Sequence[float], p50: float | None, p99: float | None) -> Iterator[Figure]:
    yield Figure(f"{name} p50", statistics.median(found), "ms", p50, at_most=True)
    yield Figure(f"{name} p99", percentile(found, 0.99), "ms", p99, at_most=True)


# how many


def backlog(ground: Ground, plan: Plan, *, peers: bool) -> Iterator[Figure]:
    """One node and two, two with many slots, and BullMQ with as many between them, round after round."""
    many = replace(plan, capacity=MANY_SLOTS)
    settings = {"one node": (plan, 1), "two nodes": (plan, 2), f"two nodes of {MANY_SLOTS} slots": (many, 2)}
    ours: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    theirs: dict[int, list[float]] = {plan.capacity: [], MANY_SLOTS: []}
    for number in range(plan.rounds):
        for name, (how, count) in settings.items():
            ours[name].append(backlog_round(ground, how, count))
            if peers and count == 2 and (rate := peer_rate(how)):
                theirs[how.capacity].append(rate)
        words = [f"{name} {rounds[-1]['done']:,.0f}/s" for name, rounds in ours.items()]
        words += [f"BullMQ of {slots} {rounds[-1]:,.0f}/s" for slots, rounds in theirs.items() if rounds]
        told(f"round {number + 1}: {', '.join(words)}")
    for name, rounds in ours.items():
        found = medians(rounds)
        yield Figure(f"end to end, backlog filled first, {name}", found["done"], "tasks/s")
        for part in PARTS:
            yield Figure(f"    CPU a task, {part}", found[part], "µs")
    yield Figure("create by batches of 500, HTTP", medians(ours["two nodes"])["created"], "tasks/s", 40_000)
    if all(theirs.values()):
        pairs = {how.capacity: ours[name] for name, (how, count) in settings.items() if count == 2}
        yield from against_peer(
            {slots: [one["done"] for one in rounds] for slots, rounds in pairs.items()}, theirs
        )


def against_peer(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> Iterator[Figure]:
    """With as many slots each, and each with the number of slots that it is faster with."""
    for slots, rates in theirs.items():
        ratios = [one / rate for one, rate in zip(ours[slots], rates, strict=True)]
        yield Figure(f"BullMQ, Redis in memory, 2 × {slots}: end to end", statistics.median(rates), "tasks/s")
        yield Figure(f"    ours with 2 × {slots} : theirs, by rounds", statistics.median(ratios), "times")
    best, best_of_theirs = (max(map(statistics.median, rates.values())) for rates in (ours, theirs))
    yield Figure(
        "    ours : theirs, each with what it is faster with", best / best_of_theirs, "times", PEER_TARGET
    )


def peer_rate(plan: Plan) -> float | None:
    try:
        return bullmq_in_memory(plan.tasks, PEER_SAMPLES, plan.capacity)["done"]
    except NotToBeHadError as error:
        told(f"skipped BullMQ: {error}")
        return None


def backlog_round(ground: Ground, plan: Plan, count: int) -> dict[str, float]:
    """Fill while no worker is there; start workers while nobody leads; then let one lead."""
    with ground.cluster(plan.folder) as cluster:
        with cluster.node("filler", "api scheduler") as filler:
            created = plan.tasks / post_batches(filler.port, plan.tasks)
        cluster.hold_leadership()
        with started(cluster, plan, count) as nodes:
            cpu = cluster.cpu(*nodes)
            began = time.time()
            cluster.let_lead()
            wait_for(lambda: sum(node.metric(DONE) for node in nodes) >= plan.tasks, POLL)
            used = {part: spent - cpu[part] for part, spent in cluster.cpu(*nodes).items()}
        ended = float(cluster.sql("SELECT MAX(completed_at) FROM task")) / 1000
    each = {part: 1e6 * spent / plan.tasks for part, spent in used.items()}
    return {"created": created, "done": plan.tasks / (ended - began), **each}


@contextlib.contextmanager
def started(cluster: Cluster, plan: Plan, count: int) -> Iterator[list[NodeProcess]]:
    """So many nodes with all roles, once each knows all workers."""
    with contextlib.ExitStack() as stack:
        names = [f"node-{number}" for number in range(1, count + 1)]
        nodes = [stack.enter_context(cluster.node(name, capacity=plan.capacity)) for name in names]
        for node in nodes:
            wait_for_workers(node, count)
        yield nodes


def wait_for_workers(node: NodeProcess, count: int) -> None:
    with node.connect() as connection:
        wait_for(lambda: len(connection.call("GET", "/api/v1/workers")) == count, 0.02)


def singles(ground: Ground, plan: Plan) -> Iterator[Figure]:
    """One POST a task, which is run as well."""
    for connections in (1, 8, 32):
        with ground.cluster(plan.folder) as cluster, started(cluster, plan, 1) as (node,):
            found = load(node.port, connections, plan.seconds)
        at_32 = connections == 32
        text = f"create one by one, {connections} connection{'s' if connections > 1 else ''}"
        yield Figure(text, found["per_second"], "req/s", 1_000 if at_32 else None)
        yield Figure("    p50", found["p50_ms"], "ms")
        yield Figure("    p99", found["p99_ms"], "ms", 80 if at_32 else None, at_most=True)
        if found["errors"]:
            yield Figure("    refused", found["errors"], "requests", 0)
    with ground.cluster(plan.folder) as cluster, cluster.node("api", "api scheduler") as node:
        found = load(node.port, 32, plan.seconds)
    yield Figure("create one by one, 32 connections, nothing runs", found["per_second"], "req/s")


# how fast


@contextlib.contextmanager
def apart(ground: Ground, plan: Plan) -> Iterator[tuple[Cluster, Connection]]:
    """One node answers and leads, another one runs the tasks; the connection is to the first."""
    with (
        ground.cluster(plan.folder) as cluster,
        cluster.node("front", "api scheduler") as front,
        cluster.node("runner", "worker", capacity=plan.capacity),
        front.connect() as connection,
    ):
        wait_for_workers(front, 1)
        yield cluster, connection


def pickup(ground: Ground, plan: Plan) -> Iterator[Figure]:
    """From before the POST to the executor's first line, on idle nodes."""
    with apart(ground, plan) as (_, connection):
        found = pickups(connection, plan.samples)
    yield from latencies("idle pick-up, API and worker on two nodes,", found, 6, 15)
    with (
        ground.cluster(plan.folder) as cluster,
        started(cluster, plan, 1) as (node,),
        node.connect() as connection,
    ):
        found = pickups(connection, plan.samples)
    yield from latencies("idle pick-up, both on one node,", found, 6, 15)


def pickups(connection: Connection, count: int) -> list[float]:
    return [one_pickup(connection) for _ in range(WARM_UP + count)][WARM_UP:]


def cancels(ground: Ground, plan: Plan) -> Iterator[Figure]:
    """From before the POST to ``Cancelled`` raised in the executor on another node, and to the answer."""
    with apart(ground, plan) as (cluster, connection):
        samples = range(WARM_UP + plan.samples // 3)
        found = [one_cancel(connection, cluster.folder / f"cancelled-{n}") for n in samples][WARM_UP:]
    seen, answered = zip(*found, strict=True)
    yield from latencies("cancel of a task on another node, seen", seen, 5, 20)
    yield from latencies("    answered as CANCELLED", answered, None, None)


# how soon again


def failover(ground: Ground, plan: Plan) -> Iterator[Figure]:
    """Nodes that only lead, and one that runs: from the leader's end to the next leader's first dispatch."""
    killed, asked, named = [], [], []
    with (
        ground.cluster(plan.folder) as cluster,
        cluster.node("runner", "api worker", capacity=plan.capacity) as runner,
        runner.connect() as connection,
        contextlib.ExitStack() as stack,
    ):
        leaders = {name: cluster.node(name, "scheduler") for name in ("leader-1", "leader-2")}
        for node in leaders.values():
            stack.enter_context(node)
        for _ in range(FAILOVERS):
            killed.append(one_end(cluster, leaders, partial(kill, connection)))
        for _ in range(FAILOVERS):
            found = one_end(cluster, leaders, partial(hand_over, cluster, connection))
            named.append(found[0])
            asked.append(found[1])
    yield from latencies("leader killed with -9, next dispatch", killed, None, 800)
    yield from latencies("leader ended with SIGTERM, next dispatch", asked, None, 100)
    yield from latencies("    the next leader is known", named, None, None)


def one_end(cluster: Cluster, leaders: dict[str, NodeProcess], end: Callable[[NodeProcess], T]) -> T:
    """End whoever leads, and start it anew."""
    wait_for(lambda: cluster.leader() in leaders, 0.01)
    time.sleep(random.uniform(0.1, 0.3))
    leader = leaders[str(cluster.leader())]
    found = end(leader)
    leader.wait()
    leader.__enter__()
    return found


def stamp(connection: Connection) -> int:
    """When a task, created now, began."""
    _, content = connection.send(request_bytes("POST", "/api/v1/tasks", {"task_type": "stamp"}))
    task_id = json.loads(content)["data"]["task_id"]
    return int(connection.call("GET", f"/api/v1/tasks/{task_id}?wait=10")["result"]["began_ns"])


def kill(connection: Connection, leader: NodeProcess) -> float:
    ended = time.monotonic_ns()
    leader.signal(signal.SIGKILL)
    leader.wait()
    return (stamp(connection) - ended) / 1e6


def hand_over(cluster: Cluster, connection: Connection, leader: NodeProcess) -> tuple[float, float]:
    before = cluster.leader()
    ended = time.monotonic_ns()
    leader.signal(signal.SIGTERM)
    wait_for(lambda: cluster.leader() not in (before, None), 0.001)
    known = time.monotonic_ns()
    return (known - ended) / 1e6, (stamp(connection) - ended) / 1e6


# how much lies there


def rows(ground: Ground, plan: Plan) -> Iterator[Figure]:
    """The cost of a task beside few and many others that wait."""
    small, large = (rows_round(ground, plan, count) for count in (SMALL, LARGE))
    for count, found in ((SMALL, small), (LARGE, large)):
        yield Figure(f"end to end, batches by HTTP while it runs, {count:,} other rows", found["done"], "tasks/s")
        for part in PARTS:
            yield Figure(f"    CPU a task, {part}", found[part], "µs")
        yield Figure("    CPU before it, nothing to do", found["idle"], "s in 1,000 s")
    cost = sum(large[part] for part in PARTS) / sum(small[part] for part in PARTS)
    yield Figure("    CPU a task, many rows : few", cost, "times", 1.1, at_most=True)


def rows_round(ground: Ground, plan: Plan, waiting: int) -> dict[str, float]:
    with ground.cluster(plan.folder) as cluster:
        with cluster.node("filler", "api") as filler, filler.connect() as connection:
            model = connection.call("POST", "/api/v1/tasks", {"task_type": UNSUPPORTED, "payload": {"n": 1}})
        fill(cluster, model["task_id"], waiting)
        with started(cluster, plan, 1) as (node,):
            wait_until_settled(node)
            before, began = cluster.cpu(node), time.time()
            time.sleep(IDLE)
            cpu, idle_until = cluster.cpu(node), time.time()
            idle = sum(cpu[part] - before[part] for part in PARTS) / (idle_until - began)
            post_batches(node.port, plan.tasks)
            wait_for(lambda: node.metric(DONE) >= plan.tasks, POLL)
            used = {part: spent - cpu[part] for part, spent in cluster.cpu(node).items()}
        ended = float(cluster.sql("SELECT MAX(completed_at) FROM task WHERE status = 'SUCCESS'")) / 1000
    each = {part: 1e6 * spent / plan.tasks for part, spent in used.items()}
    return {"done": plan.tasks / (ended - idle_until), "idle": 1000 * idle, **each}


def fill(cluster: Cluster, model: str, count: int) -> None:
    """Copy the task, and its log, until so many wait."""
    told(f"filling with {count:,} rows …")
    for first in range(1, count, SLICE):
        task_id = "CONCAT('01900000-0000-7000-8000-', LPAD(seq, 12, '0'))"
        source = f"seq_{first}_to_{min(count - 1, first + SLICE - 1)} WHERE m.task_id = '{model}'"
        for table, columns in (("task", TASK_COLUMNS), ("task_logs", LOG_COLUMNS)):
            copies = f"SELECT {task_id}, {columns} FROM {table} m, {source}"  # noqa: S608 - nobody else's words
            cluster.sql(f"INSERT INTO {table} (task_id, {columns}) {copies}")


def wait_until_settled(node: NodeProcess) -> None:
    """Return when the queues, rebuilt at the start, do not grow any more."""
    length = -1.0

    def is_settled() -> bool:
        nonlocal length
        before, length = length, node.metric('queue_length{queue="normal"}')
        return length == before

    wait_for(is_settled, 2)


SECTIONS: dict[str, Callable[..., Iterator[Figure]]] = {
    "backlog": backlog,
    "singles": singles,
    "pickup": pickup,
    "cancels": cancels,
    "failover": failover,
}


LONG_SECTIONS = {"rows": rows}


def measure(wanted: Iterable[str], plan: Plan, peers: bool) -> Iterator[Figure]:
    sections = SECTIONS | LONG_SECTIONS | {"backlog": partial(backlog, peers=peers)}
    with Ground() as ground:
        for name in wanted:
            told(f"measuring {name} …")
            yield from sections[name](ground, plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, *LONG_SECTIONS], help="measure these alone")
    parser.add_argument("--tasks", type=int, default=20_000, help="no-op tasks a round (default 20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the median counts (default 3)")
    parser.add_argument("--samples", type=int, default=300, help="samples of a latency (default 300)")
    parser.add_argument("--seconds", type=float, default=4, help="seconds of load a line (default 4)")
    parser.add_argument("--capacity", type=int, default=100, help="slots of a node (default 100)")
    parser.add_argument("--folder", help="where the nodes' folders go (default: the system's temporary folder)")
    parser.add_argument("--large", action="store_true", help=f"also with {LARGE:,} rows; takes minutes")
    parser.add_argument("--peers", action="store_true", help="also BullMQ, where it can be installed")
    chosen = parser.parse_args()
    # However it ends, its nodes end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    plan = Plan(chosen.tasks, chosen.rounds, chosen.samples, chosen.capacity, chosen.seconds, chosen.folder)
    wanted = [name for name in SECTIONS if not chosen.only or name in chosen.only]
    if chosen.large or "rows" in (chosen.only or ()):
        wanted.append("rows")
    print(render(measure(wanted, plan, chosen.peers)))


if __name__ == "__main__":
    main()
