"""doctor: looks at settings, server, store, Redis, leader, clocks, workers and what waits."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from atm.cli import settings
from atm.cli.ask import Asker, asks
from atm.cli.checks import (
    Finding,
    Level,
    of_clock,
    of_disk,
    of_leader,
    of_queues,
    of_running,
    of_store,
    of_types,
    of_waiting,
    of_workers,
)
from atm.cli.exits import EXIT_FAILED, in_words
from atm.config import Config
from atm.errors import AtmError, ConfigError, StartError, StoreUnavailable
from atm.stores.survey import Survey

if TYPE_CHECKING:
    from atm.client import Client
    from atm.client.models import Queues, Task, Worker

PAGE = 500
PATIENCE = 5.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a node told of itself and the others."""

    workers: list[Worker]
    queues: Queues
    running: list[Task]
    waiting: list[Task]


@dataclass(frozen=True, kw_only=True)
class Node:
    """Whether one answers, and what it tells: nothing to who lacks the key, or while its servers are away."""

    answers: bool
    served: Served | None = None


NOBODY = Node(answers=False)


@click.command(short_help="Look for what is wrong, and say what to do.")
@asks
def doctor(asker: Asker, as_json: bool) -> None:
    """Look at everything that can be wrong, and say what to do about it; exits with 1 if something is.

    Beside a running node, through its API, as without one. Run it where the node's config is, and as its user;
    with --url alone only what the API tells is looked at. Nothing is changed.
    """
    from atm.cli import say

    findings = list(examine(asker))
    ok = all(finding.level is not Level.ERROR for finding in findings)
    if as_json:
        say.document({"ok": ok, "findings": findings})
    else:
        for finding in findings:
            style = say.COLOURS.get(finding.level, "")
            say.show(
                say.parts((f"{finding.level:8}", style), (f"{finding.check:9}", "bold"), (finding.message, ""))
            )
            if finding.advice:
                say.show(say.parts((f"{'':17}→ {finding.advice}", "dim" if finding.level is Level.INFO else "")))
    if not ok:
        raise SystemExit(EXIT_FAILED)


def examine(asker: Asker) -> Iterator[Finding]:
    """All checks, each as far as those before it allow."""
    config, found = _config(asker)
    yield found
    node = yield from _server(asker, config)
    if config is None or (asker.is_told and not settings.are_said(asker.config_path)):
        if config is not None:
            yield Finding("store", Level.INFO, "not looked at: no config here says where it is")
        if node.served is not None:
            yield from _as_served(node.served)
        return
    if config.database.effective_driver == "mysql":
        yield from _cluster(config, node)
    else:
        yield from _embedded(config, node)


def _config(asker: Asker) -> tuple[Config | None, Finding]:
    try:
        config = asker.config()
        settings.load_all(config)
    except ConfigError as error:
        where = settings.source_of(error.key, asker.config_path)
        advice = f"correct it in {where}; `atm config check` looks again"
        return None, Finding("config", Level.ERROR, str(error), advice)
    file = settings.file_of(asker.config_path)
    return config, Finding("config", Level.OK, str(file) if file else "no file; the defaults")


def _server(asker: Asker, config: Config | None) -> Generator[Finding, None, Node]:
    """Yields findings; returns what became of the node."""
    if not asker.is_told and config is None:
        return NOBODY
    if not asker.is_told and config is not None and not (config.server.enabled and config.server.port):
        text = "not asked: the config does not say where a node serves its API"
        yield Finding("server", Level.INFO, text, "give its address by --url or ATM_URL")
        return NOBODY
    try:
        url = asker.url()
        key = asker.api_key() or ""
    except ConfigError as error:
        yield Finding("server", Level.ERROR, str(error), "correct it")
        return NOBODY
    from atm.client import ApiError, Client

    with Client(url, api_key=key, timeout=PATIENCE, retries=0) as client:
        health = client.livez()
        if not health.ok:
            advice = "start a node, or look why it does not answer; --url or ATM_URL name another address"
            yield Finding("server", Level.ERROR, f"no node answers: {health.reason}", advice)
            return NOBODY
        health = client.readyz()
        level, advice = (Level.OK, "") if health.ok else (Level.ERROR, "look at the store's check, or wait")
        yield Finding(
            "server", level, f"{url} is {'ready' if health.ok else f'not ready: {health.reason}'}", advice
        )
        try:
            served = _ask(client)
        except ApiError as error:
            yield Finding("server", Level.ERROR, in_words(error), _advice_after(error.status))
            return Node(answers=True)
        except AtmError as error:
            yield Finding("server", Level.ERROR, in_words(error), "look at its log")
            return Node(answers=True)
    yield from of_workers(served.workers, datetime.now(UTC))
    yield of_queues(served.queues)
    return Node(answers=True, served=served)


