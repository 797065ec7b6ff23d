"""The quick start by each way in: curl, the Python SDK, the Go SDK, the command line; embedded, and as a cluster.

What is run stands on the pages for users. `pytest tests/stories/test_ways_in.py -s` shows what was asked and told.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import golang
from stories.cluster import PATIENCE, Cluster, Node, until
from stories.test_cluster_quick_start import EMAIL, configured
from stories.test_quick_start import CANCELLED

DOCS = Path(__file__).parents[2] / "docs"

METRICS = (
    'task_created_total{task_type="send_email"}',
    'task_duration_seconds{quantile="0.5",status="success",task_type="send_email"}',
    'worker_load{worker_id="worker-001"}',
    'queue_length{queue="high"}',
    'queue_length{queue="normal"}',
)


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that is ready: one that needs no servers, or one with the quick start's config.yaml."""
    if request.param == "embedded":
        alone = Node("worker-001", tmp_path_factory.mktemp("embedded") / "node", {})
        try:
            yield alone.start().ready()
            assert alone.stop() == 0
        finally:
            alone.close()
        return
    with Cluster(request.getfixturevalue("mariadb")) as cluster:
        one = configured(cluster, "worker-001", scheduler=True)
        yield one.start().ready()
        assert one.stop() == 0


def told(command: str, site: Node, **environ: str) -> str:
    """What a command prints, in this folder, about that node."""
    for documented, real in (
        ("http://localhost:8080", site.url),
        ("http://localhost:9090/metrics", site.metrics_url),
    ):
        command = command.replace(documented, real)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {**os.environ, "PATH": path, "ATM_URL": site.url, "no_proxy": "*", **environ}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    print(f"$ {command.strip()}\n{done.stdout}{done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks(page: str, language: str) -> list[str]:
    """The code on a page for users, in this language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def assert_created_and_sent(said: str, site: Node) -> None:
    """What a program of the quick start prints, and what becomes of its task."""
    printed = re.fullmatch(r"Task created: (\S+)\nTask status: (PENDING|PROCESSING|SUCCESS)\n", said)
    assert printed is not None, said
    assert_sent(site.task(printed[1], wait=10))


def assert_sent(task: dict[str, Any]) -> None:
    assert (task["status"], task["priority"], task["payload"]) == ("SUCCESS", 1, EMAIL)
    assert list(task["result"]) == ["message_id"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl(site: Node) -> None:
    start, create, look, log, create_long, cancel, *_ = blocks("quickstart.md", "bash")
    assert "python -m atm" in start
    task_id = json.loads(told(create, site))["data"]["task_id"]
    assert_sent(json.loads(told(look, site, TASK_ID=task_id))["data"])
    rows = json.loads(told(log, site, TASK_ID=task_id))["data"]
    assert [row["message"] for row in rows] == ["Task created", "Task assigned to worker", "Task succeeded"]

    task_id = json.loads(told(create_long, site))["data"]["task_id"]
    assert json.loads(told(cancel, site, TASK_ID=task_id)) == CANCELLED

    def metrics_are_there() -> bool:
        metrics = told("curl -s http://localhost:9090/metrics", site)
        return all(f"\n{name} " in metrics for name in METRICS)

    until(metrics_are_there, "the metrics that the quick start names")


def test_the_python_sdk(site: Node) -> None:
    Path("program.py").write_text(
        blocks("python-sdk.md", "python")[0].replace("http://localhost:8080", site.url), encoding="utf-8"
    )
    assert_created_and_sent(told("python program.py", site), site)


@pytest.mark.skipif(
    bool(golang.missing()), reason="the Go SDK was NOT tried: no Go toolchain (sudo apt install golang-go)"
)
def test_the_go_sdk(site: Node) -> None:
    golang.write(Path("program"), golang.programs()[0], site.url)
    for command in golang.SET_UP:
        told(f"cd program && {' '.join(command)}", site, **golang.ENVIRON)
    assert_created_and_sent(told("cd program && go run .", site, **golang.ENVIRON), site)


def test_the_command_line(site: Node) -> None:
    task_id = told(f"atm submit send_email --priority high -p '{json.dumps(EMAIL)}'", site).strip()
    assert "SUCCESS" in told(f"atm logs -f {task_id}", site)
    assert_sent(json.loads(told(f"atm get {task_id} --json", site)))
    assert task_id in told("atm ls --status success --type send_email --all --ids", site).split()

    task_id = told("atm submit sleep -p '{\"seconds\": 3600}'", site).strip()
    assert told(f"atm cancel {task_id}", site) == f"{task_id}  cancelled\n"
    assert told("atm workers", site).splitlines()[1].startswith("worker-001 ")
    # Where the node's config.yaml is, if it has one: there the cluster's servers are looked at, too.
    told(f"cd {site.folder} && atm doctor", site)
