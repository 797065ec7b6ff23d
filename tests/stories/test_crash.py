"""A node is killed; another is started in the same folder. What was acknowledged is not lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx

from atm.task import legal_path
from running import Process, node

BATCH = {"tasks": [{"task_type": "sleep", "payload": {"seconds": 0.01}}] * 200}


def kill(started: Process) -> None:
    assert started.end(signal.SIGKILL) == -signal.SIGKILL


def client_of(started: Process) -> httpx.Client:
    return httpx.Client(base_url=f"{started.url}/api/v1", timeout=30)


def test_what_was_acknowledged_survives_a_kill() -> None:
    with node() as started, client_of(started) as client:
        done = started.create("echo", payload={"n": 0})
        assert started.task(done, wait=10)["status"] == "SUCCESS"
        running = started.create("sleep", payload={"seconds": 1}, max_retry=0)
        later = started.create("sleep", payload={"seconds": 0}, delay=2)
        cancelled = started.create("sleep", payload={"seconds": 3600}, delay=3600)
        assert client.post(f"/tasks/{cancelled}/cancel").status_code == 200
        settings = client.put("/task-types/echo", json={"max_concurrent": 3, "enabled": False})
        disabled = started.create("echo", idempotency_key="order-7")
        started.wait_until_running(running)
        batch = client.post("/tasks/batch", json=BATCH).json()["data"]["task_ids"]
        kill(started)
    assert len(batch) == 200

    with node() as started, client_of(started) as client:
        assert started.task(done)["attempt"] == 1
        assert started.task(cancelled)["status"] == "CANCELLED"
        assert started.task(disabled)["pending_reason"] == "type_disabled"
        (echo,) = [t for t in client.get("/task-types").json()["data"] if t["task_type"] == "echo"]
        assert echo == settings.json()["data"]
        again = client.post("/tasks", json={"task_type": "echo", "idempotency_key": "order-7"})
        assert (again.status_code, again.json()["data"]["task_id"]) == (200, disabled)
        recovered = started.task(running, wait=20)
        assert (recovered["status"], recovered["attempt"], recovered["recoveries"]) == ("SUCCESS", 2, 1)
        assert started.task(later, wait=20)["status"] == "SUCCESS"
        started.task(batch[-1], wait=20)
        for task_id in batch[-10:]:
            started.task(task_id, wait=20)
        page = client.get("/tasks", params={"task_type": "sleep", "status": "SUCCESS", "limit": 500}).json()
        ended = {task["task_id"]: task for task in page["data"]["tasks"]}
        assert {running, later, *batch} == set(ended)
        assert all(task["attempt"] == 1 + task["recoveries"] for task in ended.values())
        for task_id in (running, later, *batch[:10]):
            rows = client.get(f"/tasks/{task_id}/logs").json()["data"]
            assert legal_path((row["from_status"], row["to_status"]) for row in rows) == "SUCCESS"
        assert started.end() == 0


CHILD = """
import subprocess
from atm import executes

@executes("leave_a_child")
async def leave_a_child(ctx, task):
    child = subprocess.Popen(["sleep", "60"], close_fds=False, start_new_session=True)
    return child.pid
"""


def test_a_process_left_behind_does_not_keep_the_file() -> None:
    Path("my_tasks.py").write_text(CHILD)
    Path("config.yaml").write_text("executors: [my_tasks]")
    with node() as started:
        child = started.task(started.create("leave_a_child"), wait=10)["result"]
        try:
            kill(started)
            with node() as again:
                assert again.task(again.create("echo"), wait=10)["status"] == "SUCCESS"
                os.kill(child, 0)  # it lives on
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_torn_end_of_the_journal_is_no_damage() -> None:
    """What a power cut leaves: the last, unacknowledged transaction is half on disk."""
    with node() as started:
        kept = started.task(started.create("echo", payload={"a": 1}), wait=10)["task_id"]
        kill(started)
    journal = Path("atm.db-wal")
    journal.write_bytes(journal.read_bytes() + b"\x37\x7f\x06\x82" + bytes(range(256)) * 8)
    with node() as started:
        assert started.task(kept)["result"] == {"a": 1}
        assert started.end() == 0
    names = sorted(path.name for path in Path().iterdir())
    assert names == ["atm.db", "logs", "stderr.txt", "stdout.txt"], "litter is left"
