"""``shell``: commands that the config allows, and nothing beside them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from atm.errors import ConfigError
from atm.executors.command import CommandRunner
from atm.executors.guarded import Guards
from atm.executors.shell import MAX_OUTPUT, ShellExecutor
from atm.store import Outcome
from atm.task import Status
from nursery.bench import AttemptKit


async def run(attempts: AttemptKit, executor: ShellExecutor, **payload: Any) -> Outcome:
    made = attempts.run(executor, payload=payload)
    made.context._commands = CommandRunner(Guards())
    return await attempts.end_of(made)


def result_of(outcome: Outcome) -> dict[str, Any]:
    assert outcome.status is Status.SUCCESS, outcome.message
    found: dict[str, Any] = json.loads(outcome.result_json or "null")
    return found


def refused(outcome: Outcome) -> str:
    assert (outcome.status, outcome.retry_in) == (Status.FAILED, None), outcome
    return outcome.message


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


async def test_a_command_runs_without_a_shell(attempts: AttemptKit) -> None:
    result = result_of(await run(attempts, ShellExecutor(), argv=["echo", "$HOME; ls", "a  b"]))
    assert result == {"exit_code": 0, "stdout": "$HOME; ls a  b\n", "stderr": ""}


async def test_a_command_reads_what_it_is_given(attempts: AttemptKit) -> None:
    result = result_of(await run(attempts, ShellExecutor(), argv=["cat"], input="ü\n"))
    assert result["stdout"] == "ü\n"


async def test_another_exit_code_is_a_failure_that_tells_the_last_words(attempts: AttemptKit) -> None:
    script = "import sys; sys.stderr.write('first' + 'x' * 5000 + '\\nno such report\\n'); sys.exit(3)"
    outcome = await run(attempts, ShellExecutor(), argv=python(script))
    assert outcome.status is Status.FAILED
    assert outcome.retry_in is not None
    assert "exited with code 3: " in outcome.message
    assert outcome.message.endswith("no such report")
    assert "first" not in outcome.message


async def test_a_signal_is_told(attempts: AttemptKit) -> None:
    outcome = await run(attempts, ShellExecutor(), argv=python("import os; os.kill(os.getpid(), 9)"))
    assert outcome.message.endswith("was ended by signal 9")


async def test_of_much_output_the_beginning_is_kept(attempts: AttemptKit) -> None:
    """Also in its worst shape it fits into a result."""
    script = "import sys; sys.stdout.write('\\1' * 99999); sys.stderr.write('\\1' * 99999)"
    result = result_of(await run(attempts, ShellExecutor(), argv=python(script)))
    assert (len(result["stdout"]), len(result["stderr"]), result["truncated"]) == (MAX_OUTPUT, MAX_OUTPUT, True)


async def test_what_is_no_text_is_made_one(attempts: AttemptKit) -> None:
    script = "import sys; sys.stdout.buffer.write(b'a\\xff\\x00b')"
    assert result_of(await run(attempts, ShellExecutor(), argv=python(script)))["stdout"] == "a\ufffd\x00b"


async def test_the_environment_of_the_node_is_not_handed_on(
    attempts: AttemptKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "ATM_API_KEY", "ATM_DATABASE__PASSWORD", "JAVA_HOME"):
        monkeypatch.setenv(name, "of the node")
    monkeypatch.setenv("LANG", "C.UTF-8")
    executor = ShellExecutor(env={"A": "of the config"}, inherit=["JAVA_HOME"], payload_env=["B"])
    result = result_of(await run(attempts, executor, argv=["env"], env={"B": "of the payload"}))
    found = dict(line.split("=", 1) for line in result["stdout"].splitlines())
    assert found["PATH"] == os.environ["PATH"]
    assert (found["A"], found["B"], found["JAVA_HOME"]) == ("of the config", "of the payload", "of the node")
    assert not {"AWS_SECRET_ACCESS_KEY", "ATM_API_KEY", "ATM_DATABASE__PASSWORD"} & found.keys()


async def test_a_program_that_is_not_listed_is_refused(attempts: AttemptKit) -> None:
    executor = ShellExecutor(programs=["echo", "true"])
    result_of(await run(attempts, executor, argv=["echo", "a"]))
    for argv in (["cat", "/etc/passwd"], ["/bin/echo"], ["echo; cat"], ["./echo"]):
        assert "the program may be one of echo, true" in refused(await run(attempts, executor, argv=argv))


async def test_a_payload_chooses_a_folder_within_the_given_one(attempts: AttemptKit, tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    (inner / "deep").mkdir(parents=True)
    outer.mkdir()
    (inner / "way_out").symlink_to(outer)
    executor = ShellExecutor(cwd=str(inner))
    assert result_of(await run(attempts, executor, argv=["pwd"]))["stdout"] == f"{inner}\n"
    assert result_of(await run(attempts, executor, argv=["pwd"], cwd="deep"))["stdout"] == f"{inner}/deep\n"
    for folder in ("..", "../outer", str(outer), "way_out", "/", "not_there", 7):
        assert "payload.cwd" in refused(await run(attempts, executor, argv=["pwd"], cwd=folder))
    assert "payload.cwd" in refused(await run(attempts, ShellExecutor(), argv=["pwd"], cwd="."))


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ({}, "payload.argv"),
        ({"argv": "ls -l"}, "payload.argv must be a list of texts"),
        ({"argv": []}, "payload.argv"),
        ({"argv": [""]}, "payload.argv"),
        ({"argv": ["ls", 1]}, "payload.argv"),
        ({"argv": ["ls", "a\x00b"]}, "payload.argv"),
        ({"argv": ["/not/there"]}, "payload.argv: /not/there cannot be started: no such file"),
        ({"argv": ["ls", "a" * 500_000]}, "payload.argv: ls cannot be started: argument list too long"),
        ({"argv": ["/etc/passwd"]}, "payload.argv: /etc/passwd cannot be started: permission denied"),
        ({"argv": ["ls"], "input": 1}, "payload.input"),
        ({"argv": ["ls"], "env": []}, "payload.env"),
        ({"argv": ["ls"], "env": {"LD_PRELOAD": "x.so"}}, "payload.env.LD_PRELOAD"),
        ({"argv": ["ls"], "shell": True}, "payload.shell is unknown"),
    ],
)
async def test_a_bad_payload_is_refused_for_good_by_its_field(
    attempts: AttemptKit, payload: dict[str, Any], told: str
) -> None:
    assert told in refused(await run(attempts, ShellExecutor(), **payload))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"programs": "ls"}, "programs"),
        ({"programs": []}, "programs"),
        ({"cwd": "/not/there"}, "cwd"),
        ({"env": {"A": 1}}, "env"),
        ({"env": {"ATM_API_KEY": "x"}}, "env"),
        ({"inherit": ["ATM_API_KEY"]}, "inherit"),
        ({"inherit": "HOME"}, "inherit"),
        ({"payload_env": ["A=B"]}, "payload_env"),
        ({"max_output": 0}, "max_output"),
    ],
)
def test_a_wrong_setting_is_named(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ShellExecutor(**config)
    assert caught.value.key == key
