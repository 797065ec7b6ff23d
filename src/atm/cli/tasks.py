"""Commands about tasks: submit, get, ls, cancel, retry."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from atm.cli.ask import Asker, asks
from atm.cli.exits import EXIT_FAILED, code_of, in_words
from atm.config import Duration
from atm.errors import AtmError
from atm.task import QUEUES, Status

if TYPE_CHECKING:
    from atm.client import Client
    from atm.client.models import Task

PRIORITIES = {"high": 1, "normal": 0, "low": -1, "1": 1, "0": 0, "-1": -1}
MAX_PAGE = 500


class _Seconds(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions alone
    """A duration as in the config: ``90``, ``100ms``, ``10s``, ``5m``, ``2h``, ``30d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(Duration.parse(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Moment(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions alone
    """A time with its zone, or how long ago it was."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return datetime.now(UTC) - timedelta(seconds=Duration.parse(value))
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"expected a time such as 2026-01-31T10:00:00Z, or 10m for ten minutes ago, got {value!r}")
        if moment.tzinfo is None:
            self.fail(f"{value} needs a zone, as in {moment.isoformat()}Z")
        return moment


SECONDS, MOMENT = _Seconds(), _Moment()


def _payload(text: str | None, path: str | None) -> dict[str, Any] | None:
    """Raises click.UsageError; what is refused here would be refused by the server, or be lost on the way."""
    if text is not None and path is not None:
        raise click.UsageError("--payload and --payload-file: one of them")
    hint = "--payload" if path is None else "--payload-file"
    if path is not None:
        try:
            with click.open_file(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{path} cannot be read: {error}", param_hint=hint) from None
    if text is None:
        return None
    try:
        payload = json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"is not JSON: {error}", param_hint=hint) from None
    if not isinstance(payload, dict):
        raise click.BadParameter('must be an object, as in \'{"to": "me"}\'', param_hint=hint)
    return payload


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return made


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


@click.command(short_help="Create a task; --wait for its end.")
@click.argument("task_type", metavar="TYPE")
@click.option("-p", "--payload", help="What its executor is given: an object in JSON.")
@click.option("--payload-file", help="The same from a file, or from stdin: -.")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), help="high, normal (default) or low.")
@click.option("--timeout", type=SECONDS, help="How long one attempt may take.")
@click.option("--max-retry", type=int, help="Retries after failures.")
@click.option("--delay", type=SECONDS, help="How long until it may run.")
@click.option("--at", "scheduled_at", help="When it may run: a time with its zone.")
@click.option("--idempotency-key", help="The same key again gives the same task.")
@click.option("--wait", is_flag=True, help="Until it has ended; exits with 1 unless it is SUCCESS.")
@click.option("--timeout-wait", type=SECONDS, help="Waits no longer; exits with 124 then.")
@asks
def submit(
    asker: Asker,
    task_type: str,
    payload: str | None,
    payload_file: str | None,
    priority: str | None,
    wait: bool,
    timeout_wait: float | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Create a task, and print its id.

    With --wait: show how it comes along, and print how it ended.
    """
    document = _payload(payload, payload_file)
    with asker.client() as client:
        rank = None if priority is None else PRIORITIES[priority]
        task_id = client.create_task(task_type, document, priority=rank, **fields).task_id
    if wait or timeout_wait is not None:
        with asker.client(patient=True) as client:
            _await_end(client, task_id, timeout_wait, as_json)
        return
    from atm.cli import say

    if as_json:
        say.document({"task_id": task_id})
    else:
        say.line(task_id)


def _await_end(client: Client, task_id: str, timeout: float | None, as_json: bool) -> None:
    from atm.cli import live, say
    from atm.client import WaitTimeout

    try:
        task = live.wait(client, task_id, timeout)
    except KeyboardInterrupt:
        say.note(f"\ntask {task_id} goes on; `atm cancel {task_id}` ends it")
        raise
    except WaitTimeout as over:
        _print(over.task, as_json)
        raise
    _print(task, as_json)
    if task.status is not Status.SUCCESS:
        raise SystemExit(EXIT_FAILED)


def _print(task: Task, as_json: bool) -> None:
    from atm.cli import say

    if as_json:
        say.document(task)
    else:
        say.show(say.facts(facts_of(task)))


def facts_of(task: Task) -> dict[str, object]:
    """What a person wants to know of one task, in order; what says nothing is left out."""
    from atm.cli import say

    pairs: dict[str, object] = {
        "task": task.task_id,
        "type": task.task_type,
        "status": task.status,
        "waits for": task.pending_reason,
        "priority": QUEUES.get(task.priority, task.priority),
        "progress": _progress(task),
        "payload": say.short(task.payload),
        "result": say.short(task.result) if task.status is Status.SUCCESS else None,
        "error": f"{task.error.type}: {task.error.message}" if task.error else None,
        "attempt": task.attempt and f"{task.attempt} ({task.retry_count} of {task.max_retry} retries used)",
        "recoveries": task.recoveries or None,
        "releases": task.releases or None,
        "timeout": f"{task.timeout:g} s",
        "worker": task.worker_id,
        "scheduled": task.scheduled_at,
        "created": task.created_at,
        "started": task.started_at,
        "ended": task.completed_at,
        "took": _took(task),
        "cancel asked": task.cancel_requested_at,
    }
    return {name: value for name, value in pairs.items() if value is not None}


def _progress(task: Task) -> str | None:
    if task.progress is None:
        return None
    return f"{task.progress.fraction:.0%} {task.progress.message or ''}".strip()


def _took(task: Task) -> str | None:
    if task.started_at is None or task.completed_at is None:
        return None
    return f"{(task.completed_at - task.started_at).total_seconds():.3f} s"


@click.command()
@click.argument("task_id")
@asks
def get(asker: Asker, task_id: str, as_json: bool) -> None:
    """Show a task."""
    with asker.client() as client:
        task = client.get_task(task_id)
    _print(task, as_json)


@click.command()
@click.option("--status", type=click.Choice([*Status], case_sensitive=False), help="In this state.")
@click.option("--type", "task_type", help="Of this type.")
@click.option("--worker", "worker_id", help="That this worker runs or ran.")
@click.option("--created-after", type=MOMENT, help="A time with its zone, or 10m for ten minutes ago.")
@click.option("--created-before", type=MOMENT, help="Likewise.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="So many at the most.")
@click.option("--all", "everything", is_flag=True, help="All pages of them.")
@click.option("--ids", is_flag=True, help="Ids alone, one a line.")
@asks
def ls(asker: Asker, limit: int, everything: bool, ids: bool, as_json: bool, **filters: Any) -> None:
    """List tasks, newest first."""
    from atm.cli import say

    with asker.client() as client:
        size = MAX_PAGE if everything else min(MAX_PAGE, limit + 1)
        found = client.iter_tasks(page_size=size, **filters)
        some = found if everything else islice(found, limit)
        if ids:
            for task in some:
                (say.document if as_json else say.line)(task.task_id)
        elif as_json:
            for task in some:
                say.document(task)
        else:
            say.show(say.table(_HEADINGS, map(_row, some), spare=_SPARE))
            if not everything and next(found, None) is not None:
                say.note("there are more: --limit, or --all")


_HEADINGS = ("TASK", "TYPE", "STATUS", "PRIORITY", "ATTEMPT", "WORKER", "CREATED", "TOOK")
_SPARE = ("ATTEMPT", "PRIORITY", "CREATED", "WORKER")


def _row(task: Task) -> Sequence[object]:
    return (
        task.task_id,
        task.task_type,
        task.status,
        QUEUES.get(task.priority, task.priority),
        task.attempt,
        task.worker_id,
        task.created_at,
        _took(task) or _progress(task),
    )


@click.command(short_help="Cancel tasks.")
@click.argument("task_ids", metavar="TASK_ID...", nargs=-1, required=True)
@asks
def cancel(asker: Asker, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel tasks; of a running one wait for the end of its executor.

    A - among the ids reads more of them from stdin.
    """

    def one(client: Client, task_id: str) -> tuple[str, dict[str, object]]:
        cancelled = client.cancel_task(task_id)
        text = "cancelled" if cancelled else "cancellation requested; its executor has not ended yet"
        return text, {"cancelled": cancelled}

    _each(asker, task_ids, as_json, one)


@click.command(short_help="Let ended tasks run again, but for those that succeeded.")
@click.argument("task_ids", metavar="TASK_ID...", nargs=-1, required=True)
@asks
def retry(asker: Asker, task_ids: tuple[str, ...], as_json: bool) -> None:
    """Let FAILED, TIMEOUT or CANCELLED tasks run again.

    A - among the ids reads more of them from stdin.
    """

    def one(client: Client, task_id: str) -> tuple[str, dict[str, object]]:
        return "will run again", {"status": client.retry_task(task_id).status}

    _each(asker, task_ids, as_json, one)


def _each(
    asker: Asker,
    task_ids: tuple[str, ...],
    as_json: bool,
    do: Callable[[Client, str], tuple[str, dict[str, object]]],
) -> None:
    """All of them, whatever becomes of single ones; exits with the code of the first that failed."""
    from atm.cli import say
    from atm.client import ApiError

    failed: AtmError | None = None
    with asker.client() as client:
        for task_id in _whole(task_ids):
            try:
                text, data = do(client, task_id)
            except ApiError as error:
                if error.status not in (404, 409):
                    raise
                failed = failed or error
                text, data = in_words(error), {"error": error.message, "code": error.code}
                if not as_json:
                    say.note(f"atm: {say.clean(task_id)}: {text}")
            else:
                if not as_json:
                    say.line(f"{task_id}  {text}")
            if as_json:
                say.document({"task_id": task_id, **data})
    if failed is not None:
        raise SystemExit(code_of(failed))


def _whole(task_ids: Iterable[str]) -> Iterable[str]:
    for task_id in task_ids:
        if task_id == "-":
            yield from (word for line in sys.stdin for word in re.split(r"\s+", line) if word)
        else:
            yield task_id
