"""The embedded node against its targets, and beside its peers in the same run.

    python benchmarks/embedded.py
    python benchmarks/embedded.py --only backlog live --rounds 5
    python benchmarks/embedded.py --peers --large

Every node is a real one: all features on, ``synchronous=FULL``, the defaults of ``python -m atm`` in an empty
folder. A ratio of 1 or more meets the target. Figures drift from run to run, so the ratios against the peers,
measured in turns with them, say more than the absolute numbers.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load import percentile
from benchmarks.nodes import ROOT, NodeProcess
from benchmarks.peers.compare import compare
from benchmarks.table import Figure, render
from benchmarks.wire import Connection, request_bytes

BATCH = 500
DONE = 'task_duration_seconds_count{status="success",task_type="noop"}'
PICKUP_P50 = "idle pick-up p50"
PATIENCE = 300.0
"""Seconds that anything may take."""

ASIDE = 0.03
"""Seconds after which the result of a pick-up is asked for, so that answering it is not in the way."""

SLEEPERS = 10_000
SMALL, LARGE = 20_000, 2_000_000
"""Rows of the two files whose cost is compared."""


@dataclass(frozen=True)
class Plan:
    """How much is measured. ``folder``: where the files go."""

    tasks: int
    rounds: int
    samples: int
    capacity: int
    seconds: float
    folder: str | None

    def worker(self, **settings: object) -> dict[str, object]:
        return {"capacity": self.capacity, **settings}


def new_folder(plan: Plan) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="atm-bench-", dir=plan.folder)


def inside(plan: Plan, mode: str, *options: str) -> dict[str, float]:
    """One measurement of ``benchmarks.inside``, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inside", mode, "--tasks", str(plan.tasks)]
    command += ["--capacity", str(plan.capacity), *options]
    if plan.folder:
        command += ["--folder", plan.folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE * 4, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def our_rate(plan: Plan) -> float:
    return inside(plan, "backlog")["tasks_per_second"]


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def within(plan: Plan, mode: str, text: str) -> Iterator[Figure]:
    found = medians([inside(plan, mode) for _ in range(plan.rounds)])
    yield Figure(f"{text}, in process", found["tasks_per_second"], "tasks/s", 15_000)
    yield Figure(
        "    submitting alone" if mode == "backlog" else "    submitting", found["submitted_per_second"], "tasks/s"
    )
    yield Figure("    CPU a 1,000 tasks", found["cpu_per_1000"], "s")


def backlog(plan: Plan) -> Iterator[Figure]:
    yield from within(plan, "backlog", "end to end, backlog filled first")
    found = medians([backlog_over_http(plan) for _ in range(plan.rounds)])
    yield Figure("end to end, backlog filled first, by HTTP", found["done"], "tasks/s", 15_000)
    yield Figure("create by batches of 500, HTTP", found["created"], "tasks/s", 40_000)


def live(plan: Plan) -> Iterator[Figure]:
    yield from within(plan, "live", "end to end, submit while it runs")
    found = medians([live_over_http(plan) for _ in range(plan.rounds)])
    yield Figure("end to end, batches by HTTP while it runs", found["done"], "tasks/s", 15_000)
    yield Figure("    CPU a 1,000 tasks", found["cpu"], "s")


def post_batches(port: int, count: int, connections: int = 8) -> float:
    """Create ``count`` no-op tasks by batches; seconds taken."""
    sizes = [min(BATCH, count - at) for at in range(0, count, BATCH)]
    bodies = {
        size: request_bytes(
            "POST", "/api/v1/tasks/batch", {"tasks": [{"task_type": "noop", "payload": {"n": 1}}] * size}
        )
        for size in set(sizes)
    }
    failed: list[str] = []

    def post() -> None:
        with Connection(port) as connection:
            while sizes:
                status, content = connection.send(bodies[sizes.pop()])
                if status != 201:
                    failed.append(f"{status} {content[:200]!r}")

    threads = [threading.Thread(target=post) for _ in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(failed[0])
    return time.perf_counter() - began


def wait_for(what: Callable[[], bool], pause: float = 0.1) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError("it takes too long")
        time.sleep(pause)


def last_end(folder: Path) -> float:
    """When the last task ended, by the store: seconds since 1970."""
    database = sqlite3.connect(folder / "atm.db")
    try:
        return float(database.execute("SELECT max(completed_at) FROM task").fetchone()[0]) / 1000
    finally:
        database.close()


def backlog_over_http(plan: Plan) -> dict[str, float]:
    with new_folder(plan) as name:
        folder = Path(name)
        with NodeProcess(folder, worker=plan.worker(enabled=False)) as node:
            created = plan.tasks / post_batches(node.port, plan.tasks)
        with NodeProcess(folder, worker=plan.worker()) as node:
            began = time.time()
            wait_for(lambda: node.metric(DONE) >= plan.tasks)
        return {"created": created, "done": plan.tasks / (last_end(folder) - began)}


def live_over_http(plan: Plan) -> dict[str, float]:
    with new_folder(plan) as name:
        folder = Path(name)
        with NodeProcess(folder, worker=plan.worker()) as node:
            began, cpu = time.time(), node.cpu_seconds()
            post_batches(node.port, plan.tasks)
            wait_for(lambda: node.metric(DONE) >= plan.tasks)
            cpu = 1000 * (node.cpu_seconds() - cpu) / plan.tasks
        return {"done": plan.tasks / (last_end(folder) - began), "cpu": cpu}


def singles(plan: Plan) -> Iterator[Figure]:
    """One POST a task, which is run as well."""
    for connections in (1, 8, 32):
        with new_folder(plan) as name, NodeProcess(Path(name), worker=plan.worker()) as node:
            found = load(node.port, connections, plan.seconds)
        at_32 = connections == 32
        text = f"create one by one, {connections} connection{'s' if connections > 1 else ''}"
        yield Figure(text, found["per_second"], "req/s", 1_000 if at_32 else None)
        yield Figure("    p50", found["p50_ms"], "ms")
        yield Figure("    p99", found["p99_ms"], "ms", 80 if at_32 else None, at_most=True)
        if found["errors"]:
            yield Figure("    refused", found["errors"], "requests", 0)
    with new_folder(plan) as name, NodeProcess(Path(name), worker=plan.worker(enabled=False)) as node:
        found = load(node.port, 32, plan.seconds)
    yield Figure("create one by one, 32 connections, nothing runs", found["per_second"], "req/s")


def load(port: int, connections: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.load", str(port), "--connections", str(connections)]
    command += ["--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def pickup(plan: Plan) -> Iterator[Figure]:
    """From before the POST to the executor's first line, on an idle node."""
    with new_folder(plan) as name, NodeProcess(Path(name)) as node, node.connect() as connection:
        latencies = [one_pickup(connection) for _ in range(plan.samples + 20)][20:]
    yield Figure(PICKUP_P50, statistics.median(latencies), "ms", 3, at_most=True)
    yield Figure("idle pick-up p99", percentile(latencies, 0.99), "ms", 8, at_most=True)


def one_pickup(connection: Connection) -> float:
    request = request_bytes("POST", "/api/v1/tasks", {"task_type": "stamp"})
    time.sleep(random.uniform(0.005, 0.025))
    sent = time.monotonic_ns()
    _, content = connection.send(request)
    task_id = json.loads(content)["data"]["task_id"]
    time.sleep(ASIDE)
    task = connection.call("GET", f"/api/v1/tasks/{task_id}?wait=10")
    return float(task["result"]["began_ns"] - sent) / 1e6


def cancels(plan: Plan) -> Iterator[Figure]:
    """From before the POST to ``Cancelled`` raised in the executor, and to the answer."""
    seen, answered = [], []
    with new_folder(plan) as name, NodeProcess(Path(name)) as node, node.connect() as connection:
        for number_ in range(plan.samples // 3 + 5):
            one_seen, one_answered = one_cancel(connection, Path(name) / f"cancelled-{number_}")
            seen.append(one_seen)
            answered.append(one_answered)
    yield Figure("cancel of a running task, seen p50", statistics.median(seen[5:]), "ms", 5, at_most=True)
    yield Figure("cancel of a running task, seen p99", percentile(seen[5:], 0.99), "ms", 20, at_most=True)
    yield Figure("    answered as CANCELLED p50", statistics.median(answered[5:]), "ms")
    yield Figure("    answered as CANCELLED p99", percentile(answered[5:], 0.99), "ms")


def one_cancel(connection: Connection, file: Path) -> tuple[float, float]:
    body = {"task_type": "until_cancelled", "payload": {"file": str(file)}}
    path = f"/api/v1/tasks/{connection.call('POST', '/api/v1/tasks', body)['task_id']}"
    wait_for(lambda: connection.call("GET", path)["status"] == "PROCESSING", 0.002)
    time.sleep(random.uniform(0.005, 0.02))
    request = request_bytes("POST", f"{path}/cancel")
    sent = time.monotonic_ns()
    status, content = connection.send(request)
    answered = time.monotonic_ns()
    if status != 200:
        raise RuntimeError(f"cancel: {status} {content!r}")
    return (int(file.read_text()) - sent) / 1e6, (answered - sent) / 1e6


def sleepers(plan: Plan) -> Iterator[Figure]:
    """Many executors that wait at the same time."""
    worker = {"capacity": SLEEPERS, "graceful_shutdown_timeout": "100ms"}
    body = {"tasks": [{"task_type": "sleep", "payload": {"seconds": 3600}, "timeout": 7200}] * 1000}
    with new_folder(plan) as name, NodeProcess(Path(name), worker=worker) as node, node.connect() as connection:
        before = node.rss_mb()
        began = time.perf_counter()
        for _ in range(SLEEPERS // 1000):
            connection.call("POST", "/api/v1/tasks/batch", body)
        wait_for(lambda: running_now(connection) >= SLEEPERS, 0.02)
        taken = time.perf_counter() - began
        time.sleep(1)
        yield Figure(f"{SLEEPERS:,} sleepers: alive", running_now(connection), "tasks", SLEEPERS)
        yield Figure("    memory of the node", node.rss_mb(), "MB", 100, at_most=True)
        yield Figure("    of it for them", node.rss_mb() - before, "MB")
        yield Figure("    all asleep after", taken, "s")


def running_now(connection: Connection) -> int:
    return sum(worker["current_load"] for worker in connection.call("GET", "/api/v1/workers"))


def rows(plan: Plan) -> Iterator[Figure]:
    """The cost of a task beside few and many others that wait."""
    small = medians([inside(plan, "live", "--waiting", str(SMALL)) for _ in range(plan.rounds)])
    large = inside(plan, "live", "--waiting", str(LARGE))
    yield Figure(f"end to end, {SMALL:,} other rows", small["tasks_per_second"], "tasks/s")
    yield Figure(f"end to end, {LARGE:,} other rows", large["tasks_per_second"], "tasks/s")
    cost = large["cpu_per_1000"] / small["cpu_per_1000"]
    yield Figure("    CPU a task, many rows : few", cost, "times", 1.1, at_most=True)


SECTIONS = {
    "backlog": backlog,
    "live": live,
    "singles": singles,
    "pickup": pickup,
    "cancels": cancels,
    "sleepers": sleepers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, "rows"], help="measure these alone")
    parser.add_argument("--tasks", type=int, default=20_000, help="no-op tasks a round (default 20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the median counts (default 3)")
    parser.add_argument("--samples", type=int, default=300, help="samples of a latency (default 300)")
    parser.add_argument("--seconds", type=float, default=4, help="seconds of load a line (default 4)")
    parser.add_argument("--capacity", type=int, default=100, help="slots (default 100, as embedded)")
    parser.add_argument("--folder", help="where files go (default: the system's temporary folder)")
    parser.add_argument("--large", action="store_true", help=f"also with {LARGE:,} rows; takes minutes")
    parser.add_argument("--peers", action="store_true", help="also BullMQ and Huey, where they can be installed")
    chosen = parser.parse_args()
    plan = Plan(chosen.tasks, chosen.rounds, chosen.samples, chosen.capacity, chosen.seconds, chosen.folder)
    wanted = {name: SECTIONS[name] for name in SECTIONS if not chosen.only or name in chosen.only}
    if chosen.large or "rows" in (chosen.only or ()):
        wanted["rows"] = rows
    figures: list[Figure] = []
    for name, section in wanted.items():
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        figures += section(plan)
    if chosen.peers:
        pickup_p50 = next((figure.value for figure in figures if figure.name == PICKUP_P50), None)
        figures += compare(plan.tasks, plan.rounds, plan.samples, partial(our_rate, plan), pickup_p50)
    print(render(figures))


if __name__ == "__main__":
    main()
