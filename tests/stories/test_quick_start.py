"""The quick start, call by call, with a node that needs nothing but this folder."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from running import Process, node

CONFIG = """
app: {name: async-task-manager}
scheduler: {enabled: true, scan_interval: 100ms}
worker: {enabled: true, id: worker-001, capacity: 10}
"""

EMAIL = {
    "task_type": "send_email",
    "priority": 1,
    "payload": {"to": "user@example.com", "subject": "Hello", "body": "Test email"},
}

LONG = {"task_type": "sleep", "payload": {"seconds": 3600}}
CANCELLED = {"code": 0, "message": "Task cancelled successfully"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def data_of(answer: httpx.Response) -> Any:
    body = answer.json()
    assert (body["code"], body["message"]) == (0, "success"), body
    return body["data"]


def samples_of(started: Process) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus reads: name and labels, value."""
    found = re.search(r"^  metrics +(\S+)$", started.wait_for("Ctrl-C"), re.MULTILINE)
    assert found is not None
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(httpx.get(found[1]).text)
        for sample in family.samples
    }


def test_the_first_minute(folder: Path) -> None:
    """It says where it listens, where the data is and what to try; and what it says to try works."""
    with node() as started:
        banner = started.wait_for("Ctrl-C")
        assert re.search(r"^  API +http://127\.0\.0\.1:\d+$", banner, re.MULTILINE)
        assert re.search(r"^  metrics +http://127\.0\.0\.1:\d+/metrics$", banner, re.MULTILINE)
        assert f"{folder}/atm.db" in banner
        assert f"{folder}/logs/worker.log" in banner
        to_try = re.search(r"curl -X POST (\S+) .*?-d '(.+?)'", banner, re.DOTALL)
        assert to_try is not None
        task_id = data_of(httpx.post(to_try[1], json=json.loads(to_try[2])))["task_id"]
        task = started.task(task_id, wait=10)
        assert (task["status"], task["result"]) == ("SUCCESS", {"hello": "world"})
        listed = re.search(r"curl '(\S+)'", banner)
        assert listed is not None
        assert [task["task_id"] for task in data_of(httpx.get(listed[1]))["tasks"]] == [task_id]
        assert started.end(signal.SIGINT) == 0
        assert started.err.read_text() == ""


def test_the_quick_start() -> None:
    Path("config.yaml").write_text(CONFIG)
    with node() as started, httpx.Client(base_url=f"{started.url}/api/v1", timeout=20) as client:
        task_id = create(client)
        query(client, task_id)
        assert "Test email" in started.out.read_text()
        look_at_the_logs(client, task_id)
        too_late_to_cancel(client, task_id)
        cancel_a_waiting_task(client)
        cancel_a_running_task(client)
        failed = fail(client)
        read_the_metrics(client, started)
        assert started.end() == 0
    read_the_workers_log(failed)


def create(client: httpx.Client) -> str:
    answer = client.post("/tasks", json=EMAIL)
    assert answer.status_code == 201
    data = data_of(answer)
    assert list(data) == ["task_id"]
    assert answer.headers["location"] == f"/api/v1/tasks/{data['task_id']}"
    return str(data["task_id"])


def query(client: httpx.Client, task_id: str) -> None:
    task = data_of(client.get(f"/tasks/{task_id}?wait=10"))
    assert (task["task_id"], task["task_type"], task["status"]) == (task_id, "send_email", "SUCCESS")
    assert list(task["result"]) == ["message_id"]
    assert (task["payload"], task["priority"], task["retry_count"]) == (EMAIL["payload"], 1, 0)
    for name in ("created_at", "started_at", "completed_at"):
        assert TIME.fullmatch(task[name])


def look_at_the_logs(client: httpx.Client, task_id: str) -> None:
    first, second, *_ = data_of(client.get(f"/tasks/{task_id}/logs"))
    assert TIME.fullmatch(first.pop("created_at"))
    assert first == {
        "log_type": "STATE_CHANGE",
        "from_status": None,
        "to_status": "PENDING",
        "message": "Task created",
    }
    assert TIME.fullmatch(second.pop("created_at"))
    assert second.pop("attempt") == 1
    assert second == {
        "log_type": "STATE_CHANGE",
        "from_status": "PENDING",
        "to_status": "PROCESSING",
        "message": "Task assigned to worker",
        "worker_id": "worker-001",
    }


def too_late_to_cancel(client: httpx.Client, task_id: str) -> None:
    assert client.post(f"/tasks/{task_id}/cancel").status_code == 409


def cancel_a_waiting_task(client: httpx.Client) -> None:
    waiting = data_of(client.post("/tasks", json={"task_type": "sleep", "delay": 3600}))["task_id"]
    for _ in range(2):
        answer = client.post(f"/tasks/{waiting}/cancel")
        assert (answer.status_code, answer.json()) == (200, CANCELLED)
    assert data_of(client.get(f"/tasks/{waiting}"))["status"] == "CANCELLED"


def cancel_a_running_task(client: httpx.Client) -> None:
    running = data_of(client.post("/tasks", json=LONG))["task_id"]
    while data_of(client.get(f"/tasks/{running}"))["status"] == "PENDING":
        time.sleep(0.01)
    answer = client.post(f"/tasks/{running}/cancel")
    assert (answer.status_code, answer.json()) == (200, CANCELLED)
    assert data_of(client.get(f"/tasks/{running}"))["status"] == "CANCELLED"


