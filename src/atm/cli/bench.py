"""bench: how fast a server takes tasks, runs them, and picks one up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from atm.cli.ask import Asker, asks
from atm.cli.exits import EXIT_FAILED
from atm.cli.tasks import SECONDS
from atm.task import Status

if TYPE_CHECKING:
    from atm.client import Client
    from atm.client.models import Task

BATCH = 1000
SINGLES = 50
"""Tasks created one after the other, each after the end of the one before: picking up, without a queue."""

PAUSE = 0.2
MARGIN = timedelta(minutes=5)
"""By which this host's clock may differ from the server's."""


@click.command(short_help="Measure how fast tasks are created, run, picked up.")
@click.option("-n", "--tasks", "number", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option("--type", "task_type", default="echo", show_default=True, help="Some worker must support it.")
@click.option("--patience", type=SECONDS, default="2m", show_default=True, help="Waits no longer for their ends.")
@asks
def bench(asker: Asker, number: int, task_type: str, patience: float, as_json: bool) -> None:
    """Submit tasks that do nothing, and tell how long that took.

    They stay in the store like all ended tasks. Other work, and the machine's load, show in the figures.
    """
    from atm.cli import live, say
    from atm.client import WaitTimeout

    with asker.client() as client:
        try:
            latencies = _pick_ups(client, task_type, min(SINGLES, number), patience)
            with live.counting(f"{number} tasks", number) as told:
                report = _rates(client, task_type, number, patience, told)
        except WaitTimeout as over:
            text = f"task {over.task.task_id} is still {over.task.status} after {patience:g} s"
            raise click.ClickException(f"{text}: see `atm get {over.task.task_id}`") from None
    report["pick_up_ms"] = {name: _quantile(latencies, part) for name, part in _PARTS.items()}
    if as_json:
        say.document(report)
    else:
        say.show(say.facts(_in_words(report)))
    if report["succeeded"] != report["tasks"]:
        raise SystemExit(EXIT_FAILED)


_PARTS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def _pick_ups(client: Client, task_type: str, number: int, patience: float) -> list[float]:
    """Milliseconds from created to started, of single tasks, by the store's clock; in order."""
    found = []
    for _ in range(number):
        task = client.wait(client.create_task(task_type).task_id, patience)
        if task.started_at is not None:
            found.append((task.started_at - task.created_at).total_seconds() * 1000)
    return sorted(found)


def _rates(
    client: Client, task_type: str, number: int, patience: float, told: Callable[[int], None]
) -> dict[str, object]:
    since = datetime.now(UTC) - MARGIN
    began = time.monotonic()
    handles = client.create_tasks([{"task_type": task_type}] * number, on_progress=lambda now: told(now.done))
    created = time.monotonic() - began
    ours = {handle.task_id for handle in handles}
    # The newest is the likeliest to end last, but any may.
    client.wait(handles[-1].task_id, patience)
    tasks = _ended(client, task_type, ours, since, began + patience)
    ends = [task.completed_at for task in tasks if task.completed_at]
    took = (max(ends) - min(task.created_at for task in tasks)).total_seconds()
    return {
        "tasks": number,
        "succeeded": sum(task.status is Status.SUCCESS for task in tasks),
        "create_seconds": round(created, 3),
        "created_per_second": round(number / created),
        "run_seconds": round(took, 3),
        "ended_per_second": round(number / max(took, 0.001)),
    }


def _ended(client: Client, task_type: str, ours: set[str], since: datetime, deadline: float) -> Sequence[Task]:
    """All of them, once they have ended. Raises WaitTimeout."""
    from atm.client import WaitTimeout

    while True:
        found = client.iter_tasks(task_type=task_type, created_after=since, page_size=500)
        tasks = [task for task in found if task.task_id in ours]
        running = [task for task in tasks if not task.is_ended]
        if not running:
            return tasks
        if time.monotonic() > deadline:
            raise WaitTimeout(running[0])
        time.sleep(PAUSE)


def _quantile(ordered: Sequence[float], part: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 1) if ordered else None


def _in_words(report: dict[str, object]) -> dict[str, object]:
    pick_up = report["pick_up_ms"]
    assert isinstance(pick_up, dict)
    return {
        "tasks": f"{report['tasks']}, {report['succeeded']} of them SUCCESS",
        "created": f"{report['created_per_second']} a second, in requests of up to {BATCH}",
        "run": f"{report['ended_per_second']} a second, from the first create to the last end",
        "picked up": ", ".join(f"{name} {value} ms" for name, value in pick_up.items())
        + f" ({SINGLES} single tasks)",
    }
