"""A task and its children: one slot is enough for any depth, one cancel for all of them."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from running import FREE_PORTS, PATIENCE, Process, node

HERE = Path(__file__).parent
ENVIRON = {**FREE_PORTS, "ATM_EXECUTORS": "family_tasks", "ATM_WORKER__CAPACITY": "1"}


@pytest.fixture
def one_slot(folder: Path) -> Iterator[Process]:
    shutil.copy(HERE / "family_tasks.py", folder)
    with node(environ=ENVIRON) as started:
        yield started


def children_of(started: Process, task_id: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{started.url}/api/v1/tasks", params={"parent_id": task_id})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"]["tasks"])


def until_exists(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def test_a_family_on_one_slot(one_slot: Process) -> None:
    # A line of four, on one slot.
    task_id = one_slot.create("count_down", payload={"from": 3})
    task = one_slot.task(task_id, wait=20)
    assert (task["status"], task["result"]) == ("SUCCESS", [3, 2, 1, "liftoff"])
    assert task["parent_id"] is None
    [child] = children_of(one_slot, task_id)
    assert (child["parent_id"], child["result"]) == (task_id, [2, 1, "liftoff"])
    rows = httpx.get(f"{one_slot.url}/api/v1/tasks/{task_id}/logs").json()["data"]
    assert f"Child 0 started: count_down {child['task_id']}" in [row["message"] for row in rows]

    # The same in threads and processes.
    task_id = one_slot.create("count_in_thread", payload={"from": 3, "next": "count_in_process"})
    task = one_slot.task(task_id, wait=20)
    assert (task["status"], task["result"]) == ("SUCCESS", [3, 2, 1, "liftoff"]), task
    assert [child["task_type"] for child in children_of(one_slot, task_id)] == ["count_in_process"]
    task = one_slot.task(one_slot.create("spawn_what_cannot_be", payload={"a": 1}), wait=20)
    assert (task["status"], task["attempt"]) == ("FAILED", 1)
    assert "spawn: the payload is no JSON object" in task["error"]["message"]

    refused = httpx.get(f"{one_slot.url}/api/v1/tasks", params={"parent_id": "x"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "parent_id")

    # The answer to a cancel comes when the child that runs has cleaned up, and the one that waits is off.
    task_id = one_slot.create("supervise", payload={"names": ["a", "b"]})
    until_exists(Path("begun.txt"))
    answer = httpx.post(f"{one_slot.url}/api/v1/tasks/{task_id}/cancel", timeout=PATIENCE)
    assert (answer.status_code, answer.json()["message"]) == (200, "Task cancelled successfully")
    assert Path("tidied-a").exists()
    assert Path("begun.txt").read_text() == "a\n"
    assert [child["status"] for child in children_of(one_slot, task_id)] == ["CANCELLED"] * 2
    ends = [child["completed_at"] for child in children_of(one_slot, task_id)]
    assert one_slot.task(task_id)["completed_at"] >= max(ends)

    # A user's retry brings them back.
    Path("quick").touch()
    assert httpx.post(f"{one_slot.url}/api/v1/tasks/{task_id}/retry").status_code == 200
    task = one_slot.task(task_id, wait=20)
    assert (task["status"], task["result"]) == ("SUCCESS", ["a", "b"])
    assert len(children_of(one_slot, task_id)) == 2


def test_a_node_killed_while_a_parent_waits_goes_on_with_the_same_child(one_slot: Process) -> None:
    task_id = one_slot.create("supervise", payload={"names": ["a"]}, max_retry=0)
    until_exists(Path("begun.txt"))
    [before] = children_of(one_slot, task_id)
    one_slot.end(signal.SIGKILL)
    Path("quick").touch()
    with node(environ=ENVIRON) as started:
        task = started.task(task_id, wait=20)
        assert (task["status"], task["result"], task["recoveries"]) == ("SUCCESS", ["a"], 1)
        [after] = children_of(started, task_id)
    assert (after["task_id"], after["attempt"]) == (before["task_id"], 2)
