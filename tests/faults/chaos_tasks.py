"""The executors of the fault tests, as a user would write them: a module beside the config.yaml.

Each run leaves two lines in ``runs.jsonl``, one as it starts and one as it ends. They are written with O_APPEND
in one piece, so they outlive the process; a line that a kill has torn stands alone and is not JSON.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from atm import Context, NonRetryable, Task, TaskResult, executes

LIFE = int(os.environ.get("CHAOS_LIFE", "0"))
"""Which start of a node this process is."""

_file = os.open("runs.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def _write(what: str, ctx: Context) -> None:
    line = {"what": what, "task": ctx.task_id, "attempt": ctx.attempt, "life": LIFE, "at_ns": time.time_ns()}
    os.write(_file, f"\n{json.dumps(line)}\n".encode())


@contextmanager
def recorded(ctx: Context) -> Iterator[None]:
    _write("start", ctx)
    try:
        yield
    finally:
        _write("end", ctx)


def _result(ctx: Context) -> dict[str, Any]:
    return {"attempt": ctx.attempt, "life": LIFE}


@executes("quick")
async def quick(ctx: Context, task: Task) -> Any:
    with recorded(ctx):
        return _result(ctx)


@executes("nap", "narrow")
async def nap(ctx: Context, task: Task) -> Any:
    """``narrow`` is the same work; the test caps how many run at a time."""
    with recorded(ctx):
        await trio.sleep(task.payload["seconds"])
        return _result(ctx)


@executes("flaky")
async def flaky(ctx: Context, task: Task) -> Any:
    """Fails now and then, in each of the ways there are."""
    with recorded(ctx):
        await trio.sleep(random.uniform(0, 0.05))
        luck = random.random()
        if luck < 0.25:
            raise RuntimeError("bad luck")
        if luck < 0.4:
            return TaskResult(success=False, error="bad luck, said politely")
        if luck < 0.45:
            raise NonRetryable("no luck at all")
        return _result(ctx)


@executes("late")
async def late(ctx: Context, task: Task) -> Any:
    """Often too slow for its timeout; cleans up for a while when it is cancelled."""
    with recorded(ctx):
        try:
            await trio.sleep(task.payload["seconds"])
        except trio.Cancelled:
            with ctx.cleanup():
                await trio.sleep(task.payload["cleanup"])
            raise
        return _result(ctx)


@executes("chatty")
async def chatty(ctx: Context, task: Task) -> Any:
    with recorded(ctx):
        for step in range(3):
            await ctx.progress(step / 3, f"step {step}")
            await ctx.log(f"step {step} of attempt {ctx.attempt}")
        return _result(ctx)
