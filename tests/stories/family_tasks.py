"""The executors of the stories of one family on one node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from atm import Context, PlainContext, Task, executes


def begin(name: str) -> None:
    with Path("begun.txt").open("a") as begun:
        begun.write(f"{name}\n")


def is_quick() -> bool:
    return Path("quick").exists()


def mark(name: str) -> None:
    Path(name).touch()


@executes("count_down")
async def count_down(ctx: Context, task: Task) -> Any:
    """A line of descendants, each of which waits for the next."""
    left = task.payload["from"]
    if not left:
        return ["liftoff"]
    child = await ctx.spawn("count_down", {"from": left - 1})
    return [left, *await child.result()]


def count_plainly(ctx: PlainContext, task: Task) -> Any:
    """The same in blocking code: each of the line in the other lane than its parent."""
    left = task.payload["from"]
    if not left:
        return ["liftoff"]
    return [left, *ctx.spawn(task.payload["next"], {"from": left - 1, "next": task.task_type}).result()]


@executes("count_in_thread")
def count_in_thread(ctx: PlainContext, task: Task) -> Any:
    return count_plainly(ctx, task)


@executes("count_in_process", lane="process")
def count_in_process(ctx: PlainContext, task: Task) -> Any:
    return count_plainly(ctx, task)


@executes("spawn_what_cannot_be", lane="process")
def spawn_what_cannot_be(ctx: PlainContext, task: Task) -> None:
    ctx.spawn("work", task.payload and {"odd": {1, 2}})


@executes("supervise")
async def supervise(ctx: Context, task: Task) -> Any:
    children = [await ctx.spawn("work", {"name": name}) for name in task.payload["names"]]
    return [await child.result() for child in children]


@executes("work")
async def work(ctx: Context, task: Task) -> str:
    """Begins, takes a while the first time, and says when its cleanup is done."""
    name: str = task.payload["name"]
    begin(name)
    try:
        await trio.sleep(0 if is_quick() else 3600)
    finally:
        with ctx.cleanup():
            await trio.sleep(0.1)
            mark(f"tidied-{name}")
    return name
