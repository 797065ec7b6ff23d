"""Commands that go on looking: logs -f, watch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

import click

from atm.cli.ask import Asker, asks
from atm.cli.tasks import SECONDS, facts_of

if TYPE_CHECKING:
    from atm.cli.say import Shown
    from atm.client import Client
    from atm.client.models import Queues, Task, TaskLog

PAUSE = 0.5
"""Seconds between two looks at a log."""

TAIL = 10
"""Rows of the log below a task that is watched."""

MIN_INTERVAL = 0.1


@click.command(short_help="Print the log of a task; -f until its end.")
@click.argument("task_id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@asks
def logs(asker: Asker, task_id: str, follow: bool, as_json: bool) -> None:
    """Print the log of a task, oldest first."""
    with asker.client() as client:
        rows = client.get_task_logs(task_id)
    if not follow:
        _tell(rows, as_json)
        return
    with asker.client(patient=True) as client:
        _tell(_followed(client, task_id), as_json)


def _tell(rows: Iterable[TaskLog], as_json: bool) -> None:
    from atm.cli import say

    for row in rows:
        if as_json:
            say.document(row)
        else:
            say.show(_line(row))


def _followed(client: Client, task_id: str) -> Iterator[TaskLog]:
    seen = 0
    while True:
        # In this order: whatever ended it stands in the log then.
        ended = client.get_task(task_id).is_ended
        rows = client.get_task_logs(task_id)
        yield from rows[seen:]
        seen = len(rows)
        if ended:
            return
        time.sleep(PAUSE)


def _line(row: TaskLog) -> Shown:
    from atm.cli import say

    at = f"{row.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z "
    pieces: list[tuple[object, str]] = [
        (at, "dim"),
        (f"{row.log_type:12} ", say.COLOURS.get(row.log_type, "bold")),
    ]
    if row.to_status is not None:
        pieces += [(f"{row.from_status or 'new'} → ", ""), (row.to_status, say.COLOURS.get(row.to_status, ""))]
        pieces += [("  ", "")]
    # The lines of a traceback stand below each other.
    pieces += [(row.message.replace("\n", "\n    "), "")]
    if row.worker_id is not None:
        pieces += [(f"  [{row.worker_id}{f', attempt {row.attempt}' if row.attempt else ''}]", "dim")]
    return say.parts(*pieces)


@click.command(short_help="Watch a task, or queues and workers.")
@click.argument("task_id", required=False)
@click.option("--interval", type=SECONDS, default="2s", show_default=True, help="How often to look.")
@click.option("-n", "--count", "times", type=click.IntRange(min=1), help="So often in all.")
@asks
def watch(asker: Asker, task_id: str | None, interval: float, times: int | None, as_json: bool) -> None:
    """Watch a task until it has ended; or, without an id, queues and workers."""
    from atm.cli import live, say
    from atm.client.models import Task

    pause = max(MIN_INTERVAL, interval)
    with asker.client() as client:
        _look(client, task_id)
    with asker.client(patient=True) as client, live.view() as draw:
        last: object = None
        for look in range(times) if times else count():
            if look:
                time.sleep(pause)
            first, second = _look(client, task_id)
            # A task that has not moved is told once, where each look stays to be seen.
            if not isinstance(first, Task) or (first, second) != last or say.console().is_terminal:
                if as_json:
                    say.document(_told(first, second))
                else:
                    draw(_drawn(first, second))
            last = (first, second)
            if isinstance(first, Task) and first.is_ended:
                return


def _look(client: Client, task_id: str | None) -> tuple[Task | Queues, Sequence[Any]]:
    """A task with its log; or queues and workers."""
    if task_id is None:
        return client.list_queues(), client.list_workers()
    task = client.get_task(task_id)
    return task, client.get_task_logs(task_id)


def _told(first: Task | Queues, second: Sequence[Any]) -> object:
    from atm.client.models import Task

    return first if isinstance(first, Task) else {"at": datetime.now(UTC), "queues": first, "workers": second}


def _drawn(first: Task | Queues, second: Sequence[Any]) -> Shown:
    from atm.cli import say
    from atm.cli.cluster import queue_table, worker_table
    from atm.client.models import Task

    if isinstance(first, Task):
        return say.stack(say.facts(facts_of(first)), "", *map(_line, second[-TAIL:]))
    at = say.parts((f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z", "dim"))
    return say.stack(at, "", queue_table(first), "", worker_table(second))
