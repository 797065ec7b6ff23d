"""When a task is CANCELLED or TIMEOUT its work has ended, whatever lane it runs in and whatever it ignores."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from executors.leftovers import marked, until_exists
from running import FREE_PORTS, PATIENCE, Process, node

TIMEOUT = 4
"""Seconds; long enough for all to begin before the first ends."""

ENVIRON = {
    **FREE_PORTS,
    "ATM_EXECUTORS": "lane_work",
    "ATM_WORKER__CLEANUP_BUDGET": "300ms",
    "ATM_WORKER__GRACEFUL_SHUTDOWN_TIMEOUT": "100ms",
}
ENDED_WITH_THEIR_TASK = (
    "async_polite",
    "thread_polite",
    "thread_command_rude",
    "process_polite",
    "process_rude",
    "command_polite",
    "command_rude",
)
WITH_PROCESSES = [name for name in ENDED_WITH_THEIR_TASK if "process" in name or "command" in name]
STUCK = 70


@pytest.fixture
def started(folder: Path) -> Iterator[Process]:
    shutil.copy(Path(__file__).with_name("lane_work.py"), folder)
    with node(environ=ENVIRON) as process:
        yield process
        process.process.kill()
        process.process.wait()
        nothing_is_left(process)


def begin(started: Process, task_type: str, **fields: Any) -> str:
    """A task that is at work."""
    begun = Path(f"{task_type}.{time.monotonic_ns()}").absolute()
    task_id = started.create(task_type, payload={"begun": str(begun)}, max_retry=0, **fields)
    until_exists(begun)
    return task_id


def of_node(started: Process) -> list[int]:
    return marked(f"ATMGUARD={started.process.pid}.")


def nothing_is_left(started: Process) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := of_node(started):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def orphans(started: Process) -> float:
    (url,) = re.findall(r"^  metrics +(\S+)$", started.wait_for("Ctrl-C"), re.MULTILINE)
    (value,) = re.findall(r"^atm_orphans (\S+)$", httpx.get(url).text, re.MULTILINE)
    return float(value)


def cancel(started: Process, task_id: str) -> httpx.Response:
    return httpx.post(f"{started.url}/api/v1/tasks/{task_id}/cancel", timeout=PATIENCE)


def seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def test_what_is_cancelled_or_timed_out_has_ended(started: Process) -> None:
    table = []
    for task_type in ENDED_WITH_THEIR_TASK:
        task_id = begin(started, task_type)
        asked = time.monotonic()
        assert cancel(started, task_id).json()["message"] == "Task cancelled successfully", task_type
        took = time.monotonic() - asked
        left = of_node(started)
        table.append((task_type, "cancel", started.task(task_id)["status"], took, len(left)))
        assert left == []
    tasks = {task_type: begin(started, task_type, timeout=TIMEOUT) for task_type in ENDED_WITH_THEIR_TASK}
    for task_type, task_id in tasks.items():
        task = started.task(task_id, wait=20)
        took = seconds(task["completed_at"]) - seconds(task["started_at"]) - TIMEOUT
        table.append((task_type, "timeout", task["status"], took, 0))
    assert of_node(started) == [], "looked for when all have ended"
    for task_type, how, status, took, count in table:
        print(f"| {task_type} | {how} | {status} | {took * 1000:.0f} ms | {count or 'nothing'} |")
    assert {(how, status) for _, how, status, _, _ in table} == {("cancel", "CANCELLED"), ("timeout", "TIMEOUT")}
    assert orphans(started) == 0

    # A thread that looks at nothing cannot be ended. Its task does not say that it has.
    task_id = begin(started, "thread_rude")
    assert cancel(started, task_id).status_code == 202
    task = started.task(task_id)
    assert (task["status"], bool(task["cancel_requested_at"])) == ("PROCESSING", True)
    Path("release").touch()
    assert started.task(task_id, wait=20)["status"] == "CANCELLED"
    Path("release").unlink()

    # Nor can it hold up the end of the node.
    begin(started, "thread_rude")
    begin(started, "process_rude")
    begin(started, "command_rude")
    assert started.end() == STUCK
    nothing_is_left(started)
    assert "Traceback" not in started.err.read_text()


def test_a_node_that_is_killed_leaves_no_process(started: Process) -> None:
    for task_type in WITH_PROCESSES:
        begin(started, task_type)
    assert len(of_node(started)) >= 2 * len(WITH_PROCESSES)
    assert started.end(signal.SIGKILL) == -signal.SIGKILL
    nothing_is_left(started)
