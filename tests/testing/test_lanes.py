"""Executors of the other lanes are carried out there, and cut off there."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from atm.context import Context
from atm.executors.plain import PlainContext
from atm.registry import executes
from atm.task import Task
from atm.testing import check_cancel_safety, run_executor


@executes("count")
def count(ctx: PlainContext, task: Task) -> int:
    for number in range(task.payload["to"]):
        ctx.check_cancelled()
        time.sleep(task.payload.get("pause", 0))
        ctx.progress((number + 1) / task.payload["to"])
    return int(task.payload["to"])


@executes("compute", lane="process")
def compute(ctx: PlainContext, task: Task) -> int:
    deadline = time.monotonic() + task.payload["seconds"]
    while time.monotonic() < deadline:
        pass
    return 42


@executes("command")
async def command(ctx: Context, task: Task) -> str:
    done = await ctx.run_process(
        [sys.executable, "-c", f"import time; time.sleep({task.payload['seconds']}); print(7)"]
    )
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    ("executor", "payload", "result"),
    [(count, {"to": 3}, 3), (compute, {"seconds": 0}, 42), (command, {"seconds": 0}, "7")],
    ids=["thread", "process", "command"],
)
async def test_what_it_returns_is_its_result(executor: Any, payload: dict[str, Any], result: object) -> None:
    ended = await run_executor(executor, payload)
    assert (ended.status, ended.result) == ("SUCCESS", result), ended


@pytest.mark.parametrize(
    ("executor", "payload"),
    [(count, {"to": 1000, "pause": 0.01}), (compute, {"seconds": 60}), (command, {"seconds": 60})],
    ids=["thread", "process", "command"],
)
async def test_a_cancel_ends_it(executor: Any, payload: dict[str, Any]) -> None:
    ended = await run_executor(executor, payload, cancel_after=0.1)
    assert ended.status == "CANCELLED"
    assert ended.seconds < 10


@pytest.mark.parametrize(
    ("executor", "payload"),
    [(count, {"to": 3}), (compute, {"seconds": 0}), (command, {"seconds": 0})],
    ids=["thread", "process", "command"],
)
async def test_it_leaves_nothing_wherever_it_is_cut_off(executor: Any, payload: dict[str, Any]) -> None:
    assert await check_cancel_safety(executor, payload) >= 1
