"""Huey on an SQLite file: the backlog is filled first, then two consumer processes work it off.

    python huey_side.py FILE TASKS SAMPLES      prints one line of JSON

The consumers import this module too. Huey has to be on the path.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from huey import SqliteHuey

FILE = os.environ.get("HUEY_FILE") or sys.argv[1]
PATIENCE = 120.0
"""Seconds that the backlog may take."""

huey = SqliteHuey("bench", filename=FILE)


@huey.task()
def noop(n: int) -> int:
    return n


@huey.task()
def stamp() -> int:
    return time.monotonic_ns()


def start_consumer() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "huey.bin.huey_consumer", "huey_side.huey", "-w", "2", "-k", "process", "-q"]
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, env=os.environ | {"HUEY_FILE": FILE, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )


def pick_up() -> float:
    time.sleep(random.uniform(0.005, 0.025))
    sent = time.monotonic_ns()
    began: int = stamp().get(blocking=True, timeout=10, backoff=1, max_delay=0.01)
    return (began - sent) / 1e6


def measure(count: int, samples: int) -> dict[str, float]:
    began = time.perf_counter()
    for _ in range(count):
        noop(1)
    single = count / (time.perf_counter() - began)
    consumer = start_consumer()
    try:
        deadline = time.monotonic() + PATIENCE
        while huey.result_count() == 0 and time.monotonic() < deadline:
            time.sleep(0.002)
        had, began = huey.result_count(), time.perf_counter()
        while huey.result_count() < count and time.monotonic() < deadline:
            time.sleep(0.02)
        if huey.result_count() < count:
            raise TimeoutError("the consumers do not get it done")
        done = (count - had) / (time.perf_counter() - began)
        latencies = sorted([pick_up() for _ in range(samples + 20)][20:])
    finally:
        consumer.terminate()
        consumer.wait()
    return {
        "single": single,
        "done": done,
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))],
    }


if __name__ == "__main__":
    # Tasks are named after their module, so it has to be the one that the consumers import.
    from huey_side import measure as measure_as_module

    print(json.dumps(measure_as_module(int(sys.argv[2]), int(sys.argv[3]))))
