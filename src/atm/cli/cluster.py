"""Commands about who works and what waits: workers, queues, types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from atm.cli.ask import Asker, asks
from atm.cli.tasks import SECONDS
from atm.task import RetryStrategy

if TYPE_CHECKING:
    from atm.cli.say import Shown
    from atm.client.models import Queues, TaskTypeSettings, Worker


@click.command()
@asks
def workers(asker: Asker, as_json: bool) -> None:
    """List the workers."""
    from atm.cli import say

    with asker.client() as client:
        found = client.list_workers()
    if not as_json:
        say.show(worker_table(found))
        return
    for worker in found:
        say.document(worker)


def worker_table(found: Sequence[Worker]) -> Shown:
    from atm.cli import say

    now = datetime.now(UTC)
    return say.table(
        ("WORKER", "NAME", "LOAD", "SLOTS", "STATE", "HEARD", "TYPES", "ADDRESS"),
        (
            (
                worker.id,
                None if worker.name == worker.id else worker.name,
                worker.current_load,
                worker.capacity,
                "draining" if worker.draining else "ok",
                f"{max(0.0, (now - worker.last_heartbeat).total_seconds()):.1f} s ago",
                ", ".join(worker.supported_types),
                worker.address or None,
            )
            for worker in found
        ),
    )


@click.command()
@asks
def queues(asker: Asker, as_json: bool) -> None:
    """Show what waits."""
    from atm.cli import say

    with asker.client() as client:
        found = client.list_queues()
    if as_json:
        say.document(found)
    else:
        say.show(queue_table(found))


def queue_table(found: Queues) -> Shown:
    from atm.cli import say

    rows: list[Sequence[object]] = [
        (queue.name, queue.length, queue.parked, f"{queue.oldest_age:.1f} s" if queue.length else None)
        for queue in found.queues
    ]
    rows.append(("delayed", found.delayed, None, None))
    return say.table(("QUEUE", "WAITING", "PARKED", "OLDEST"), rows)


@click.group(invoke_without_command=True)
@asks
@click.pass_context
def types(ctx: click.Context, asker: Asker, as_json: bool) -> None:
    """List the settings of the task types; `types set` changes them."""
    if ctx.invoked_subcommand is None:
        _list_types(asker, as_json)
    else:
        # Given here they count for the command, too.
        ctx.default_map = {ctx.invoked_subcommand: ctx.params}


@types.command("list")
@asks
def list_types(asker: Asker, as_json: bool) -> None:
    """The same as `types` alone."""
    _list_types(asker, as_json)


def _list_types(asker: Asker, as_json: bool) -> None:
    from atm.cli import say

    with asker.client() as client:
        found = client.list_task_types()
    if not as_json:
        say.show(_type_table(found))
        return
    for settings in found:
        say.document(settings)


def _type_table(found: Sequence[TaskTypeSettings]) -> Shown:
    from atm.cli import say

    return say.table(
        ("TYPE", "ENABLED", "CAP", "TIMEOUT", "RETRIES", "RETRY AFTER"),
        (
            (
                one.task_type,
                one.enabled,
                one.max_concurrent,
                f"{one.default_timeout:g} s",
                one.default_max_retry,
                f"{one.retry_delay:g} s"
                + (f" × {one.backoff_rate:g}ⁿ" if one.retry_strategy is RetryStrategy.EXPONENTIAL else ""),
            )
            for one in found
        ),
    )


class _Cap(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions alone
    name = "number or none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "none":
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"expected a number, or none, got {value!r}", param, ctx)


class _Number(click.ParamType):  # type: ignore[type-arg]  # as above
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"expected a number, got {value!r}", param, ctx)
        return number


@types.command("set")
@click.argument("task_type", metavar="TYPE")
@click.option("--enable/--disable", "enabled", default=None, help="Disabled: its tasks wait.")
@click.option("--max-concurrent", type=_Cap(), multiple=True, help="How many may run at a time, or none.")
@click.option("--timeout", "default_timeout", type=SECONDS, help="For tasks created without one.")
@click.option("--max-retry", "default_max_retry", type=int, help="Likewise.")
@click.option("--retry-strategy", type=click.Choice([*RetryStrategy], case_sensitive=False))
@click.option("--retry-delay", type=SECONDS, help="Before the first retry.")
@click.option("--backoff-rate", type=_Number(), help="Each delay is so many times the one before.")
@asks
def set_type(
    asker: Asker, task_type: str, max_concurrent: tuple[int | None, ...], as_json: bool, **given: Any
) -> None:
    """Change settings of a task type; what is not named stays."""
    from atm.cli import say

    changes = {name: value for name, value in given.items() if value is not None}
    if max_concurrent:
        changes["max_concurrent"] = max_concurrent[-1]
    if not changes:
        raise click.UsageError("nothing to change: name a setting")
    with asker.client() as client:
        settings = client.put_task_type(task_type, **changes)
    if as_json:
        say.document(settings)
    else:
        say.show(_type_table([settings]))
