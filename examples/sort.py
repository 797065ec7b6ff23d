"""Another program: it reads what it is given, and none of its processes outlives the run.

ATM_EXECUTORS=sort python -m atm
atm submit sort_lines '{"lines": ["b", "a"]}'
"""

from __future__ import annotations

from atm import CommandFailed, Context, NonRetryable, Task, executes


@executes("sort_lines")
async def sort_lines(ctx: Context, task: Task) -> list[str]:
    lines: list[str] = task.payload["lines"]
    try:
        # No shell looks at it. Whatever comes from a payload goes in as input, not as an argument.
        done = await ctx.run_process(["sort"], input="\n".join(lines).encode())
    except CommandFailed as failed:
        raise NonRetryable(f"sort does not take these lines: {failed}") from failed
    return done.stdout.decode().splitlines()
