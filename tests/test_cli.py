"""The command line: what a node says, what its options do, and the code it exits with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from atm import config as configuration
from atm.cli import EXIT_CONFIG, EXIT_DAMAGED, EXIT_UNAVAILABLE, main
from atm.stores.sqlite import SqliteStore
from running import FREE_PORTS, PATIENCE, free_ports, node

EXIT_STUCK = 70
EXIT_TERMINATED = 128 + signal.SIGTERM

STUBBORN = """
import trio
from atm import executes

@executes("stubborn")
async def stubborn(ctx, task):
    await ctx.log("here I stay")
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ATM_")]:
        monkeypatch.delenv(name)


# starting and stopping, as an operator sees it


def test_an_empty_folder_serves_at_once_and_says_what_to_try() -> None:
    with node() as running:
        output = running.wait_for("Ctrl-C")
        for name in ("API", "metrics", "data", "worker", "log"):
            assert re.search(rf"^  {name} +\S+", output, re.MULTILINE)
        assert f"data     {Path.cwd() / 'atm.db'}" in output
        assert "runs echo, http_request, send_email, sleep, webhook" in output
        tried = output.partition("Try:\n")[2].rpartition("Ctrl-C")[0]
        if shutil.which("curl"):
            answers = subprocess.run(
                ["bash", "-c", tried],
                env={**os.environ, "no_proxy": "*"},
                capture_output=True,
                text=True,
                check=True,
                timeout=PATIENCE,
            ).stdout
            assert answers.startswith('{"code":0,"message":"success","data":{"task_id":')
            assert '"payload":{"hello": "world"}' in answers
        assert running.end() == 0
        assert "Traceback" not in running.err.read_text()
    assert {path.name for path in Path.cwd().iterdir()} >= {"atm.db", "logs"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish_and_ends_with_0(number: signal.Signals) -> None:
    with node("serve") as running:
        task_id = running.create("sleep", payload={"seconds": 0.5})
        running.wait_until_running(task_id)
        assert running.end(number) == 0
        assert "Traceback" not in running.err.read_text()
    with node() as again:
        ended = again.task(task_id)
        assert (ended["status"], ended["attempt"]) == ("SUCCESS", 1)


def test_a_second_signal_ends_at_once() -> None:
    with node() as running:
        task_id = running.create("sleep", payload={"seconds": 60})
        running.wait_until_running(task_id)
        running.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while httpx.get(f"{running.url}/readyz").status_code != 503:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert running.end() == EXIT_TERMINATED
    with node("serve", "--capacity", "1") as again:
        again.wait_until_running(task_id)
        assert again.task(task_id)["recoveries"] == 1


def test_a_task_that_does_not_end_cannot_hold_up_the_node() -> None:
    Path("stubborn_tasks.py").write_text(STUBBORN)
    environ = {
        **FREE_PORTS,
        "ATM_EXECUTORS": "[stubborn_tasks]",
        "ATM_WORKER__GRACEFUL_SHUTDOWN_TIMEOUT": "100ms",
        "ATM_WORKER__CLEANUP_BUDGET": "100ms",
    }
    with node(environ=environ) as running:
        task_id = running.create("stubborn")
        running.wait_until_running(task_id)
        assert running.end() == EXIT_STUCK
        assert task_id in running.err.read_text()
    with node() as again:
        recovered = again.task(task_id)
        assert (recovered["status"], recovered["pending_reason"]) == ("PENDING", "no_worker")
        assert recovered["recoveries"] == 1


def test_a_file_damaged_while_in_use_ends_the_node() -> None:
    with node() as running:
        tasks = [{"task_type": "waits", "payload": {"text": "x" * 1000}}] * 300
        httpx.post(f"{running.url}/api/v1/tasks/batch", json={"tasks": tasks}).raise_for_status()
        wal = Path("atm.db-wal")
        header = wal.read_bytes()[:32]
        wal.write_bytes(header + os.urandom(wal.stat().st_size - 32))
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{running.url}/api/v1/tasks")
        assert running.process.wait(10) == EXIT_DAMAGED
        told = running.err.read_text()
        assert re.search(r"^atm: .*damaged", told, re.MULTILINE)
        assert "Traceback" not in told


def test_options_win_over_the_environment() -> None:
    (port,) = free_ports(1)
    options = ["--port", str(port), "--data", "other.db", "--capacity", "3", "--log-level", "error"]
    environ = {**FREE_PORTS, "ATM_SERVER__PORT": "1", "ATM_DATABASE__PATH": "ignored.db", "ATM_LOG__FILE": "null"}
    with node("serve", *options, "--host", "localhost", environ=environ) as running:
        assert running.url == f"http://127.0.0.1:{port}"
        (worker,) = httpx.get(f"{running.url}/api/v1/workers").json()["data"]
        assert worker["capacity"] == 3
        assert Path("other.db").exists()
        assert not Path("ignored.db").exists()
        assert not Path("logs").exists()
        assert running.end() == 0


def test_a_config_file_may_be_anywhere() -> None:
    Path("etc").mkdir()
    Path("etc/atm.yaml").write_text("app: {name: somewhere else}\nserver: {port: 0}\nmetrics: {enabled: false}\n")
    with node("serve", "--config", "etc/atm.yaml", environ={}) as running:
        output = running.wait_for("Ctrl-C")
        assert output.startswith("somewhere else is ready")
        assert re.search(r"^  metrics +off$", output, re.MULTILINE)
        assert running.end() == 0


def test_the_installed_command_is_the_same() -> None:
    command = Path(sys.executable).with_name("atm")
    told = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert re.fullmatch(r"atm, version \d+\.\d+\.\d+\n", told.stdout)


@pytest.mark.parametrize(("allowed", "stranger"), [("", 401), ("atm.example", 403)])
def test_a_key_made_by_the_command_opens_a_node_that_the_network_can_reach(allowed: str, stranger: int) -> None:
    told = run("key", "ci", "--scopes", "read,submit").output
    secret, config = made_key(told)
    Path("config.yaml").write_text(config)
    environ = {
        **FREE_PORTS,
        "ATM_SERVER__HOST": "0.0.0.0",  # noqa: S104
        "ATM_METRICS__HOST": "0.0.0.0",  # noqa: S104
        "ATM_SERVER__ALLOWED_HOSTS": allowed,
        "ATM_LOG__LEVEL": "debug",
    }
    with node(environ=environ) as running:
        banner = running.wait_for("Ctrl-C")
        api, metrics = (f"http://127.0.0.1:{port}" for port in re.findall(r"http://\S+?:(\d+)", banner)[:2])
        named, key = {"Host": "atm.example"}, {"Authorization": f"Bearer {secret}"}
        assert httpx.get(f"{api}/livez", headers=named).status_code == 200
        for url in (f"{api}/api/v1/tasks", f"{metrics}/metrics"):
            assert httpx.get(url, headers=named).status_code == 401
            assert httpx.get(url, headers={"Host": "other.example"}).status_code == stranger
            assert httpx.get(url, headers=named | {"X-API-Key": "wrong"}).status_code == 401
            assert httpx.get(url, headers=named | key).status_code == 200
        task = {"task_type": "echo"}
        made = httpx.post(f"{api}/api/v1/tasks", headers=named | key, json=task)
        assert made.status_code == 201
        location = made.headers["Location"]
        assert httpx.post(f"{api}{location}/cancel", headers=named | key).status_code == 403
        assert running.end() == 0
    for written in (Path("stdout.txt"), Path("stderr.txt"), *Path("logs").iterdir(), *Path().glob("atm.db*")):
        assert secret.encode() not in written.read_bytes()


def test_a_strategy_of_ones_own_is_found_in_the_current_folder() -> None:
    Path("my_balance.py").write_text(
        "class First:\n    def choose(self, hint, workers):\n        return workers[0]\n"
    )
    environ = {**FREE_PORTS, "ATM_SCHEDULER__LOAD_BALANCE_STRATEGY": "my_balance:First"}
    with node(environ=environ, command=(str(Path(sys.executable).with_name("atm")),)) as running:
        task_id = running.create("echo")
        assert running.task(task_id, wait=PATIENCE)["status"] == "SUCCESS"


# what cannot work: one line and a code of its own


def run(*arguments: str, env: Mapping[str, str | None] | None = None) -> Result:
    return CliRunner().invoke(main, arguments, env=env)


def refusal(*arguments: str, code: int, env: Mapping[str, str | None] | None = None) -> str:
    """What is said by a node that does not start: one line."""
    result = run(*arguments, env={**FREE_PORTS, **(env or {})})
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"atm: [^\n]+\n", result.stderr)
    return result.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("server: {prot: 1}", "server.prot: unknown key; did you mean port?"),
        ("worker: {capacity: many}", "worker.capacity: "),
        ("database: {driver: oracle}", "database.driver: "),
        ("database: {driver: mysql}", "redis.addr: "),
        ("scheduler: {load_balance_strategy: fair}", "scheduler.load_balance_strategy: "),
        ("worker: {supported_types: [unheard_of]}", "worker.supported_types: "),
        ("executors: [no_such_module]", "executors[0]: no module no_such_module"),
        ("executors: ['atm.executors.email:EmailExecutor', {use: 'atm:Nothing'}]", "executors[1]: "),
        ("server: [", "config.yaml is not valid YAML"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_key(text: str, told: str) -> None:
    Path("config.yaml").write_text(text)
    assert told in refusal(code=EXIT_CONFIG)
    assert not Path("atm.db").exists()


def test_a_missing_config_file_and_an_unknown_variable_are_wrong_settings() -> None:
    assert "nowhere.yaml" in refusal("serve", "--config", "nowhere.yaml", code=EXIT_CONFIG)
    assert "ATM_PORT" in refusal(code=EXIT_CONFIG, env={"ATM_PORT": "1"})
    assert "server.host" in refusal("serve", "--host", "0.0.0.0", code=EXIT_CONFIG)  # noqa: S104


@pytest.mark.parametrize(
    ("key", "variable"), [("server.port", "ATM_SERVER__PORT"), ("metrics.port", "ATM_METRICS__PORT")]
)
def test_a_busy_port_is_told_by_its_key(key: str, variable: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        told = refusal(code=EXIT_UNAVAILABLE, env={variable: port})
    assert key in told
    assert port in told


def test_a_file_that_another_node_uses_is_left_alone() -> None:
    store = SqliteStore("atm.db")
    store.open()
    try:
        assert "in use by another node" in refusal(code=EXIT_UNAVAILABLE)
    finally:
        store.close()


@pytest.mark.parametrize(
    "content", [b"", b"this is no database, for sure" * 100, b"SQLite format 3\0" + b"\xff" * 9000]
)
def test_a_file_that_is_no_store_is_refused_and_kept(content: bytes) -> None:
    Path("atm.db").write_bytes(content)
    assert "atm.db" in refusal(code=EXIT_UNAVAILABLE)
    assert Path("atm.db").read_bytes() == content


def test_a_folder_that_is_not_there_is_not_made() -> None:
    assert "missing" in refusal("serve", "--data", "missing/atm.db", code=EXIT_UNAVAILABLE)
    assert not Path("missing").exists()


def test_a_log_file_that_cannot_be_written_is_told_by_its_key() -> None:
    Path("logs").touch()
    assert "log.file" in refusal(code=EXIT_UNAVAILABLE)


# keys


def made_key(told: str) -> tuple[str, str]:
    """What ``atm key`` says: the key, and the text for the config."""
    (secret,) = re.findall(r"^  (atm_\S{43})$", told, re.MULTILINE)
    return secret, "server:\n" + told.partition("server:\n")[2]


def test_a_new_key_comes_with_its_lines_for_the_config() -> None:
    secret, config = made_key(run("key", "001").output)
    Path("config.yaml").write_text(config)
    (entry,) = configuration.load(environ={}).server.api_keys
    assert entry.hash == f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    assert (entry.name, entry.scopes) == ("001", ["read", "submit", "cancel"])
    assert secret not in config
    assert made_key(run("key", "001").output)[0] != secret


@pytest.mark.parametrize(
    "arguments", [[], ["a b"], [""], ["ci", "--scopes", ""], ["ci", "--scopes", "root"], ["ci", "more"]]
)
def test_a_key_that_the_config_would_refuse_is_not_made(arguments: list[str]) -> None:
    told = run("key", *arguments)
    assert told.exit_code == 2
    assert "Usage:" in told.output
    assert "atm_" not in told.output


# help


def test_help_names_every_option() -> None:
    told = run("serve", "--help")
    assert told.exit_code == 0
    for option in ("--config", "--host", "--port", "--metrics-port", "--data", "--capacity", "--log-level"):
        assert option in told.output
    assert "serve" in run("-h").output


@pytest.mark.parametrize(
    "arguments", [["serve", "--prot", "1"], ["sevre"], ["serve", "--port", "x"], ["serve", "more"]]
)
def test_an_option_that_is_none_is_a_wrong_use(arguments: list[str]) -> None:
    told = run(*arguments)
    assert told.exit_code == 2
    assert "Usage:" in told.output


@pytest.mark.parametrize("arguments", [["--json", "ls"], ["--url=http://x", "get", "4"]])
def test_an_option_before_its_command_is_told_where_it_belongs(arguments: list[str]) -> None:
    told = CliRunner().invoke(main, arguments, prog_name="atm")
    assert told.exit_code == 2
    assert f"atm {arguments[1]} {arguments[0]} …" in told.stderr


def test_a_file_may_be_called_like_a_command() -> None:
    assert CliRunner().invoke(main, ["--config", "bench"]).stderr == "atm: no config file bench\n"


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert run("--version").output == f"atm, version {version('async-task-manager')}\n"


def test_the_log_is_json_when_nobody_watches() -> None:
    with node() as running:
        task_id = running.create("sleep", payload={"seconds": "long"})
        assert running.task(task_id, wait=PATIENCE)["status"] == "FAILED"
        assert running.end() == 0
        for text in (running.err.read_text(), Path("logs/worker.log").read_text()):
            about = [json.loads(line) for line in text.splitlines() if task_id in line]
            assert about[0]["attempt"] == 1
            assert about[0]["level"] == "warning"
