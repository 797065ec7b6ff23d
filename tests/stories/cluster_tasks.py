"""The executors of the cluster's stories, as a user would write them: a module in the folder of each node.

The result of each says which node carried out which attempt.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import trio

from atm import Context, Task, executes


def done(ctx: Context) -> dict[str, Any]:
    return {"node": Path.cwd().name, "attempt": ctx.attempt}


def begin(ctx: Context) -> None:
    """Leaves a line, in one piece, that outlives the process."""
    with Path("runs.txt").open("a") as runs:
        runs.write(f"{ctx.task_id}\n")


def mark(name: str) -> None:
    Path(name).touch()


def block(seconds: float) -> None:
    time.sleep(seconds)


@executes("quick")
async def quick(ctx: Context, task: Task) -> Any:
    begin(ctx)
    return done(ctx)


@executes("nap")
async def nap(ctx: Context, task: Task) -> Any:
    begin(ctx)
    await trio.sleep(task.payload["seconds"])
    return done(ctx)


@executes("stubborn")
async def stubborn(ctx: Context, task: Task) -> Any:
    """Would run for an hour at its first attempt, and is done at once at any other."""
    if ctx.attempt == 1:
        await trio.sleep(3600)
    return done(ctx)


@executes("blind")
async def blind(ctx: Context, task: Task) -> Any:
    """Notices nothing at its first attempt, neither time nor cancel, and is successful whatever has happened."""
    if ctx.attempt == 1:
        mark("blind")
        block(task.payload["seconds"])
    return done(ctx)


@executes("tidy")
async def tidy(ctx: Context, task: Task) -> Any:
    """Cleans up when it is cancelled, and leaves a file when that is done."""
    try:
        await trio.sleep(3600)
    finally:
        with ctx.cleanup():
            await trio.sleep(0.2)
            mark(f"tidied-{ctx.task_id}")


@executes("family")
async def family(ctx: Context, task: Task) -> Any:
    """Starts a child, waits for it, and fails once if it is told to."""
    begin(ctx)
    child = await ctx.spawn(task.payload["child"], task.payload.get("payload"))
    if task.payload.get("fails") and ctx.attempt == 1:
        raise ConnectionError("try again")
    return {**done(ctx), "child": child.task_id, "result": await child.result()}
