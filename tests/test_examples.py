"""The examples, on one node that has them all: each does its work, and ends when it is cancelled."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from running import FREE_PORTS, PATIENCE, Process, node

EXAMPLES = Path(__file__).parent.parent / "examples"
MODULES = ["archive", "export", "family", "primes", "sort"]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    environ = {**FREE_PORTS, "PYTHONPATH": str(EXAMPLES), "ATM_EXECUTORS": ",".join(MODULES)}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ATM_")]:
            patch.delenv(name)
        patch.chdir(tmp_path_factory.mktemp("examples"))
        with node(environ=environ) as running:
            yield running
            assert running.end() == 0


def test_every_example_is_tried() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(MODULES)


def ended(started: Process, task_type: str, payload: dict[str, Any]) -> dict[str, Any]:
    task = started.task(started.create(task_type, payload=payload), wait=25)
    assert task["status"] == "SUCCESS", task
    return task


def running(started: Process, task_type: str, payload: dict[str, Any]) -> str:
    task_id = started.create(task_type, payload=payload)
    started.wait_until_running(task_id)
    return task_id


def cancel(started: Process, task_id: str) -> None:
    answer = httpx.post(f"{started.url}/api/v1/tasks/{task_id}/cancel", timeout=25)
    assert answer.status_code == 200, answer.text
    assert started.task(task_id)["status"] == "CANCELLED"


def children(started: Process, task_id: str) -> list[str]:
    """Their states."""
    answer = httpx.get(f"{started.url}/api/v1/tasks", params={"parent_id": task_id})
    return [task["status"] for task in answer.json()["data"]["tasks"]]


def test_an_export_writes_all_of_its_file(started: Process) -> None:
    task = ended(started, "export", {"lines": 3})
    assert Path(task["result"]["path"]).read_text() == "0\n1\n2\n"
    assert task["progress"]["message"] == "line 3 of 3"


def test_a_cancelled_export_leaves_no_file(started: Process) -> None:
    task_id = running(started, "export", {"lines": 2, "pause": 3600})
    cancel(started, task_id)
    assert list(Path("exports").glob(f"{task_id}*")) == []


def test_a_parent_adds_up_what_its_children_have_counted(started: Process) -> None:
    assert ended(started, "count_all", {"texts": ["to be or", "not"]})["result"] == 4


def test_a_cancelled_parent_has_cancelled_its_children(started: Process) -> None:
    task_id = running(started, "count_all", {"texts": ["a", "b"], "pause": 3600})
    deadline = time.monotonic() + PATIENCE
    while len(children(started, task_id)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    cancel(started, task_id)
    assert children(started, task_id) == ["CANCELLED", "CANCELLED"]


def test_an_archive_holds_all_of_its_files(started: Process) -> None:
    task = ended(started, "archive", {"texts": {"a.txt": "first", "b.txt": "second"}})
    with zipfile.ZipFile(task["result"]["path"]) as file:
        assert {name: file.read(name) for name in file.namelist()} == {"a.txt": b"first", "b.txt": b"second"}


def test_a_cancelled_archive_leaves_no_file(started: Process) -> None:
    texts = {f"{number}.txt": "a" for number in range(1000)}
    task_id = running(started, "archive", {"texts": texts, "pause": 0.05})
    cancel(started, task_id)
    assert list(Path().glob(f"{task_id}*")) == []


def test_primes_are_counted_and_given_up_in_a_process_of_their_own(started: Process) -> None:
    assert ended(started, "count_primes", {"below": 100})["result"] == 25
    cancel(started, running(started, "count_primes", {"below": 10**9}))


def test_lines_are_sorted_by_a_command(started: Process) -> None:
    assert ended(started, "sort_lines", {"lines": ["b", "c", "a"]})["result"] == ["a", "b", "c"]
