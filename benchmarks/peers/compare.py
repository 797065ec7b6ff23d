"""The peers' figures, and how the product's compare with them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers import fetch
from benchmarks.peers.fetch import NotToBeHadError
from benchmarks.peers.redis import private_redis
from benchmarks.table import Figure

HERE = Path(__file__).parent
PATIENCE = 600.0
OURS = "end to end, backlog filled first, in process"
OUR_PICKUP = "idle pick-up p50"
"""The lines of the product that are compared."""

Measure = Callable[[int, int], dict[str, float]]


def compare(tasks: int, rounds: int, samples: int, ours: Sequence[Figure]) -> Iterator[Figure]:
    """Measure each peer; a peer that cannot be had is named and passed over."""
    peers: list[tuple[str, Measure, float | None]] = [
        ("BullMQ, Redis in memory", bullmq_in_memory, 2.0),
        ("BullMQ, Redis with each write on disk", bullmq_durable, None),
        ("Huey on SQLite", huey_on_sqlite, None),
    ]
    for name, measure, target in peers:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            found = [measure(tasks, samples) for _ in range(rounds)]
        except NotToBeHadError as error:
            print(f"skipped {name}: {error}", file=sys.stderr, flush=True)
            continue
        figures = {key: statistics.median(one[key] for one in found) for key in found[0]}
        yield from _lines(name, figures, {figure.name: figure.value for figure in ours}, target)


def _lines(name: str, theirs: dict[str, float], ours: dict[str, float], target: float | None) -> Iterator[Figure]:
    yield Figure(f"{name}: end to end, backlog filled first", theirs["done"], "tasks/s")
    if OURS in ours:
        yield Figure("    ours : theirs", ours[OURS] / theirs["done"], "times", target)
    if "bulk" in theirs:
        yield Figure("    enqueue in batches of 500", theirs["bulk"], "tasks/s")
    yield Figure("    enqueue one by one", theirs["single"], "tasks/s")
    yield Figure("    idle pick-up p50", theirs["p50"], "ms")
    yield Figure("    idle pick-up p99", theirs["p99"], "ms")
    if OUR_PICKUP in ours:
        yield Figure("    theirs : ours (p50; ours has HTTP in it)", theirs["p50"] / ours[OUR_PICKUP], "times")


@contextmanager
def new_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="atm-peer-") as name:
        yield Path(name)


def bullmq_in_memory(tasks: int, samples: int) -> dict[str, float]:
    return bullmq(tasks, samples, durable=False)


def bullmq_durable(tasks: int, samples: int) -> dict[str, float]:
    return bullmq(tasks, samples, durable=True)


def bullmq(tasks: int, samples: int, *, durable: bool) -> dict[str, float]:
    # Modules are looked for above the script, so it has to stand in the folder of the packages.
    script = Path(shutil.copy(HERE / "bullmq.mjs", fetch.bullmq()))
    with new_folder() as folder, private_redis(folder, durable=durable) as port:
        return _run(["node", str(script), str(port), str(tasks), str(samples)], script.parent, {})


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
