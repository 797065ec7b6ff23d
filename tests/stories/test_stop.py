"""How a node stops: what runs may finish, what does not is given back, and nothing can hold it up."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from running import FREE_PORTS, PATIENCE, node

IMPATIENT = {
    **FREE_PORTS,
    "ATM_WORKER__GRACEFUL_SHUTDOWN_TIMEOUT": "300ms",
    "ATM_WORKER__CLEANUP_BUDGET": "100ms",
}
STUCK = 70


class InBackground(threading.Thread):
    """A call that waits for its answer."""

    def __init__(self, method: str, url: str) -> None:
        super().__init__()
        self._request = (method, url)
        self.answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = httpx.request(*self._request, timeout=PATIENCE)

    def data(self) -> Any:
        self.join()
        assert self.answer is not None
        return self.answer.json()["data"]


UNTIL_TOLD = """
import pathlib
import trio
from atm import executes

@executes("until_told")
async def until_told(ctx, task):
    while not pathlib.Path("told").exists():
        await trio.sleep(0.01)
    return "told"
"""


def test_a_stopping_node_finishes_what_runs_and_answers_until_then() -> None:
    Path("my_tasks.py").write_text(UNTIL_TOLD)
    Path("config.yaml").write_text("executors: [my_tasks]")
    with node() as started, httpx.Client(base_url=started.url, timeout=PATIENCE) as client:
        running = started.create("until_told")
        long = started.create("sleep", payload={"seconds": 3600})
        started.wait_until_running(running)
        started.wait_until_running(long)
        assert client.get("/readyz").status_code == 200
        waiting = InBackground("GET", f"{started.url}/api/v1/tasks/{running}?wait=30")
        unfinished = started.create("sleep", payload={"seconds": 0}, delay=3600)
        unending = InBackground("GET", f"{started.url}/api/v1/tasks/{unfinished}?wait=30")

        started.process.send_signal(signal.SIGTERM)
        while (readiness := client.get("/readyz")).status_code == 200:
            time.sleep(0.01)
        assert readiness.status_code == 503
        assert readiness.json()["message"] == "draining"
        assert client.get("/livez").status_code == 200
        late = started.create("echo", payload={"late": True})
        assert started.task(late)["status"] == "PENDING"
        cancelled = client.post(f"/api/v1/tasks/{long}/cancel")
        assert cancelled.json()["message"] == "Task cancelled successfully"
        assert started.task(running)["status"] == "PROCESSING"

        Path("told").touch()
        assert waiting.data()["result"] == "told"
        assert unending.data()["status"] == "PENDING", "a call that waits does not hold up the end"
        assert started.process.wait(PATIENCE) == 0
        assert "Traceback" not in started.err.read_text()
    with node() as started:
        assert started.task(late, wait=10)["result"] == {"late": True}
        assert started.task(running)["attempt"] == 1


FIRST_TIME_LONG = """
import time
import trio
from atm import executes

@executes("patient")
async def patient(ctx, task):
    if ctx.attempt == 1:
        await trio.sleep_forever()
    return "second time"

@executes("stubborn")
async def stubborn(ctx, task):
    with trio.CancelScope(shield=ctx.attempt == 1):
        await trio.sleep(3600 if ctx.attempt == 1 else 0)
    return "second time"
"""


def test_a_task_that_swallows_its_cancel_cannot_hold_up_the_end() -> None:
    Path("my_tasks.py").write_text(FIRST_TIME_LONG)
    Path("config.yaml").write_text("executors: [my_tasks]")
    with node(environ=IMPATIENT) as started:
        patient, stubborn = started.create("patient"), started.create("stubborn")
        started.wait_until_running(patient)
        started.wait_until_running(stubborn)
        assert started.end(signal.SIGINT) == STUCK
        told = started.err.read_text()
        assert "Traceback" not in told
        (line,) = [line for line in told.splitlines() if "does not end" in line]
        assert stubborn in line
        assert "stubborn" in line.replace(stubborn, "")
    with node() as started:
        task = started.task(patient, wait=20)
        assert (task["result"], task["attempt"], task["releases"], task["recoveries"]) == ("second time", 2, 1, 0)
        task = started.task(stubborn, wait=20)
        assert (task["result"], task["attempt"], task["releases"], task["recoveries"]) == ("second time", 2, 0, 1)
        assert started.task(stubborn)["retry_count"] == 0


# The node gives its store and its clients some seconds more to end; this would be a long test with them.
BLOCKING = """
import time
import atm.node
from atm import executes
from atm.nursery import stuck, supervisor

stuck.STUCK_MARGIN = supervisor.RECORD_PATIENCE = atm.node.IN_FLIGHT_PATIENCE = 0.1

@executes("blocking")
async def blocking(ctx, task):
    if ctx.attempt == 1:
        print("blocks now", flush=True)
        time.sleep(3600)  # the line to be told
    return "second time"
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_task_that_blocks_the_loop_cannot_hold_up_the_end(number: signal.Signals) -> None:
    Path("my_tasks.py").write_text(BLOCKING)
    Path("config.yaml").write_text("executors: [my_tasks]")
    with node(environ=IMPATIENT) as started:
        task_id = started.create("blocking")
        started.wait_for("blocks now")
        assert started.end(number) == STUCK
        told = started.err.read_text()
        assert "Traceback" not in told
        line = BLOCKING.splitlines().index("        time.sleep(3600)  # the line to be told") + 1
        assert re.search(rf"my_tasks\.py\D+{line}\b", told)
    if number == signal.SIGTERM:
        with node() as started:
            task = started.task(task_id, wait=20)
            assert (task["result"], task["attempt"], task["recoveries"]) == ("second time", 2, 1)


CLOSING = """
import trio
from atm import Executor

class Base(Executor):
    async def execute(self, ctx, task):
        return None

class Hangs(Base):
    type = "hangs"
    supported_task_types = ("a",)

    async def __aexit__(self, *error):
        await trio.sleep_forever()

class Raises(Base):
    type = "raises"
    supported_task_types = ("b",)

    async def __aexit__(self, *error):
        raise ConnectionResetError("gone")
"""


def test_an_executor_that_cannot_be_closed_does_not_hold_up_the_end() -> None:
    Path("my_tasks.py").write_text(CLOSING)
    Path("config.yaml").write_text("executors: ['my_tasks:Hangs', 'my_tasks:Raises']")
    with node(environ=IMPATIENT) as started:
        assert started.task(started.create("a"), wait=10)["status"] == "SUCCESS"
        started.end()
        told = started.err.read_text()
        assert "Traceback" not in told
        assert "raises" in told
        assert "hangs" in told
