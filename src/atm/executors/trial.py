"""``echo`` and ``sleep``, for trying out."""

from __future__ import annotations

from typing import Any

import trio

from atm.context import Context
from atm.errors import NonRetryable
from atm.registry import executes
from atm.task import Task

MAX_SECONDS = 1e9


@executes("echo")
async def echo(ctx: Context, task: Task) -> Any:
    """The result is the payload."""
    return task.payload


@executes("sleep")
async def sleep(ctx: Context, task: Task) -> Any:
    """Sleep for ``payload["seconds"]``; the result says how long that was."""
    seconds = task.payload.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
        raise NonRetryable('payload.seconds must be a number, as in {"seconds": 1.5}')
    began = trio.current_time()
    await trio.sleep(seconds)
    return {"slept": round(trio.current_time() - began, 3)}
