"""config check, config show, completion, and what the doctor says of broken settings: no server is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from atm import config as configuration
from atm.cli import COMMANDS, main
from running import ATM, PATIENCE


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ATM_")]:
        monkeypatch.delenv(name)


def run(*arguments: str, code: int = 0) -> Result:
    told = CliRunner().invoke(main, list(arguments), prog_name="atm")
    assert told.exit_code == code, (told.stdout, told.stderr, told.exception)
    return told


def document(*arguments: str, code: int = 0) -> Any:
    [line] = run(*arguments, "--json", code=code).stdout.splitlines()
    return json.loads(line)


# config check


def test_settings_that_a_node_would_accept_are_ok() -> None:
    assert run("config", "check").stdout.startswith("ok: no config file")
    Path("config.yaml").write_text("worker: {supported_types: [echo]}")
    assert run("config", "check").stdout == "ok: config.yaml (embedded; runs echo)\n"
    assert document("config", "check") == {
        "ok": True,
        "file": "config.yaml",
        "driver": "sqlite",
        "task_types": ["echo"],
    }


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("server: {prot: 1}", "server.prot", "did you mean port?"),
        ("server: {port: many}", "server.port", "expected int"),
        ("database: {host: db}", "redis.addr", "missing"),
        ("executors: [not_there]", "executors", "not_there"),
        ("scheduler: {load_balance_strategy: best}", "scheduler.load_balance_strategy", "best"),
        ("server: [", "", "not valid YAML"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_file(text: str, key: str, reason: str) -> None:
    Path("etc.yaml").write_text(text)
    told = run("config", "check", "--config", "etc.yaml", code=78)
    assert told.stdout == ""
    assert len(told.stderr.splitlines()) == 1
    for part in (key, reason, "etc.yaml"):
        assert part in told.stderr
    report = document("config", "check", "--config", "etc.yaml", code=78)
    assert (report["ok"], report["file"]) == (False, "etc.yaml")
    assert (report["key"] or "").startswith(key)
    assert reason in report["reason"]


def test_a_setting_of_the_environment_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("config.yaml").write_text("server: {port: 1}")
    monkeypatch.setenv("ATM_SERVER__PORT", "many")
    assert "(in ATM_SERVER__PORT)" in run("config", "check", code=78).stderr
    monkeypatch.delenv("ATM_SERVER__PORT")
    monkeypatch.setenv("ATM_URK", "x")
    assert "ATM_URK" in run("config", "check", code=78).stderr
    monkeypatch.delenv("ATM_URK")
    monkeypatch.setenv("ATM_SERVRE__PORT", "1")
    assert "did you mean server? (in ATM_SERVRE__PORT)" in run("config", "check", code=78).stderr
    monkeypatch.delenv("ATM_SERVRE__PORT")
    monkeypatch.setenv("ATM_EXECUTORS", "not_there")
    assert "(in ATM_EXECUTORS)" in run("config", "check", code=78).stderr


def test_a_config_file_that_is_not_there_is_named() -> None:
    assert (
        run("config", "check", "--config", "missing.yaml", code=78).stderr == "atm: no config file missing.yaml\n"
    )
    assert document("config", "check", "--config", "missing.yaml", code=78)["file"] == "missing.yaml"


# config show


SECRETS = """
server: {api_keys: [{name: ci, hash: "sha256:%s", scopes: [read]}]}
database: {host: db, password: hunter2}
redis: {url: "redis://:hunter2@localhost"}
executors: [{use: "a:B", config: {
  smtp_password: hunter2, token: hunter2, access_key: hunter2, accessKey: hunter2, host: h,
  headers: {Authorization: hunter2}, broker: "amqp://me:hunter2@mq/tasks", copies: ["ftp://hunter2@old"]}}]
""" % ("0" * 64)


def test_the_settings_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("config.yaml").write_text(SECRETS)
    monkeypatch.setenv("ATM_SERVER__PORT", "8181")
    for shown in (document("config", "show"), yaml.safe_load(run("config", "show").stdout)):
        assert shown["server"]["port"] == 8181
        assert shown["database"] | {"host": "db", "password": "***"} == shown["database"]
        assert shown["executors"][0]["config"] == {
            "smtp_password": "***",
            "token": "***",
            "access_key": "***",
            "accessKey": "***",
            "host": "h",
            "headers": {"Authorization": "***"},
            "broker": "amqp://***@mq/tasks",
            "copies": ["ftp://***@old"],
        }
        assert shown["scheduler"]["scan_interval"] == 0.1
        assert "hunter2" not in repr(shown)
        assert "0" * 64 not in repr(shown)


def test_what_is_shown_can_be_a_config_again() -> None:
    shown = run("config", "show").stdout
    assert configuration.parse(yaml.safe_load(shown)) == configuration.Config()
    assert run("config", "show", "--config", "missing.yaml", code=78).stdout == ""


# doctor


def test_the_doctor_names_a_setting_that_is_wrong() -> None:
    Path("config.yaml").write_text("server: {prot: 1}")
    report = document("doctor", code=1)
    [finding] = report["findings"]
    assert report["ok"] is False
    assert (finding["check"], finding["level"]) == ("config", "error")
    assert "server.prot" in finding["message"]
    assert "config.yaml" in finding["advice"]


# help, completion


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    told = run(command, "--help").stdout
    assert f"Usage: atm {command}" in told
    assert "--help" in told
    assert command in run("--help").stdout


def test_keys_are_made_as_json() -> None:
    made = document("key", "ci", "--scopes", "read")
    assert made["key"].startswith("atm_")
    assert (made["name"], made["scopes"]) == ("ci", ["read"])
    assert made["hash"].startswith("sha256:")


def test_an_embedded_store_needs_no_migration() -> None:
    assert "database.driver" in run("migrate", "--json", code=78).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_is_its_language(shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_ATM_COMPLETE" in script
    if shutil.which(shell):
        command = [shell, "-n"] if shell != "fish" else [shell, "--no-execute"]
        subprocess.run(command, input=script, text=True, check=True, timeout=PATIENCE)


@pytest.mark.skipif(shutil.which("bash") is None, reason="completes in bash")
def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    # As at the prompt: the function that the script made is asked, and asks the command.
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    command = bin_folder / "atm"
    command.write_text(f'#!/bin/sh\nexec {" ".join(ATM)} "$@"\n')
    command.chmod(0o755)
    script = """
eval "$(atm completion bash)"
ask() { COMPREPLY=(); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _atm_completion "$@"; echo "${COMPREPLY[@]}"; }
ask atm do
ask atm ls --st
ask atm config ""
"""
    environ = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environ, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout.splitlines() == ["doctor", "--status", "check show"]
    assert done.stderr == ""
