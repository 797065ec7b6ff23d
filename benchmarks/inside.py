"""A node measured from inside its own process: tasks come by the store and the coordinator, without HTTP.

    python -m benchmarks.inside backlog --tasks 20000
    python -m benchmarks.inside live --tasks 20000 --profile loop

``backlog`` fills the store while no worker is there, then starts a whole node on the file and measures from its
start to the last recorded outcome. ``live`` submits to a running node. ``batches`` and ``singles`` are creates
that do come by HTTP, from another process. One line of JSON comes out.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import trio

import atm.node
from atm import config as configuration
from atm.coordinator import Coordinator, Hint, TaskEvent
from atm.coordinators.local import LocalCoordinator
from atm.metrics import Metrics
from atm.node import Node
from atm.store import NewTask, Store
from atm.stores.sqlite import SqliteStore
from atm.task import TERMINAL, new_task_id
from benchmarks import tasks

BATCH = 500
SUBMITTERS = 2
"""Batches under way at a time, so that the store's writer never waits for the next one."""

UNSUPPORTED = "nobody_runs_this"
"""The type of tasks that are to wait."""

PROFILE_LINES = 40


class Progress:
    """Counts the tasks that came to an end."""

    def __init__(self, wanted: int) -> None:
        self.done = trio.Event()
        self.ended_at = 0.0
        self._left = wanted

    def on_events(self, events: Sequence[TaskEvent]) -> None:
        self._left -= sum(event.status in TERMINAL for event in events)
        if self._left <= 0 and not self.done.is_set():
            self.ended_at = time.perf_counter()
            self.done.set()


class Meter:
    """Time and CPU of a stretch of work, and a profile of it where one is asked for."""

    def __init__(self, profile: str | None = None) -> None:
        self._thread = profile
        self._profile = cProfile.Profile() if profile else None

    def watch_writer(self, store: Store) -> None:
        """Profile the store's writer thread; where the store has no such part, there is nothing to see."""
        writer = getattr(store, "_writing", None)
        if self._thread != "writer" or writer is None or self._profile is None:
            return
        execute, profile = writer._execute, self._profile
        writer._execute = lambda calls: profile.runcall(execute, calls)

    def begin(self) -> None:
        self._began = time.perf_counter()
        self._cpu, self._loop_cpu = time.process_time(), time.thread_time()
        if self._profile is not None and self._thread == "loop":
            self._profile.enable()

    def end(self, count: int, ended_at: float) -> dict[str, float]:
        if self._profile is not None and self._thread == "loop":
            self._profile.disable()
        return {
            "tasks_per_second": count / (ended_at - self._began),
            "cpu_per_1000": 1000 * (time.process_time() - self._cpu) / count,
            "loop_cpu_per_1000": 1000 * (time.thread_time() - self._loop_cpu) / count,
        }

    def report(self) -> None:
        """Print the profile, by own time."""
        if self._profile is not None:
            text = io.StringIO()
            pstats.Stats(self._profile, stream=text).sort_stats("tottime").print_stats(PROFILE_LINES)
            print(text.getvalue(), file=sys.stderr)


class Parts:
    """Holds on to the parts that a node makes for itself."""

    node: Node
    store: Store
    coordinator: Coordinator
    metrics: Metrics


@contextmanager
def taken_apart(meter: Meter, progress: Progress) -> Iterator[Parts]:
    """While this lasts, the parts of a node that is started are at hand, and what ends is counted."""
    parts = Parts()

    def make_store(*args: Any, **kwargs: Any) -> Store:
        parts.store = SqliteStore(*args, **kwargs)
        meter.watch_writer(parts.store)
        return parts.store

    def make_coordinator() -> Coordinator:
        coordinator = LocalCoordinator()
        publish = coordinator.publish

        async def counted(events: Sequence[TaskEvent]) -> None:
            progress.on_events(events)
            await publish(events)

        coordinator.publish = counted  # type: ignore[method-assign]
        parts.coordinator = coordinator
        return coordinator

    def make_metrics() -> Metrics:
        parts.metrics = Metrics()
        return parts.metrics

    makers: dict[str, Any] = {
        "SqliteStore": make_store,
        "LocalCoordinator": make_coordinator,
        "Metrics": make_metrics,
    }
    with patch.multiple(atm.node, **makers):
        yield parts


def bench_config(folder: Path, *, worker: bool, capacity: int) -> configuration.Config:
    """As ``python -m atm`` in an empty folder, apart from free ports and the slots."""
    return configuration.parse(
        {
            "server": {"port": 0},
            "metrics": {"port": 0},
            "database": {"path": str(folder / "atm.db")},
            "worker": {"enabled": worker, "capacity": capacity},
            "log": {"file": str(folder / "worker.log")},
        }
    )


