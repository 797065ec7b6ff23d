"""The composition root: what the config switches on and off, and how a node ends as part of another program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio

from atm import Node, config
from atm.config import Config
from atm.context import Context
from atm.errors import ConfigError
from atm.nursery.watchdog import Watchdog
from atm.registry import executes
from atm.task import Task


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return config.parse(
        {
            "server": {"port": 0},
            "metrics": {"port": 0},
            "database": {"path": str(tmp_path / "atm.db")},
            "log": {"file": None},
        }
    )


def test_an_embedded_node_loads_no_driver_of_a_cluster() -> None:
    program = "import sys, atm.node; print({'redis', 'trio_mysql', 'cryptography'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


async def test_a_node_lives_in_a_nursery_of_another_program(settings: Config) -> None:
    node = Node(settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        async with httpx.AsyncClient(base_url=node.urls["api"]) as client:
            assert (await client.get("/readyz")).status_code == 200
            created = await client.post("/api/v1/tasks", json={"task_type": "echo"})
            task_id = created.json()["data"]["task_id"]
            task = (await client.get(f"/api/v1/tasks/{task_id}?wait=10")).json()["data"]
            assert task["status"] == "SUCCESS"
        node.stop()


async def test_a_cancelled_node_gives_everything_back(settings: Config) -> None:
    for _ in range(2):  # the second finds the file unlocked
        async with trio.open_nursery() as nursery:
            await nursery.start(Node(settings).run)
            nursery.cancel_scope.cancel()


async def test_a_bug_ends_the_node_and_is_not_hidden(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    async def has_a_bug(watchdog: Watchdog, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        raise ZeroDivisionError

    monkeypatch.setattr(Watchdog, "tick", has_a_bug)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await Node(settings).run()


async def test_a_worker_runs_only_the_types_it_is_to_support(settings: Config) -> None:
    @executes("resize", "crop")
    async def resize(ctx: Context, task: Task) -> None:
        pass

    supported = config.parse({**config.masked(settings), "worker": {"supported_types": ["echo", "crop"]}})
    node = Node(supported)
    node.register_executor(resize)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        assert node.task_types == ["crop", "echo"]
        assert "runs crop, echo" in node.banner()
        node.stop()


def test_a_type_that_nothing_supports_is_told_before_anything_is_made(settings: Config, tmp_path: Path) -> None:
    unknown = config.parse({**config.masked(settings), "worker": {"supported_types": ["unheard_of"]}})
    with pytest.raises(ConfigError, match=r"worker\.supported_types: .*unheard_of"):
        trio.run(Node(unknown).run)
    assert list(tmp_path.iterdir()) == []


def test_a_node_reads_the_config_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("worker: {id: from-the-folder}")
    (tmp_path / "other.yaml").write_text("worker: {id: from-the-path}")
    assert Node().config.worker_id == "from-the-folder"
    assert Node(tmp_path / "other.yaml").config.worker_id == "from-the-path"
    with pytest.raises(ConfigError):
        Node("missing.yaml")
