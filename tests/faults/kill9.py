"""A node under load is killed with SIGKILL at random moments and started again; then everything is checked.

    python -m tests.faults.kill9 --kills 100 --rate 200 --seed 7

Exits 1 if an invariant of checker.py was broken. The folder with all that was left is kept with --keep.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from atm.task import TERMINAL

from . import evidence as looking
from .checker import Violation, check
from .evidence import Evidence
from .ledger import Ledger
from .load import TASK_TYPES, Load
from .node import Node
from .wire import Wire

SHORTEST, LONGEST = 0.3, 3.0
"""Seconds of a life, counted from ready."""

EARLY = 0.15
"""The part of the kills that hit a node while it starts and recovers."""

END_PATIENCE = 240.0
"""Seconds in which all tasks must have ended after the last kill."""

LOGS_READ_BY_API = 300


@dataclass
class Report:
    evidence: Evidence
    violations: list[Violation]
    kills: int
    rate: float
    seed: int
    load_seconds: float
    seconds: float
    exit_status: int

    def text(self) -> str:
        rows = _rows(self)
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        lines += [f"  {violation}" for violation in self.violations[:40]]
        return "\n".join(lines)


async def run(
    folder: Path, *, kills: int, rate: float, seed: int, say: Callable[[str], Any] = lambda text: None
) -> Report:
    """Kill and check. Raises when the node ends by itself or the tasks do not end in time."""
    luck = random.Random(seed)
    node, ledger = Node(folder), Ledger()
    wire = Wire(node.port)
    load = Load(wire, ledger, rate, random.Random(luck.random()))
    began = time.monotonic()
    try:
        node.start()
        await node.ready(wire)
        for name, settings in TASK_TYPES.items():
            await wire.request("PUT", f"/api/v1/task-types/{name}", settings)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            for number in range(1, kills + 1):
                await _live(node, wire, luck)
                node.kill()
                wire.node_died()
                say(f"kill {number} of {kills}, {len(ledger.creates)} creates")
                node.start()
            await node.ready(wire)
            load_seconds = time.monotonic() - began
            load.stop()
        served = await _all_ended(node, wire)
        sample = luck.sample(sorted(served), min(LOGS_READ_BY_API, len(served)))
        served_logs = {task_id: await looking.read_api_log(wire, task_id) for task_id in sample}
        await wire.aclose()
        exit_status = await node.stop()
    finally:
        node.make_sure_it_ended()
    tasks, logs = looking.read_file(node.file)
    runs, twice = looking.read_runs(folder / "runs.jsonl")
    evidence = Evidence(ledger, node.lives, tasks, logs, served, served_logs, runs, twice)
    seconds = time.monotonic() - began
    return Report(evidence, check(evidence), kills, rate, seed, load_seconds, seconds, exit_status)


async def _live(node: Node, wire: Wire, luck: random.Random) -> None:
    if len(node.lives) > 1 and luck.random() < EARLY:
        await trio.sleep(luck.uniform(0, 0.8))
        return
    await node.ready(wire)
    await trio.sleep(min(LONGEST, SHORTEST + luck.expovariate(1.0)))


async def _all_ended(node: Node, wire: Wire) -> dict[str, dict[str, Any]]:
    """Every task by the API, read once all have ended.

    Two lists that are empty one after the other prove nothing: a retry moves from the one to the other in
    between. That each task was terminal when it was read does, as nobody opens one again now.
    """
    with trio.fail_after(END_PATIENCE):
        while True:
            for status in ("PENDING", "PROCESSING"):
                while (await looking.get(wire, f"/api/v1/tasks?status={status}&limit=1"))["tasks"]:
                    node.check_alive()
                    await trio.sleep(0.1)
            served = await looking.read_api(wire)
            if all(task["status"] in TERMINAL for task in served.values()):
                return served


def _rows(report: Report) -> list[tuple[str, str]]:
    evidence, ledger = report.evidence, report.evidence.ledger
    tasks, creates = evidence.tasks.values(), evidence.ledger.creates
    states = Counter(task.status for task in tasks)
    starts = [life.ready_after for life in evidence.lives if life.ready_after is not None]
    cut = sum(run.end_ns is None for run in evidence.runs.values())
    poison = sum(task.recoveries > 3 for task in tasks)
    broken = Counter(violation.law for violation in report.violations)
    return [
        ("kills with SIGKILL", f"{report.kills} (seed {report.seed})"),
        ("load", f"{report.rate:g} creates a second while it is up, {_mean_rate(report):.0f} with its deaths"),
        ("creates acknowledged", f"{len(ledger.acknowledged()):,}"),
        ("creates repeated after a lost answer", f"{sum(create.repeated > 0 for create in creates):,}"),
        ("creates unknown (lost answer, no key)", f"{sum(create.given_up for create in creates):,}"),
        ("cancels by answer", _counts(Counter(str(a or "lost") for v in ledger.cancels.values() for a in v))),
        ("retries by answer", _counts(Counter(str(a or "lost") for v in ledger.retries.values() for a in v))),
        ("tasks by final state", _counts(states)),
        ("attempts", f"{sum(task.attempt for task in tasks):,}, of them cut off by a kill {cut:,}"),
        ("recoveries", f"{_recoveries(evidence):,}, tasks taken for poison {poison:,}"),
        ("log rows", f"{sum(len(rows) for rows in evidence.logs.values()):,}"),
        ("start to ready", f"median {statistics.median(starts):.2f} s, longest {max(starts):.2f} s"),
        ("duration", f"{report.seconds:.0f} s, {report.load_seconds:.0f} s of it under load"),
        ("exit status at the end", str(report.exit_status)),
        ("violations", f"{len(report.violations)} {_counts(broken)}".rstrip()),
    ]


def _mean_rate(report: Report) -> float:
    return len(report.evidence.ledger.creates) / report.load_seconds


def _recoveries(evidence: Evidence) -> int:
    """By the log: the counters on the rows begin anew with a user's retry."""
    return sum(row.message.startswith("Recovered") for rows in evidence.logs.values() for row in rows)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rate", type=float, default=200, help="tasks created a second (default 200)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--keep", metavar="FOLDER", help="use this folder and leave it")
    chosen = parser.parse_args()
    work = partial(run, kills=chosen.kills, rate=chosen.rate, seed=chosen.seed, say=_say)
    if chosen.keep:
        Path(chosen.keep).mkdir(parents=True, exist_ok=False)
        report = trio.run(partial(work, Path(chosen.keep)))
    else:
        with tempfile.TemporaryDirectory(prefix="atm-kill9-") as folder:
            report = trio.run(partial(work, Path(folder)))
    print(report.text())
    return 1 if report.violations or report.exit_status else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
