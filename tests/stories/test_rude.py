"""Executors that ignore their cancel or hold the loop: found, named with their line, and survived."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from running import FREE_PORTS, PATIENCE, Process, node

STUCK = 70

# The patience of the runtime, shortened; the tasks wait or work at the marked lines.
RUDE = """
import time
import trio
import atm.node
from atm import executes
from atm.nursery import stuck, watchdog

stuck.STUCK_MARGIN = atm.node.CANCEL_MARGIN = 0.2
stuck.LOOK = 0.1
watchdog.BLOCK_LIMIT = 2.0

@executes("swallows")
async def swallows(ctx, task):
    while ctx.attempt == 1:
        try:
            await trio.sleep(0.05)  # swallows here
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)  # swallows here
    return "second time"

@executes("blocks")
async def blocks(ctx, task):
    await trio.sleep(0)
    if ctx.attempt == 1:
        time.sleep(task.payload["seconds"])  # blocks here
    return "has blocked"
"""


def lines(mark: str) -> list[str]:
    """Where the marked lines are, as logs name them."""
    path = Path("my_tasks.py").absolute()
    numbered = enumerate(RUDE.splitlines(), start=1)
    return [f"{path}:{number} in {mark}: " for number, line in numbered if line.endswith(f"# {mark} here")]


def log_of(started: Process, task_id: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{started.url}/api/v1/tasks/{task_id}/logs", timeout=PATIENCE)
    return list(answer.json()["data"])


def metric(started: Process, name: str) -> float:
    page = httpx.get(f"{started.metrics_url}", timeout=PATIENCE).text
    (value,) = [line.split()[1] for line in page.splitlines() if line.startswith(f"{name} ")]
    return float(value)


def error_row(started: Process, task_id: str) -> str:
    """The ERROR row of the task's log, once it is there."""
    deadline = time.monotonic() + PATIENCE
    while not (found := [row["message"] for row in log_of(started, task_id) if row["log_type"] == "ERROR"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (message,) = found
    return str(message)


def test_a_node_survives_executors_that_ignore_their_cancel_or_hold_the_loop() -> None:
    Path("my_tasks.py").write_text(RUDE)
    Path("config.yaml").write_text(
        "executors: [my_tasks]\nworker: {cleanup_budget: 100ms, graceful_shutdown_timeout: 20s}"
    )

    with node() as started:
        cancelled = started.create("swallows")
        started.wait_until_running(cancelled)
        answer = httpx.post(f"{started.url}/api/v1/tasks/{cancelled}/cancel", timeout=PATIENCE)
        assert (answer.status_code, answer.json()["message"]) == (202, "Cancellation requested")
        told = error_row(started, cancelled)
        assert any(line in told for line in lines("swallows")), told
        assert metric(started, "atm_stuck_runs") == 1
        task = started.task(cancelled)
        assert (task["status"], task["cancel_requested_at"] is not None) == ("PROCESSING", True)

        blocking = started.create("blocks", payload={"seconds": 2})
        assert started.task(blocking, wait=20)["result"] == "has blocked"
        told = error_row(started, blocking)
        assert told.startswith("Blocked the node's loop for 2")
        assert lines("blocks")[0] in told
        assert metric(started, "atm_loop_blocks_total") == 1

        assert started.end() == STUCK, "a stuck run is not waited for all the grace time"
        logged = started.err.read_text()
        assert "Traceback" not in logged
        assert any(line in logged for line in lines("swallows"))
        assert lines("blocks")[0] in logged
        assert blocking in next(line for line in logged.splitlines() if "has been blocked" in line)

    with node(environ={**FREE_PORTS, "ATM_WORKER__STUCK": "exit"}) as started:
        assert started.task(cancelled, wait=20)["status"] == "CANCELLED"
        timed_out = started.create("swallows", timeout=0.2)
        assert started.process.wait(PATIENCE) == STUCK
        assert "worker.stuck is exit" in started.err.read_text()

    with node(environ={**FREE_PORTS, "ATM_WORKER__STUCK": "exit"}) as started:
        task = started.task(timed_out, wait=20)
        assert (task["result"], task["attempt"], task["recoveries"]) == ("second time", 2, 1)
        started.create("blocks", payload={"seconds": 3600})
        assert started.process.wait(PATIENCE) == STUCK
        assert "the loop is blocked for good" in started.err.read_text()
