"""``ctx.run_process``: what a command is given, what comes back, and that nothing of it is left."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from atm.context import CommandResult, Context
from atm.errors import CommandFailed
from atm.executor import FunctionExecutor
from atm.executors.command import CommandRunner
from atm.executors.guarded import MARK, Guards
from atm.task import Status, Task
from executors.leftovers import DAEMON, marked, until_exists
from nursery.bench import AttemptKit


class Commands:
    """Runs whose context has commands."""

    def __init__(self, attempts: AttemptKit) -> None:
        self.attempts = attempts
        self.guards = Guards()

    async def run(self, *argv: str, **how: Any) -> CommandResult:
        """The result of one command in a run of its own."""
        results: list[CommandResult] = []

        async def body(ctx: Context, task: Task) -> None:
            results.append(await ctx.run_process(argv, **how))

        run = self.attempts.run(body)
        run.context._commands = CommandRunner(self.guards)
        await run.executor.execute(run.context, run.task)
        return results[0]

    async def cut_off(
        self, argv: list[str], begun: Path, how: str, budget: float
    ) -> tuple[Status, dict[str, int]]:
        """How a run ends that is cancelled, or times out, while its command goes on, and what was reaped."""

        async def body(ctx: Context, task: Task) -> None:
            await ctx.run_process(argv, env={**os.environ, "BEGUN": str(begun)})

        run = self.attempts.run(body, timeout=3600, cleanup_budget=budget)
        run.context._commands = CommandRunner(self.guards)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.attempts.end_of, run)
            await trio.to_thread.run_sync(until_exists, begun)
            if how == "cancel":
                run.cancel()
            else:
                run.scope.deadline = trio.current_time()
        return run.outcome.status, dict(run.context.reaped)

    @property
    def left(self) -> list[int]:
        return marked(f"{MARK}={self.guards._node}")


@pytest.fixture
async def commands(attempts: AttemptKit) -> AsyncIterator[Commands]:
    commands = Commands(attempts)
    yield commands
    assert commands.left == []
    assert await commands.guards.orphans() == 0


def python(text: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", text]


async def test_a_command_is_given_input_environment_and_folder(commands: Commands, tmp_path: Path) -> None:
    script = "import os, sys; print(os.getcwd(), os.environ['A'], sys.stdin.read()); print('e', file=sys.stderr)"
    done = await commands.run(*python(script), input=b"fed", env={"A": "1"}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path} 1 fed\n".encode(), b"e\n")


async def test_a_command_has_the_nodes_environment_but_not_its_settings(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATM_DATABASE__PASSWORD", "secret")
    monkeypatch.setenv("HARMLESS", "here")
    told = (await commands.run("env")).stdout.decode()
    assert "HARMLESS=here" in told
    assert "secret" not in told


async def test_a_command_that_fails_is_an_error_unless_it_is_asked_for(commands: Commands) -> None:
    script = "import sys; sys.exit('no such report')"
    with pytest.raises(CommandFailed, match=r"exited with code 1: no such report$") as caught:
        await commands.run(*python(script))
    assert caught.value.returncode == 1
    assert (await commands.run(*python(script), check=False)).returncode == 1
    assert (await commands.run(*python("import os; os.kill(os.getpid(), 15)"), check=False)).returncode == -15


async def test_of_endless_output_the_beginning_is_kept(commands: Commands) -> None:
    done = await commands.run(*python("import sys; sys.stdout.write('x' * 3_000_000)"), limit=1000)
    assert (done.stdout, done.truncated) == (b"x" * 1000, True)


@pytest.mark.parametrize(
    ("argv", "error"),
    [("ls -l", TypeError), ([], ValueError), (["ls", 1], TypeError), (["a\0b"], ValueError), ([""], ValueError)],
)
async def test_what_is_no_command_is_told(commands: Commands, argv: Any, error: type[Exception]) -> None:
    run = commands.attempts.run(FunctionExecutor(trio.sleep_forever, ("x",)))
    run.context._commands = CommandRunner(commands.guards)
    with pytest.raises(error, match="argv"):
        await run.context.run_process(argv)


async def test_a_program_that_is_not_there_is_told(commands: Commands) -> None:
    with pytest.raises(FileNotFoundError):
        await commands.run("/not/there")


async def test_what_a_command_leaves_behind_ends_with_it(commands: Commands, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    first_dies = DAEMON.rsplit("time.sleep(1000)", 1)[0] + f"while not os.path.exists({str(begun)!r}): pass"
    done = await commands.run(*python(first_dies), env={"BEGUN": str(begun)})
    assert done.returncode == 0
    assert begun.exists()
    assert commands.left == []


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_polite_command_ends_at_sigterm_within_the_budget(
    commands: Commands, tmp_path: Path, how: str
) -> None:
    begun, bye = tmp_path / "begun", tmp_path / "bye"
    script = f"""
import signal, time
def bye(*_):
    open({str(bye)!r}, "w").close()
    raise SystemExit
signal.signal(signal.SIGTERM, bye)
open({str(begun)!r}, "w").close()
while True: time.sleep(1)
"""
    status, reaped = await commands.cut_off(python(script), begun, how, budget=30)
    assert status is (Status.CANCELLED if how == "cancel" else Status.TIMEOUT)
    assert bye.exists(), "it had time for its last words"
    assert reaped == {"processes": 1}


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_rude_one_with_a_daemon_is_killed_after_the_budget(
    commands: Commands, tmp_path: Path, how: str
) -> None:
    status, reaped = await commands.cut_off(python(DAEMON), tmp_path / "begun", how, budget=0.2)
    assert status is (Status.CANCELLED if how == "cancel" else Status.TIMEOUT)
    assert reaped["processes"] >= 2
    assert commands.left == []


async def test_a_command_that_kills_its_own_reaper_leaves_nothing_either(commands: Commands) -> None:
    script = "import os, time\nos.kill(os.getppid(), 9)\nif os.fork() == 0: os.setsid()\ntime.sleep(1000)"
    done = await commands.run(*python(script), check=False)
    assert done.returncode == -9
    assert commands.left == []
