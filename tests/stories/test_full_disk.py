"""The disk becomes full while the node runs, and is given room again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from running import FREE_PORTS, fill, node


def test_a_full_disk_refuses_new_tasks_and_loses_none(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=4m")
    environ = {**FREE_PORTS, "ATM_DATABASE__PATH": f"{disk}/atm.db", "ATM_LOG__FILE": f"{disk}/worker.log"}
    with node(environ=environ) as started, httpx.Client(base_url=f"{started.url}/api/v1", timeout=20) as client:
        before = started.create("echo", payload={"n": 1})
        assert started.task(before, wait=10)["status"] == "SUCCESS"
        running = started.create("sleep", payload={"seconds": 0.5})
        waiting = started.create("sleep", payload={"seconds": 0}, delay=1)
        started.wait_until_running(running)
        fill(disk)
        accepted: list[str] = []
        for _ in range(200):  # what is still free in the journal is used up first
            answer = client.post("/tasks", json={"task_type": "echo", "payload": {"text": "x" * 50_000}})
            if answer.status_code != 201:
                break
            accepted.append(answer.json()["data"]["task_id"])
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["code"] // 100 == 503
        assert started.task(before)["result"] == {"n": 1}, "what is there can be read"
        assert client.get("/tasks").status_code == 200

        (disk / "filler").unlink()
        for task_id in (running, waiting, *accepted):
            task = started.task(task_id, wait=20)
            assert (task["status"], task["attempt"]) == ("SUCCESS", 1), task
        assert client.post("/tasks", json={"task_type": "echo"}).status_code == 201
        assert started.end() == 0
        told = started.err.read_text()
        assert "Traceback" not in told
        assert "the store cannot write: database or disk is full" in told
        assert told.count("cannot write the log file") <= 1
