"""What becomes of a run that is cancelled or times out: in each lane, polite and rude.

    python benchmarks/cancels.py
    python benchmarks/cancels.py --only thread process --budget 1
    python benchmarks/cancels.py --quick

A real node is told to cut off one run after the other, with the defaults of ``python -m atm``. When it says that a
task is CANCELLED or TIMEOUT, its work is looked for: code that goes on, and processes, in /proc (Linux). Runs that
never end are given to nodes with ``worker.stuck: exit``, which end with them; the next start says what became of
the tasks. The exit code is 1 where anything was left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cancel_tasks import LONG, PROGRAMS, argv
from benchmarks.nodes import NodeProcess
from benchmarks.table import lay_out, number
from benchmarks.wire import Connection, request_bytes

TIMEOUT = 2.0
"""Seconds of the tasks that are to time out: enough for all of them to begin."""

STUCK_MARGIN = 3.0
"""Seconds beyond the cleanup budget by which a stuck run has been told of."""

PATIENCE = 60.0
"""Seconds that anything may take."""

MARK = "BENCHMARK_MARK"
"""The environment variable by which all processes of a node are found."""

HEAD = ("lane", "the executor", "cut off by", "what happened", "left", "its log")


@dataclass(frozen=True)
class Case:
    """One kind of executor.

    Args:
        seconds: how long it goes on, where it decides.
        is_killed: its code runs in processes, which take no leave.
    """

    lane: str
    manner: str
    task_type: str
    seconds: float = LONG
    is_killed: bool = False

    def payload(self, file: Path) -> dict[str, Any]:
        if self.lane == "shell":
            return {"argv": argv(PROGRAMS[self.task_type], str(file))}
        return {"file": str(file), "seconds": self.seconds}

    @property
    def created_type(self) -> str:
        return "shell" if self.lane == "shell" else self.task_type


MANNERS = {"polite": "polite", "stubborn": "ignores SIGTERM", "daemon": "forks a daemon that ignores it"}


def cases(budget: float) -> list[Case]:
    """Those that end."""
    beyond = budget + STUCK_MARGIN + 1
    found = [
        Case("async", "polite", "async_polite"),
        Case("async", "swallows Cancelled, then returns", "async_swallows", 0.5),
        Case("async", "blocks the loop, 4 s", "async_blocks", 4),
        Case("thread", "polite: check_cancelled()", "thread_polite"),
        Case("thread", f"looks at nothing, {beyond:g} s", "thread_ignores", beyond),
    ]
    found += [Case("process", text, f"process_{name}", is_killed=True) for name, text in MANNERS.items()]
    found += [Case("command", text, f"command_{name}", is_killed=True) for name, text in MANNERS.items()]
    return found + [Case("shell", text, name, is_killed=True) for name, text in MANNERS.items()]


ENDLESS = (
    Case("async", "swallows Cancelled for ever", "async_swallows"),
    Case("async", "blocks the loop for ever", "async_blocks"),
    Case("thread", "looks at nothing, for ever", "thread_ignores"),
)


class Site:
    """A node, and what is looked at around it."""

    def __init__(self, node: NodeProcess, connection: Connection, mark: str) -> None:
        self.node = node
        self._connection = connection
        self._mark = mark

    def begin(self, case: Case, timeout: float) -> tuple[str, Path]:
        """A task that is at work, and the file that says so."""
        file = self.node.folder / f"{case.task_type}.{secrets.token_hex(4)}"
        body = {"task_type": case.created_type, "payload": case.payload(file), "max_retry": 0, "timeout": timeout}
        task_id: str = self._connection.call("POST", "/api/v1/tasks", body)["task_id"]
        deadline = time.monotonic() + PATIENCE
        while not file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{case.task_type} does not begin: {self.task(task_id)}")
            time.sleep(0.002)
        return task_id, file

    def cancel(self, task_id: str) -> tuple[int, float]:
        """The answer's status, and the milliseconds until it came."""
        began = time.perf_counter()
        status, _ = self._connection.send(request_bytes("POST", f"/api/v1/tasks/{task_id}/cancel"))
        return status, 1000 * (time.perf_counter() - began)

    def task(self, task_id: str, wait: float = 0) -> dict[str, Any]:
        task: dict[str, Any] = self._connection.call("GET", f"/api/v1/tasks/{task_id}?wait={wait:g}")
        return task

    def log(self, task_id: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._connection.call("GET", f"/api/v1/tasks/{task_id}/logs")
        return rows

    def left(self, case: Case, file: Path) -> str:
        """Of a run that is said to have ended."""
        found = [f"process {pid}" for pid in marked(self._mark, self.node.pid)]
        if not case.is_killed and file.exists():
            found.append("its code")
        return ", ".join(found) or "nothing"


@contextlib.contextmanager
def site(folder: Path, budget: float, **worker: Any) -> Iterator[Site]:
    worker |= {"cleanup_budget": f"{budget:g}s", "graceful_shutdown_timeout": "1s"}
    executors = ["benchmarks.cancel_tasks", {"use": "atm.executors.shell:ShellExecutor"}]
    mark = os.environ[MARK] = folder.name
    with NodeProcess(folder, worker=worker, executors=executors) as node, node.connect() as connection:
        yield Site(node, connection, mark)


def marked(mark: str, node: int) -> list[int]:
    """The processes that live, below the node or from it, and are not the node itself."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (node, os.getpid()):
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


Row = tuple[str, ...]


def by_cancel(at: Site, case: Case) -> Row:
    task_id, file = at.begin(case, LONG)
    status, took = at.cancel(task_id)
    left = at.left(case, file)
    task = at.task(task_id)
    happened = f"{task['status']} after {number(took)} ms"
    if status != 200:
        happened = f"{status} after {number(took)} ms, {task['status']}"
    if status == 202:
        task = at.task(task_id, wait=PATIENCE)
        left = at.left(case, file)
        late = 1000 * (moment(task["completed_at"]) - moment(task["cancel_requested_at"]))
        happened = f"{happened}; {task['status']} after {number(late)} ms"
    return row(at, case, "cancel", happened, left, task_id)


def by_timeout(at: Site, case: Case) -> Row:
    task_id, file = at.begin(case, TIMEOUT)
    task = at.task(task_id, wait=PATIENCE)
    left = at.left(case, file)
    late = 1000 * (moment(task["completed_at"]) - moment(task["started_at"]) - TIMEOUT)
    return row(at, case, "timeout", f"{task['status']} after {number(late)} ms", left, task_id)


def row(at: Site, case: Case, cause: str, happened: str, left: str, task_id: str) -> Row:
    return case.lane, case.manner, cause, happened, left, told(at.log(task_id))


def told(log: list[dict[str, Any]]) -> str:
    """The receipt of the end, and the place that was named, if any."""
    receipt = next((found[0] for line in reversed(log) if (found := _RECEIPT.search(line["message"]))), "")
    place = next((found[1] for line in log if (found := _PLACE.search(line["message"]))), None)
    return receipt if place is None else f"{receipt}; named {Path(place).name}".removeprefix("; ")


_RECEIPT = re.compile(r"asked → [^)\n]*|the executor ended [^)\n]*")
_PLACE = re.compile(r"(/\S+:\d+) in ")


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def endless(folder: Path, budget: float, case: Case, cause: str) -> Row:
    """A run that never ends, on a node that ends with it; and what the next start makes of its task."""
    with site(folder, budget, stuck="exit") as at:
        task_id, _ = at.begin(case, TIMEOUT if cause == "timeout" else LONG)
        began = time.perf_counter()
        if cause == "cancel":
            with contextlib.suppress(OSError):  # a loop that is blocked does not answer
                at.cancel(task_id)
        code = at.node.wait()
        took = 1000 * (time.perf_counter() - began)
        left = at.left(case, Path(os.devnull, "gone"))
    with site(folder, budget, supported_types=["echo"]) as at:
        status = recovered(at, task_id)["status"]
        happened = f"the node exits ({code}) after {number(took)} ms; next start: {status}"
        return row(at, case, cause, happened, left, task_id)


def recovered(at: Site, task_id: str) -> dict[str, Any]:
    """The task, when the node that carried it out is known to have ended."""
    deadline = time.monotonic() + PATIENCE
    while (task := at.task(task_id))["status"] == "PROCESSING" and time.monotonic() < deadline:
        time.sleep(0.05)
    return task


def measure(lanes: Sequence[str], budget: float, *, quick: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="atm-bench-") as name, site(Path(name), budget) as at:
        for case in (case for case in cases(budget) if case.lane in lanes):
            yield by_cancel(at, case)
            yield by_timeout(at, case)
        orphans = at.node.metric("atm_orphans")
        yield (
            "all",
            "",
            "",
            f"atm_orphans: {number(orphans)}",
            f"{number(orphans)} processes" if orphans else "",
            "",
        )
    for case in () if quick else (case for case in ENDLESS if case.lane in lanes):
        for cause in ("cancel", "timeout"):
            with tempfile.TemporaryDirectory(prefix="atm-bench-") as name:
                yield endless(Path(name), budget, case, cause)


def main() -> None:
    lanes = list(dict.fromkeys(case.lane for case in cases(0)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=lanes, default=lanes, help="these lanes alone")
    parser.add_argument("--budget", type=float, default=5, help="seconds of the cleanup budget (default 5)")
    parser.add_argument("--quick", action="store_true", help="without the runs that never end")
    chosen = parser.parse_args()
    rows: list[Row] = [HEAD]
    for found in measure(chosen.only, chosen.budget, quick=chosen.quick):
        print(" · ".join(found[:3]), file=sys.stderr, flush=True)
        rows.append(found)
    print(lay_out(rows))
    sys.exit(any(found[4] not in ("nothing", "") for found in rows[1:]))


if __name__ == "__main__":
    main()