def _advice_after(status: int) -> str:
    if status in (401, 403):
        return "put a key with the scope read into ATM_API_KEY, or name its file by --api-key-file"
    return "the message says what is away; its own check, below, says more" if status == 503 else "look at its log"


def _ask(client: Client) -> Served:
    return Served(
        workers=client.list_workers(),
        queues=client.list_queues(),
        running=client.list_tasks(status="PROCESSING", limit=PAGE).tasks,
        waiting=client.list_tasks(status="PENDING", limit=PAGE).tasks,
    )


def _supported(served: Served) -> frozenset[str]:
    return frozenset(name for worker in served.workers for name in worker.supported_types)


def _as_served(served: Served) -> Iterator[Finding]:
    """What the API alone tells, of the newest tasks."""
    now = datetime.now(UTC)
    due = [task for task in served.waiting if task.scheduled_at is None or task.scheduled_at <= now]
    counts: dict[str, int] = {}
    for task in due:
        counts[task.task_type] = counts.get(task.task_type, 0) + 1
    yield of_running(served.running, served.workers)
    yield from of_types(counts, _supported(served), only_newest=PAGE if len(served.waiting) == PAGE else None)


def _embedded(config: Config, node: Node) -> Iterator[Finding]:
    from atm.stores.sqlite_survey import survey

    file = Path(config.database.path).absolute()
    try:
        seen = survey(file)
    except StoreUnavailable as error:
        if file.exists():
            advice = "restore a backup, or correct database.path: docs/operations.md, The node does not start"
            yield Finding("store", Level.ERROR, str(error), advice)
        elif not node.answers:
            yield Finding(
                "store", Level.INFO, f"there is no {file} yet", "nothing: a node makes it when it starts"
            )
        else:
            advice = "run this where the node runs, or set database.path as it has it"
            yield Finding("store", Level.WARNING, f"{error}, though a node answers", advice)
    else:
        yield from of_store(seen, node_answers=node.answers)
        if seen.in_use and not node.answers:
            advice = (
                "another process, perhaps a node on other ports, has it: look at the config, or for the process"
            )
            yield Finding("store", Level.WARNING, f"{file} is in use, though no node answers", advice)
        if node.served is not None:
            yield from of_waiting(seen, _supported(node.served))
    if file.parent.is_dir():
        yield of_disk(shutil.disk_usage(file.parent).free, str(file.parent))
    if node.answers:
        level = Level.OK if config.scheduler.enabled else Level.ERROR
        advice = (
            "" if config.scheduler.enabled else "set scheduler.enabled: an embedded node hands out its own tasks"
        )
        yield Finding("leader", level, "the node itself" if config.scheduler.enabled else "nobody leads", advice)


def _cluster(config: Config, node: Node) -> Iterator[Finding]:
    seen = yield from _database(config, node)
    redis_answers, leader = yield from _redis(config)
    if redis_answers or seen is not None:
        in_store = seen.leader if seen is not None else None
        yield of_leader(leader, in_store, redis_answers=redis_answers, node_answers=node.answers)
    if seen is not None:
        alive = [lease for lease in seen.leases if lease.left is not None and lease.left >= 0]
        supported = frozenset(name for lease in alive for name in lease.task_types)
        yield from of_waiting(seen, supported | (_supported(node.served) if node.served else frozenset()))


def _database(config: Config, node: Node) -> Generator[Finding, None, Survey | None]:
    from atm.cluster import address_of
    from atm.stores.mysql_driver import Unreachable
    from atm.stores.mysql_survey import survey

    try:
        seen: Survey = trio.run(survey, address_of(config.database))
    except Unreachable as error:
        advice = f"start it, or correct {error.key}; docs/operations.md, The database"
        yield Finding("store", Level.ERROR, f"{error.key}: {error}", advice)
        return None
    except StoreUnavailable as error:
        yield Finding("store", Level.ERROR, str(error), "docs/operations.md, The database")
        return None
    yield from of_store(seen, node_answers=node.answers)
    return seen


def _redis(config: Config) -> Generator[Finding, None, tuple[bool, str | None]]:
    from atm.cluster import redis_of
    from atm.coordinators.redis_survey import survey

    try:
        seen = trio.run(survey, redis_of(config.redis))
    except (ConfigError, StartError) as error:
        yield Finding("redis", Level.ERROR, str(error), "start it, or correct redis.*; docs/operations.md, Redis")
        return False, None
    yield Finding("redis", Level.OK, "answers; evicts nothing")
    yield of_clock("Redis", seen.skew)
    return True, seen.leader
