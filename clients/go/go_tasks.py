"""The executors that the Go client is tried with."""

from __future__ import annotations

from typing import Any

from atm import Context, NonRetryable, Task, executes


@executes("go.parent")
async def parent(ctx: Context, task: Task) -> Any:
    child = await ctx.spawn("echo", {"hello": "child"})
    return await child.result()


@executes("go.trouble")
async def trouble(ctx: Context, task: Task) -> None:
    errors: list[Exception] = [ValueError(str(number)) for number in range(16)]
    raise ExceptionGroup("a lot", [ExceptionGroup("the worst", [NonRetryable("never again")]), *errors])
