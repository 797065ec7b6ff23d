"""What moves on a terminal: progress bars, views that are drawn again and again. On stderr, but for views."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from atm.cli import say

if TYPE_CHECKING:
    from atm.client import Client
    from atm.client.models import Task

GLANCE = 0.5
"""Seconds between two looks at a task while somebody watches."""

LOOK = 30.0
"""While nobody does."""


def wait(client: Client, task_id: str, timeout: float | None) -> Task:
    """The task, once it has ended; meanwhile its progress on the terminal, if there is one.

    Raises: WaitTimeout.
    """
    if not say.error_console().is_terminal:
        return client.wait(task_id, timeout)
    with _bar() as draw:
        return _look_until_ended(client, task_id, timeout, draw)


def _look_until_ended(client: Client, task_id: str, timeout: float | None, draw: Callable[[Task], None]) -> Task:
    from atm.client import WaitTimeout

    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = LOOK if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            task = client.wait(task_id, min(GLANCE, left))
        except WaitTimeout as over:
            draw(over.task)
            if left <= 0:
                raise
        else:
            draw(task)
            return task


@contextmanager
def _bar() -> Iterator[Callable[[Task], None]]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[shown]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with Progress(*columns, console=say.error_console(), transient=True) as progress:
        bar = progress.add_task("", total=None, shown="", message="")

        def draw(task: Task) -> None:
            done = task.progress
            progress.update(
                bar,
                # Without a total the bar only says that something goes on.
                total=1.0 if done or task.is_ended else None,
                completed=1.0 if task.is_ended else done.fraction if done else 0.0,
                shown=f"{task.task_id} {task.status}",
                message=say.clean((done.message if done else task.pending_reason) or ""),
            )

        yield draw


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for ``total`` things; told how many are done."""
    console = say.error_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda done: bars.update(bar, completed=done)


@contextmanager
def view() -> Iterator[Callable[[say.Shown], None]]:
    """Shows one thing after the other: on a terminal in the same place, else below each other."""
    console = say.console()
    if not console.is_terminal:
        yield say.show
        return
    with Live(console=console, auto_refresh=False) as screen:
        yield lambda content: screen.update(content, refresh=True)