async def submit(parts: Parts, count: int, task_type: str) -> None:
    """What POST /tasks/batch does behind the API: store, hint, count."""
    receipts = await parts.store.create(
        [NewTask(task_id=new_task_id(), task_type=task_type, payload_json='{"n":1}') for _ in range(count)]
    )
    await parts.coordinator.push([Hint(receipt.task_id, task_type, 0) for receipt in receipts])
    parts.metrics.created(task_type, count)


async def submit_all(parts: Parts, count: int, task_type: str = "noop") -> float:
    """Submit in batches; tasks a second."""
    sizes = [min(BATCH, count - at) for at in range(0, count, BATCH)]
    began = time.perf_counter()

    async def submitter() -> None:
        while sizes:
            await submit(parts, sizes.pop(), task_type)

    async with trio.open_nursery() as nursery:
        for _ in range(SUBMITTERS):
            nursery.start_soon(submitter)
    return count / (time.perf_counter() - began)


async def with_node(
    config: configuration.Config, meter: Meter, progress: Progress, body: Callable[[Parts], Awaitable[float]]
) -> float:
    """Run a node around ``body``."""
    with taken_apart(meter, progress) as parts:
        parts.node = node = Node(config)
        node.register_executor(tasks.noop)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            result = await body(parts)
            node.stop()
    return result


async def fill(folder: Path, capacity: int, count: int, task_type: str) -> float:
    """Insert tasks while no worker is there; tasks a second."""
    config = bench_config(folder, worker=False, capacity=capacity)
    return await with_node(config, Meter(), Progress(count), partial(submit_all, count=count, task_type=task_type))


async def backlog(folder: Path, count: int, capacity: int, waiting: int, meter: Meter) -> dict[str, float]:
    """Fill first; the worker starts after."""
    progress = Progress(count)

    async def drain(parts: Parts) -> float:
        meter.begin()
        await progress.done.wait()
        return 0.0

    submitted = await fill(folder, capacity, count, "noop")
    await with_node(bench_config(folder, worker=True, capacity=capacity), meter, progress, drain)
    return {"submitted_per_second": submitted, **meter.end(count, progress.ended_at)}


async def live(folder: Path, count: int, capacity: int, waiting: int, meter: Meter) -> dict[str, float]:
    """Submit while it runs."""
    progress = Progress(count)
    if waiting:
        await fill(folder, capacity, waiting, UNSUPPORTED)

    async def submit_and_wait(parts: Parts) -> float:
        await settled(parts.coordinator)
        meter.begin()
        submitted = await submit_all(parts, count)
        await progress.done.wait()
        return submitted

    config = bench_config(folder, worker=True, capacity=capacity)
    submitted = await with_node(config, meter, progress, submit_and_wait)
    return {"submitted_per_second": submitted, **meter.end(count, progress.ended_at)}


async def settled(coordinator: Coordinator) -> None:
    """Return when the queues, rebuilt at the start, do not grow any more."""
    length = -1
    while length != (length := await queued(coordinator)):  # noqa: ASYNC110 - none tells
        await trio.sleep(0.3)


async def queued(coordinator: Coordinator) -> int:
    """Tasks that are ready to run."""
    overview = await coordinator.overview()
    assert overview is not None  # the local one always knows
    return sum(queue.length for queue in overview.queues)


async def over_http(
    folder: Path, count: int, capacity: int, waiting: int, meter: Meter, *, batch: int, connections: int
) -> dict[str, float]:
    """Creates that come by HTTP from another process; nothing runs."""
    figures: dict[str, float] = {}

    async def serve(parts: Parts) -> float:
        port = parts.node.urls["api"].rpartition(":")[2]
        command = [sys.executable, "-m", "benchmarks.load", port, "--connections", str(connections)]
        meter.begin()
        done = await trio.run_process([*command, "--batch", str(batch)], capture_stdout=True)
        load = json.loads(done.stdout)
        tasks_created = load["requests"] * max(1, batch)
        figures.update(load | meter.end(tasks_created, time.perf_counter()))
        figures["tasks_per_second"] = tasks_created / load["seconds"]
        return 0.0

    config = bench_config(folder, worker=False, capacity=capacity)
    await with_node(config, meter, Progress(0), serve)
    return figures


MODES: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {
    "backlog": backlog,
    "live": live,
    "batches": partial(over_http, batch=500, connections=2),
    "singles": partial(over_http, batch=0, connections=32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=sorted(MODES))
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--capacity", type=int, default=100, help="slots (default: as embedded)")
    parser.add_argument("--waiting", type=int, default=0, help="other tasks in the file, which wait (live only)")
    parser.add_argument("--profile", choices=["loop", "writer"], help="profile that thread (makes all slower)")
    parser.add_argument("--folder", help="where the file goes (default: a temporary folder)")
    chosen = parser.parse_args()
    meter = Meter(chosen.profile)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        mode = MODES[chosen.mode]
        figures = trio.run(mode, Path(folder), chosen.tasks, chosen.capacity, chosen.waiting, meter)
    meter.report()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
