"""The process lane: what comes out of a process, what can go wrong with it, and that nothing of it is left."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from atm.executor import FunctionExecutor
from atm.executors.command import CommandRunner
from atm.executors.guarded import MARK, Guards
from atm.executors.process import ProcessExecutor
from atm.nursery.run import Run
from atm.store import Outcome
from atm.task import Status
from executors import lane_tasks
from executors.leftovers import marked, until_exists
from nursery.bench import AttemptKit


class Lane:
    """The lane of a node, and the runs in it."""

    def __init__(self, attempts: AttemptKit) -> None:
        self.attempts = attempts
        self.guards = Guards()
        self.executor = ProcessExecutor(FunctionExecutor(lane_tasks.work, ("x",), "process"), self.guards)

    def run(self, **how: Any) -> Run:
        run = self.attempts.run(self.executor, **how)
        run.context._commands = CommandRunner(self.guards)
        return run

    async def outcome(self, **payload: Any) -> Outcome:
        return await self.attempts.end_of(self.run(payload=payload))

    async def result(self, **payload: Any) -> Any:
        outcome = await self.outcome(**payload)
        assert outcome.status is Status.SUCCESS, outcome
        return json.loads(outcome.result_json or "null")

    @property
    def left(self) -> list[int]:
        return marked(f"{MARK}={self.guards._node}")


@pytest.fixture
async def lane(attempts: AttemptKit) -> AsyncIterator[Lane]:
    lane = Lane(attempts)
    async with lane.executor:
        yield lane
    assert lane.left == []
    assert await lane.guards.orphans() == 0


async def test_a_process_knows_its_run_and_serves_the_next_one(lane: Lane) -> None:
    first, second = await lane.result(how="facts"), await lane.result(how="facts")
    assert first["pid"] == second["pid"] != os.getpid()
    assert (first["attempt"], first["worker"], first["cancelled"]) == (1, "w1", False)
    assert 0 < first["left"] <= 300
    assert first["key"] != second["key"]


async def test_its_context_has_the_verbs_of_any_context(lane: Lane) -> None:
    refused, fed, code = await lane.result(how="verbs")
    assert "between 0 and 1, not 2" in refused
    assert (fed, code) == ("fed", 0)
    assert [note.message for note in lane.attempts.notes if note.message] == ["a line", "50%: half"]
    assert any("half" in (note.progress_json or "") for note in lane.attempts.notes)


RAISED = [
    ("final", "NonRetryable", "never", False),
    ("later", "RetryLater", "busy", True),
    ("plain", "KeyError", "'missing'", True),
    ("exit", "SystemExit", "3", True),
    ("interrupt", "KeyboardInterrupt", "KeyboardInterrupt", True),
    ("odd", "Odd", "(without a readable message)", True),
    ("surrogate", "ValueError", "?", True),
    ("group", "NonRetryable", "two", False),
]


async def test_what_is_raised_is_told_under_its_own_name_and_the_process_lives(lane: Lane) -> None:
    for kind, name, message, retryable in RAISED:
        outcome = await lane.outcome(how="fails", kind=kind)
        error = json.loads(outcome.error_json or "null")
        assert outcome.status is Status.FAILED
        assert (error["type"], error["message"], error["retryable"]) == (name, message, retryable)
        assert "lane_tasks.py" in (outcome.details or "")
        assert (outcome.retry_in is not None) is retryable
        assert kind != "later" or (outcome.retry_in or 0) >= 30
    assert len(lane.left) == 2, "one process for all of them, and its reaper"


async def test_a_group_is_told_as_a_tree_as_in_other_lanes(lane: Lane) -> None:
    outcome = await lane.outcome(how="fails", kind="tree")
    assert json.loads(outcome.error_json or "") == {
        "type": "OSError",
        "message": "a",
        "retryable": True,
        "group": {
            "type": "ExceptionGroup",
            "message": "outer",
            "exceptions": [
                {"type": "OSError", "message": "a"},
                {
                    "type": "ExceptionGroup",
                    "message": "inner",
                    "exceptions": [
                        {"type": "KeyError", "message": "'b'"},
                        {"type": "RetryLater", "message": "c"},
                    ],
                },
            ],
        },
    }
    assert (outcome.retry_in or 0) >= 9
    assert "lane_tasks.py" in (outcome.details or "")


async def test_no_group_is_too_wide_or_too_deep_to_be_told(lane: Lane) -> None:
    wide = json.loads((await lane.outcome(how="fails", kind="wide")).error_json or "")
    assert (wide["type"], wide["message"], wide["retryable"]) == ("NonRetryable", "last", False)
    deep = json.loads((await lane.outcome(how="fails", kind="deep")).error_json or "")
    assert (deep["type"], deep["retryable"], deep["group"]["message"]) == ("ExceptionGroup", True, "level 4999")


@pytest.mark.parametrize(
    ("by", "told"),
    [
        ("exit", "exited with code 7"),
        ("signal", "ended by signal 9"),
        ("with a daemon", "exited with code 7"),
        ("silence", "has closed its connection"),
    ],
)
async def test_a_process_that_ends_before_its_task_fails_the_attempt(lane: Lane, by: str, told: str) -> None:
    outcome = await lane.outcome(how="dies", by=by)
    assert json.loads(outcome.error_json or "null")["type"] == "WorkerDied"
    assert told in outcome.message
    assert outcome.retry_in is not None
    assert lane.left == []
    assert await lane.result(how="facts")


NO_RESULTS = [
    ("object", "InvalidResult: the result is not JSON: Object of type object"),
    ("nan", "InvalidResult: the result is not JSON"),
    ("surrogate", "InvalidResult: the result is not JSON"),
    ("huge", "InvalidResult: the result is too large: 2000002 bytes"),
    ("failure", "TaskFailed: not today"),
]


async def test_a_result_that_cannot_be_one_is_told(lane: Lane) -> None:
    for what, told in NO_RESULTS:
        outcome = await lane.outcome(how="returns", what=what)
        assert (outcome.status, outcome.retry_in is None) == (Status.FAILED, what != "failure")
        assert outcome.message.startswith(told)


async def test_results_are_those_of_other_lanes(lane: Lane) -> None:
    assert await lane.result(how="returns", what="nothing") is None
    assert await lane.result(how="returns", what="tuple") == [1, "ü", None]
    assert await lane.result(how="forks_back") == "parent"


async def test_what_a_run_leaves_behind_ends_with_it(lane: Lane, tmp_path: Path) -> None:
    pid = await lane.result(how="leaves", what="daemon", begun=str(tmp_path / "begun"))
    guards = [found for found in lane.left if found != pid]
    assert len(guards) == 1, "the process that is kept, and its reaper"
    # A thread cannot be ended but with its process.
    assert await lane.result(how="leaves", what="thread") == pid
    assert lane.left == []
    assert (await lane.result(how="facts"))["pid"] != pid


async def test_an_idle_process_that_has_died_costs_no_run(lane: Lane) -> None:
    pid = (await lane.result(how="facts"))["pid"]
    os.kill(pid, 9)
    assert (await lane.result(how="facts"))["pid"] != pid


async def test_runs_at_the_same_time_have_processes_of_their_own(lane: Lane) -> None:
    pids: list[int] = []

    async def one() -> None:
        pids.append((await lane.result(how="facts"))["pid"])

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
    assert len(set(pids)) == 3
    assert len(lane.executor._idle) <= (os.cpu_count() or 1)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_one_that_ignores_everything_is_killed_with_its_daemons(
    lane: Lane, tmp_path: Path, how: str
) -> None:
    begun = tmp_path / "begun"
    run = lane.run(payload={"how": "stubborn", "begun": str(begun)}, timeout=3600)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.attempts.end_of, run)
        await trio.to_thread.run_sync(until_exists, begun)
        if how == "cancel":
            run.cancel()
        else:
            run.scope.deadline = trio.current_time()
    assert run.outcome.status is (Status.CANCELLED if how == "cancel" else Status.TIMEOUT)
    assert run.context.cancel_reason == ("cancelled" if how == "cancel" else "timeout")
    assert run.context.reaped["processes"] >= 2
    assert lane.left == []


async def test_a_class_goes_to_its_process_with_its_settings(attempts: AttemptKit) -> None:
    async with ProcessExecutor(lane_tasks.Settled("/srv"), Guards()) as executor:
        outcome = await attempts.outcome(executor)
        assert outcome.result_json == '{"folder":"/srv"}'
