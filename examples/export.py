"""Polite async code: there is the whole file or nothing of it, however the run ends.

ATM_EXECUTORS=export python -m atm
atm submit export '{"lines": 1000}'
"""

from __future__ import annotations

from typing import Any

import trio

from atm import Context, Task, executes


@executes("export")
async def export(ctx: Context, task: Task) -> dict[str, Any]:
    lines, pause = task.payload["lines"], task.payload.get("pause", 0)
    folder = trio.Path("exports")
    # The same name at every attempt: a repetition writes the same file, not a second one.
    part, whole = (folder / f"{ctx.idempotency_key}{suffix}" for suffix in (".part", ".txt"))
    await folder.mkdir(exist_ok=True)
    try:
        async with await part.open("w") as file:
            for number in range(lines):
                await file.write(f"{number}\n")  # a cancel, the timeout, a shutdown: here
                await trio.sleep(pause)  # or here
                await ctx.progress((number + 1) / lines, f"line {number + 1} of {lines}")
        await part.rename(whole)
    finally:
        with ctx.cleanup():  # without it, the first await would be cut off again
            await part.unlink(missing_ok=True)
    return {"path": str(whole)}
