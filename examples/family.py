"""A parent and its children: each text is a task of its own, on whichever node has room for it.

ATM_EXECUTORS=family python -m atm
atm submit count_all '{"texts": ["to be or not to be", "that is the question"]}'
"""

from __future__ import annotations

import trio

from atm import Context, Task, executes


@executes("count_all")
async def count_all(ctx: Context, task: Task) -> int:
    """Cancel it, and its children end before it does. While it waits, its slot is theirs."""
    pause = task.payload.get("pause", 0)
    # In a fixed order: another attempt finds the children of this one by their number.
    children = [await ctx.spawn("count_words", {"text": text, "pause": pause}) for text in task.payload["texts"]]
    counts: list[int] = [await child.result() for child in children]
    return sum(counts)


@executes("count_words")
async def count_words(ctx: Context, task: Task) -> int:
    await trio.sleep(task.payload["pause"])
    return len(task.payload["text"].split())
