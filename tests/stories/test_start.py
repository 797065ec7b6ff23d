"""What a node says when it cannot start here: one line, and the data stays as it is."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from running import ATM, FREE_PORTS, PATIENCE, fill, node

Mount = Callable[[str], Path]
UNAVAILABLE = 69
DAMAGED = 74
CONFIG = 78


def refusal(folder: Path | str = ".", *, leaves: tuple[str, ...] = ()) -> str:
    """The one line with which a node refuses to start in this folder, which else it leaves as it was."""
    before = _prints(Path(folder))
    environ = {**os.environ, **FREE_PORTS, "ATM_LOG__FILE": "null"}
    ended = subprocess.run(
        ATM, cwd=folder, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode in (UNAVAILABLE, DAMAGED, CONFIG), (ended.returncode, ended.stderr)
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("atm: ")
    after = {name: digest for name, digest in _prints(Path(folder)).items() if name not in leaves}
    assert after == before
    return line


def _prints(folder: Path) -> dict[str, str]:
    """Of each file, what it holds; but for SQLite's own, which it cannot always remove from a full disk."""
    passing = ("-wal", "-shm", ".pyc")
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(passing)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def used_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a node that has done something and was stopped."""
    folder = tmp_path_factory.mktemp("used")
    here = Path.cwd()
    os.chdir(folder)
    try:
        with node() as started:
            tasks = [{"task_type": "echo", "payload": {"text": "x" * 500}}] * 300
            answer = httpx.post(f"{started.url}/api/v1/tasks/batch", json={"tasks": tasks})
            started.task(answer.json()["data"]["task_ids"][-1], wait=20)
            assert started.end() == 0
    finally:
        os.chdir(here)
    return folder / "atm.db"


@pytest.fixture
def store(used_store: Path) -> Path:
    """A copy of it, in the current folder."""
    return Path(shutil.copy(used_store, "atm.db"))


def test_a_second_node_on_the_same_file_is_refused() -> None:
    with node() as started:
        task_id = started.create("echo", payload={"a": 1})
        line = subprocess.run(
            ATM, env={**os.environ, **FREE_PORTS}, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert line.returncode == UNAVAILABLE
        (told,) = line.stderr.splitlines()
        assert "atm.db is in use by another node" in told
        assert started.task(task_id, wait=10)["result"] == {"a": 1}
        assert started.end() == 0


def test_a_file_with_a_damaged_page_is_refused(store: Path) -> None:
    content = bytearray(store.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = os.urandom(4096)
    store.write_bytes(content)
    assert "damaged" in refusal()


def test_a_file_cut_short_is_refused(store: Path) -> None:
    os.truncate(store, store.stat().st_size // 2)
    assert "atm.db" in refusal()


@pytest.mark.parametrize("is_used", [False, True])
def test_a_read_only_folder_is_refused(small_disk: Mount, used_store: Path, is_used: bool) -> None:
    disk = small_disk("size=4m")
    if is_used:
        shutil.copy(used_store, disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "read-only" in refusal(disk)


def test_a_full_disk_is_refused_and_nothing_half_made_is_left(small_disk: Mount) -> None:
    disk = small_disk("size=64k")
    (disk / "filler").write_bytes(bytes(48 * 1024))
    assert "full" in refusal(disk)


def test_a_store_on_a_full_disk_is_refused_and_kept(small_disk: Mount, used_store: Path) -> None:
    disk = small_disk("size=2m")
    shutil.copy(used_store, disk)
    fill(disk)
    assert "full" in refusal(disk)
    (disk / "filler").unlink()
    with node(environ={**FREE_PORTS, "ATM_DATABASE__PATH": f"{disk}/atm.db"}) as started:
        listed = httpx.get(f"{started.url}/api/v1/tasks?limit=500").json()["data"]["tasks"]
        assert len(listed) == 300
        assert started.end() == 0


WANTS_A_TOKEN = """
import os
from atm import Executor

class Letters(Executor):
    type = "letters"
    supported_task_types = ("send_letter",)

    async def __aenter__(self):
        raise ConnectionRefusedError("no letter box at 127.0.0.1")
"""


def test_an_executor_that_cannot_be_opened_is_told() -> None:
    Path("my_tasks.py").write_text(WANTS_A_TOKEN)
    Path("config.yaml").write_text("executors: ['my_tasks:Letters']")
    line = refusal(leaves=("atm.db",))
    assert "letters" in line
    assert "no letter box at 127.0.0.1" in line


def test_an_executors_module_that_ends_the_process_is_told() -> None:
    Path("my_tasks.py").write_text("import sys\nsys.exit(0)\n")
    Path("config.yaml").write_text("executors: [my_tasks]")
    assert "executors[0]" in refusal()


def test_a_node_needs_neither_worker_nor_api() -> None:
    Path("config.yaml").write_text("worker: {enabled: false}\nmetrics: {enabled: false}\nlog: {file: null}")
    with node() as started:
        task = started.task(started.create("echo"))
        assert (task["status"], task["pending_reason"]) == ("PENDING", "no_worker")
        assert "metrics  off" in started.out.read_text()
        assert not Path("logs").exists()
        assert started.end() == 0
    Path("config.yaml").write_text("server: {enabled: false}\nscheduler: {enabled: false}")
    with node() as started:
        assert "API      off" in started.wait_for("worker ")
        assert started.end() == 0
