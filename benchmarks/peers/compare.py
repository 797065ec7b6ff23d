"""The peers' figures, and how the product's compare with them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers import fetch
from benchmarks.peers.fetch import NotToBeHadError
from benchmarks.peers.redis import private_redis
from benchmarks.table import Figure

HERE = Path(__file__).parent
SLOTS = 100
"""Of each of BullMQ's two processes."""

PATIENCE = 600.0
"""Seconds that a round of a peer may take."""

Measure = Callable[[int, int], dict[str, float]]


def compare(
    tasks: int, rounds: int, samples: int, ours: Callable[[], float], our_pickup: float | None
) -> Iterator[Figure]:
    """Measure each peer; a peer that cannot be had is named and passed over.

    Args:
        ours: measures the product's tasks a second, backlog filled first. It runs beside each round of a peer,
            as the machine's speed drifts; what counts is the median of the ratios.
        our_pickup: the product's idle pick-up, p50 in milliseconds, where it was measured.
    """
    peers: list[tuple[str, Measure, float | None]] = [
        ("BullMQ, Redis in memory", bullmq_in_memory, 2.0),
        ("BullMQ, Redis with each write on disk", bullmq_durable, None),
        ("Huey on SQLite", huey_on_sqlite, None),
    ]
    for name, measure, target in peers:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            found = [measure(tasks, samples) | {"ours": ours()} for _ in range(rounds)]
        except NotToBeHadError as error:
            print(f"skipped {name}: {error}", file=sys.stderr, flush=True)
            continue
        yield from _lines(name, found, target, our_pickup)


def _lines(
    name: str, found: list[dict[str, float]], target: float | None, our_pickup: float | None
) -> Iterator[Figure]:
    theirs = {key: statistics.median(one[key] for one in found) for key in found[0]}
    ratio = statistics.median(one["ours"] / one["done"] for one in found)
    yield Figure(f"{name}: end to end", theirs["done"], "tasks/s")
    yield Figure("    ours, round by round beside it", theirs["ours"], "tasks/s")
    yield Figure("    ours : theirs", ratio, "times", target)
    if "bulk" in theirs:
        yield Figure("    enqueue in batches of 500", theirs["bulk"], "tasks/s")
    yield Figure("    enqueue one by one", theirs["single"], "tasks/s")
    yield Figure("    idle pick-up p50", theirs["p50"], "ms")
    yield Figure("    idle pick-up p99", theirs["p99"], "ms")
    if our_pickup:
        yield Figure("    theirs : ours (p50; ours has HTTP in it)", theirs["p50"] / our_pickup, "times")


@contextmanager
def new_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="atm-peer-") as name:
        yield Path(name)


def bullmq_in_memory(tasks: int, samples: int, slots: int = SLOTS) -> dict[str, float]:
    return bullmq(tasks, samples, slots, durable=False)


def bullmq_durable(tasks: int, samples: int) -> dict[str, float]:
    return bullmq(tasks, samples, SLOTS, durable=True)


def bullmq(tasks: int, samples: int, slots: int, *, durable: bool) -> dict[str, float]:
    # Modules are looked for above the script, so it has to stand in the folder of the packages.
    script = Path(shutil.copy(HERE / "bullmq.mjs", fetch.bullmq()))
    with new_folder() as folder, private_redis(folder, durable=durable) as port:
        return _run(["node", str(script), str(port), str(tasks), str(samples), str(slots)], script.parent, {})


def huey_on_sqlite(tasks: int, samples: int) -> dict[str, float]:
    environment = {"PYTHONPATH": str(fetch.huey())}
    with new_folder() as folder:
        command = [sys.executable, str(HERE / "huey_side.py"), str(folder / "huey.db"), str(tasks), str(samples)]
        return _run(command, folder, environment)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise NotToBeHadError(f"it failed: {' '.join(done.stderr.split())[-300:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
