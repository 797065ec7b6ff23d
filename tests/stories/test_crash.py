"""A node is killed; another is started in the same folder. What was acknowledged is not lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx
from running import Process, node

from atm.task import legal_path


def kill(started: Process) -> None:
    assert started.end(signal.SIGKILL) == -signal.SIGKILL


def logs_of(started: Process, task_id: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{started.url}/api/v1/tasks/{task_id}/logs")
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


def test_what_was_acknowledged_survives_a_kill() -> None:
    with node() as started:
        done = started.create("echo", payload={"n": 0})
        assert started.task(done, wait=10)["status"] == "SUCCESS"
        running = [started.create("sleep", payload={"seconds": 0.3}) for _ in range(5)]
        cancelled = started.create("sleep", payload={"seconds": 3600}, delay=3600)
        httpx.post(f"{started.url}/api/v1/tasks/{cancelled}/cancel")
        answer = httpx.post(
            f"{started.url}/api/v1/tasks/batch",
            json={"tasks": [{"task_type": "sleep", "payload": {"seconds": 0.01}} for _ in range(200)]},
        )
        kill(started)
    batch = answer.json()["data"]["task_ids"]
    assert len(batch) == 200
    with node() as started:
        tasks = {task_id: started.task(task_id, wait=20) for task_id in (done, cancelled, *running, *batch)}
        assert tasks[cancelled]["status"] == "CANCELLED"
        assert (tasks[done]["status"], tasks[done]["attempt"]) == ("SUCCESS", 1)
        assert {tasks[task_id]["status"] for task_id in (*running, *batch)} == {"SUCCESS"}
        for task_id in (*running, *batch[:20]):
            task, rows = tasks[task_id], logs_of(started, task_id)
            assert legal_path((row["from_status"], row["to_status"]) for row in rows) == "SUCCESS"
            assert task["attempt"] == 1 + task["recoveries"]
        assert started.end() == 0


def test_what_ran_is_recovered_and_runs_again() -> None:
    with node() as started:
        task_id = started.create("sleep", payload={"seconds": 1}, max_retry=0)
        started.wait_until_running(task_id)
        kill(started)
    with node() as started:
        task = started.task(task_id, wait=20)
        assert (task["status"], task["attempt"], task["recoveries"]) == ("SUCCESS", 2, 1)
        assert "Recovered: its worker was lost" in [row["message"] for row in logs_of(started, task_id)]


def test_settings_keys_and_delays_survive_a_kill() -> None:
    with node() as started:
        url = f"{started.url}/api/v1"
        httpx.put(f"{url}/task-types/echo", json={"max_concurrent": 3, "enabled": False})
        first = httpx.post(f"{url}/tasks", json={"task_type": "echo", "idempotency_key": "order-7"})
        later = httpx.post(f"{url}/tasks", json={"task_type": "sleep", "payload": {"seconds": 0}, "delay": 2})
        kill(started)
    assert first.status_code == later.status_code == 201
    with node() as started:
        url = f"{started.url}/api/v1"
        (echo,) = [t for t in httpx.get(f"{url}/task-types").json()["data"] if t["task_type"] == "echo"]
        assert (echo["max_concurrent"], echo["enabled"]) == (3, False)
        again = httpx.post(f"{url}/tasks", json={"task_type": "echo", "idempotency_key": "order-7"})
        assert (again.status_code, again.json()["data"]) == (200, first.json()["data"])
        assert started.task(first.json()["data"]["task_id"])["pending_reason"] == "type_disabled"
        assert started.task(later.json()["data"]["task_id"], wait=20)["status"] == "SUCCESS"


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


def test_a_start_after_many_crashes_leaves_no_litter() -> None:
    for _ in range(2):
        with node() as started:
            started.create("echo")
            kill(started)
    with node() as started:
        started.create("echo")
        assert started.end() == 0
    assert sorted(path.name for path in Path().iterdir()) == ["atm.db", "logs", "stderr.txt", "stdout.txt"]
