"""Executors of the benchmarks."""

from __future__ import annotations

import time
from typing import Any

import trio

from atm import Context, Task, executes


@executes("noop")
async def noop(ctx: Context, task: Task) -> None:
    """Nothing: what is measured is the way to it and back."""


@executes("stamp")
async def stamp(ctx: Context, task: Task) -> dict[str, int]:
    """When it began, by the clock that all processes of a machine share."""
    return {"began_ns": time.monotonic_ns()}


@executes("until_cancelled")
async def until_cancelled(ctx: Context, task: Task) -> Any:
    """Sleep; once cancelled, write into the task's own file when that was seen."""
    try:
        await trio.sleep_forever()
    finally:
        seen = time.monotonic_ns()
        with open(task.payload["file"], "w") as file:  # noqa: ASYNC230 - a few bytes, after what is measured
            file.write(str(seen))