def fail(client: httpx.Client) -> str:
    body = EMAIL | {"payload": {"to": "nobody"}}
    failed = str(data_of(client.post("/tasks", json=body))["task_id"])
    task = data_of(client.get(f"/tasks/{failed}?wait=10"))
    assert (task["status"], task["attempt"]) == ("FAILED", 1)
    rows = data_of(client.get(f"/tasks/{failed}/logs"))
    assert [row["log_type"] for row in rows] == ["STATE_CHANGE", "STATE_CHANGE", "ERROR", "STATE_CHANGE"]
    assert "payload.to must be an email address" in rows[2]["message"]
    return failed


def read_the_metrics(client: httpx.Client, started: Process) -> None:
    running = data_of(client.post("/tasks", json=LONG))["task_id"]
    while data_of(client.get(f"/tasks/{running}"))["status"] == "PENDING":
        time.sleep(0.01)
    for priority in (1, 1, 0, -1):
        client.post("/tasks", json={"task_type": "nobody_runs_this", "priority": priority})
    samples = samples_of(started)
    client.post(f"/tasks/{running}/cancel")

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    assert value("task_created_total", task_type="send_email") == 2
    for quantile in ("0.5", "0.95", "0.99"):
        labels = {"task_type": "send_email", "status": "success", "quantile": quantile}
        assert 0 < value("task_duration_seconds", **labels) < 30
    assert value("worker_load", worker_id="worker-001") == 1
    assert value("queue_length", queue="high") == 2
    assert value("queue_length", queue="normal") == 1
    assert value("queue_length", queue="low") == 1


def read_the_workers_log(failed: str) -> None:
    entries = [json.loads(line) for line in Path("logs/worker.log").read_text().splitlines()]
    (entry,) = [entry for entry in entries if entry.get("task_id") == failed]
    assert (entry["level"], entry["attempt"]) == ("warning", 1)
    assert "payload.to must be an email address" in entry["message"]


OWN_PROGRAM = """
import trio
from atm import Context, Executor, Node, Task, TaskResult


class EmailExecutor(Executor):
    type = "email"
    supported_task_types = ("send_email",)

    def __init__(self, host, port):
        self.host, self.port = host, port

    async def execute(self, ctx: Context, task: Task) -> TaskResult:
        print(f"Sending email to {task.payload['to']} by {self.host}:{self.port}", flush=True)
        return TaskResult(success=True, data={"message_id": "abc123"})


async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        print(node.banner(), flush=True)


node = Node("config.yaml")
node.register_executor(EmailExecutor("smtp.example.com", 587))
trio.run(main)
print("ended", flush=True)
"""


def test_an_executor_of_ones_own_is_registered_in_ones_own_program() -> None:
    Path("config.yaml").write_text(CONFIG)
    Path("main.py").write_text(OWN_PROGRAM)
    with node(command=(sys.executable, "main.py")) as started:
        task = started.task(started.create(**EMAIL), wait=10)
        assert (task["status"], task["result"]) == ("SUCCESS", {"message_id": "abc123"})
        assert started.end() == 0
        printed = started.out.read_text()
        assert "Sending email to user@example.com by smtp.example.com:587" in printed
        assert printed.endswith("ended\n")


STOPPED_BY_ITSELF = """
import trio
from atm import Node, executes

@executes("last")
async def last(ctx, task):
    node.stop()

node = Node()
node.stop()  # too early: it does not run yet
node.register_executor(last)

async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        print(node.banner(), flush=True)

trio.run(main)
"""


def test_a_node_can_be_stopped_by_its_own_program() -> None:
    Path("main.py").write_text(STOPPED_BY_ITSELF)
    with node(command=(sys.executable, "main.py")) as started:
        started.create("last")
        assert started.process.wait(30) == 0
        assert started.err.read_text() == ""


OWN_TASKS = """
from atm import Executor, NonRetryable, TaskResult, executes

@executes("resize_image")
async def resize(ctx, task):
    await ctx.progress(0.5, "half way")
    await ctx.log("resizing")
    return {"width": task.payload["width"] // 2}

class Letters(Executor):
    type = "letters"
    supported_task_types = ("send_letter",)

    def __init__(self, stamp):
        self.stamp = stamp

    async def __aenter__(self):
        print("letters are open", flush=True)
        return self

    async def __aexit__(self, *error):
        print("letters are closed", flush=True)

    async def execute(self, ctx, task):
        return TaskResult(success=True, data={"stamp": self.stamp})
"""

OWN_CONFIG = """
executors:
  - my_tasks
  - use: my_tasks:Letters
    config: {stamp: blue}
"""


def test_executors_of_ones_own_are_named_in_the_config() -> None:
    Path("my_tasks.py").write_text(OWN_TASKS)
    Path("config.yaml").write_text(OWN_CONFIG)
    with node() as started:
        image = started.create("resize_image", payload={"width": 128})
        task = started.task(image, wait=10)
        assert (task["status"], task["result"]) == ("SUCCESS", {"width": 64})
        assert task["progress"] == {"fraction": 0.5, "message": "half way"}
        assert "resizing" in [
            row["message"] for row in data_of(httpx.get(f"{started.url}/api/v1/tasks/{image}/logs"))
        ]
        letter = started.task(started.create("send_letter"), wait=10)
        assert letter["result"] == {"stamp": "blue"}
        assert started.end() == 0
        printed = started.out.read_text()
        assert printed.startswith("letters are open\n")
        assert printed.endswith("letters are closed\n")
