"""What the doctor makes of what was seen: findings, each with what to do about it. Pure: nothing is asked here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from atm.stores.survey import Survey

if TYPE_CHECKING:
    from atm.client.models import Queues, Task, Worker

MAX_SKEW = 1.0
"""Seconds; nothing breaks beyond, but ids are out of order and ages wrong (docs/operations.md, Clocks)."""

SILENT = 10.0
"""Seconds; a worker beats every 2.5 s and is forgotten after 30."""

LOW_DISK, NO_DISK = 1 << 30, 64 << 20
"""Bytes free beside the embedded store's file."""

STUCK = 30.0
"""Seconds after which a task that is due, and that a worker supports, should have begun; more is worth a look."""

NAMED = 5
"""Types, tasks or workers that a finding names."""


class Level(StrEnum):
    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True):
    """``check``: what was looked at; ``advice``: what to do about it, empty where there is nothing to do."""

    check: str
    level: Level
    message: str
    advice: str = ""


def some(names: Iterable[str]) -> str:
    """The first few of them."""
    ordered = sorted(names)
    rest = len(ordered) - NAMED
    return ", ".join(ordered[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def tasks_of(number: int) -> str:
    return f"{number} task" if number == 1 else f"{number} tasks"


def of_store(seen: Survey, *, node_answers: bool) -> Iterator[Finding]:
    """Its schema, its clock, its leases, its orphans."""
    if seen.schema != seen.known:
        yield _of_schema(seen)
        return
    use = {True: "; a node has it", False: "; no node has it", None: ""}[seen.in_use]
    yield Finding("store", Level.OK, f"{seen.server}, schema version {seen.schema}{use}")
    if seen.skew is not None:
        yield of_clock("the database", seen.skew)
    yield from _of_leases(seen)
    yield _of_orphans(seen, node_answers)


def _of_schema(seen: Survey) -> Finding:
    text = f"schema version {seen.schema}; this program knows {seen.known}"
    if seen.schema == 0:
        return Finding("store", Level.WARNING, "it has no tables yet", "run `atm migrate`, or start a node")
    if seen.schema < seen.known:
        return Finding("store", Level.ERROR, text, "run `atm migrate`, or start a node of this version")
    return Finding("store", Level.ERROR, text, "use the version of atm that the nodes have, or a newer one")


def of_clock(whose: str, skew: float) -> Finding:
    """``skew``: seconds that it is ahead of this host's."""
    if abs(skew) <= MAX_SKEW:
        return Finding("clocks", Level.OK, f"that of {whose} and this host's agree ({skew:+.3f} s)")
    text = f"that of {whose} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this host's"
    return Finding("clocks", Level.WARNING, text, "synchronise the hosts' clocks (NTP, chrony)")


def _of_leases(seen: Survey) -> Iterator[Finding]:
    over = [lease.worker_id for lease in seen.leases if lease.left is not None and lease.left < 0]
    if over:
        text = f"the leases of {some(over)} are over, and nobody has taken them for lost"
        advice = "a leader does within 5 s: see the check of the leader; else look at these nodes' logs"
        yield Finding("leases", Level.WARNING, text, advice)
    alive = [lease for lease in seen.leases if lease.left is not None and lease.left >= 0]
    if alive:
        shortest = min(alive, key=lambda lease: lease.left or 0)
        text = f"{len(alive)} alive, the shortest for {shortest.left:.1f} s more ({shortest.worker_id})"
        yield Finding("leases", Level.OK, text)
    elif seen.in_use is None:
        yield Finding("leases", Level.WARNING, "none: no worker works", "start a node with worker.enabled")


def _of_orphans(seen: Survey, node_answers: bool) -> Finding:
    if not seen.orphans:
        # Of a file that no node has, what its leases say is what the last node said.
        left = seen.processing if seen.in_use is False else 0
        if left:
            text = f"{tasks_of(left)} ran when the node ended"
            return Finding("orphans", Level.INFO, text, "nothing: a node gives them back when it starts")
        return Finding("orphans", Level.OK, f"none; running: {tasks_of(seen.processing)}")
    text = f"{tasks_of(seen.orphans)} PROCESSING without a worker: {', '.join(seen.orphan_ids)}"
    if node_answers:
        advice = "a leader gives them back within seconds: look again; if they stay, see the check of the leader"
        return Finding("orphans", Level.WARNING, text, advice)
    return Finding("orphans", Level.INFO, text, "nothing: a node gives them back when it starts")


def of_waiting(seen: Survey, supported: frozenset[str]) -> Iterator[Finding]:
    """Types that wait for something that will not come by itself. ``supported``: what the workers run."""
    yield from of_types({one.task_type: one.waiting for one in seen.waiting if one.enabled}, supported)
    disabled = [one.task_type for one in seen.waiting if not one.enabled]
    if disabled:
        advice = f"if that is not meant any more: `atm types set {disabled[0]} --enable`"
        yield Finding(
            "waiting", Level.WARNING, f"tasks wait because their type is disabled: {some(disabled)}", advice
        )
    late = [one for one in seen.waiting if one.enabled and one.task_type in supported and one.oldest > STUCK]
    if late:
        worst = max(late, key=lambda one: one.oldest)
        text = f"tasks of type {worst.task_type} have been due for up to {worst.oldest:.0f} s"
        advice = "`atm get` of one tells its reason; often slots are too few: raise worker.capacity, add workers"
        yield Finding("waiting", Level.WARNING, text, advice)


def of_types(
    waiting: dict[str, int], supported: frozenset[str], *, only_newest: int | None = None
) -> Iterator[Finding]:
    """``waiting``: due tasks by type; ``only_newest``: among so many, if there are more."""
    lost = {name: number for name, number in waiting.items() if name not in supported}
    if lost:
        text = f"for want of a worker of their type: {tasks_of(sum(lost.values()))}, of {some(lost)}"
        advice = (
            "look at the spelling of the type, at `executors` and worker.supported_types; or start such a worker"
        )
        yield Finding("waiting", Level.WARNING, text, advice)
    elif only_newest is not None:
        text = f"none of the newest {only_newest} tasks waits for want of a worker; the others were not looked at"
        yield Finding("waiting", Level.INFO, text, "run this where a node's config is: the store knows them all")
    else:
        yield Finding("waiting", Level.OK, "no type waits for want of a worker")


def of_workers(workers: Sequence[Worker], now: datetime) -> Iterator[Finding]:
    """Whether there are any, and whether they are well."""
    if not workers:
        yield Finding("workers", Level.ERROR, "none", "start a node with worker.enabled; see its log if it runs")
        return
    slots = sum(worker.capacity for worker in workers)
    busy = sum(worker.current_load for worker in workers)
    yield Finding("workers", Level.OK, f"{len(workers)} alive, {busy} of {slots} slots busy")
    ages = {worker.id: (now - worker.last_heartbeat).total_seconds() for worker in workers}
    silent = [worker_id for worker_id, age in ages.items() if age > SILENT]
    if silent:
        text = f"not heard for {max(ages.values()):.0f} s: {some(silent)}"
        advice = "look at these nodes' logs and load; or the clocks of the hosts differ"
        yield Finding("workers", Level.WARNING, text, advice)
    if min(ages.values()) < -MAX_SKEW:
        yield of_clock("a worker's node", -min(ages.values()))
    draining = [worker.id for worker in workers if worker.draining]
    if draining:
        yield Finding("workers", Level.INFO, f"draining: {some(draining)}")


def of_queues(queues: Queues) -> Finding:
    waiting = sum(queue.length for queue in queues)
    parked = sum(queue.parked for queue in queues)
    text = f"{waiting} waiting, {parked} of them parked; {queues.delayed} delayed"
    return Finding("queues", Level.OK, text)


def of_running(tasks: Sequence[Task], workers: Sequence[Worker]) -> Finding:
    """Orphans, as far as the API tells: PROCESSING at a worker that is not there."""
    known = {worker.id for worker in workers}
    lost = [task.task_id for task in tasks if task.worker_id not in known]
    if lost:
        text = f"{tasks_of(len(lost))} PROCESSING at workers that are not there: {some(lost)}"
        advice = "a leader recovers them within 15 s: look again; if they stay, look at the leader's log"
        return Finding("orphans", Level.WARNING, text, advice)
    return Finding("orphans", Level.OK, f"none; running: {tasks_of(len(tasks))}")


def of_leader(
    leader: str | None, in_store: str | None, *, redis_answers: bool = True, node_answers: bool
) -> Finding:
    """``in_store``: who leads by the database's word, which counts while Redis is away."""
    if leader:
        return Finding("leader", Level.OK, leader)
    if in_store:
        return Finding(
            "leader", Level.WARNING, f"{in_store}, by the database, as Redis is or was away", "look at Redis"
        )
    if not redis_answers:
        return Finding("leader", Level.INFO, "not known: Redis cannot be asked", "see the check of Redis")
    if not node_answers:
        return Finding("leader", Level.INFO, "nobody leads", "start a node with scheduler.enabled")
    advice = "let a node have scheduler.enabled; if one does, its log says why it does not lead"
    return Finding("leader", Level.ERROR, "nobody leads: tasks are not handed out", advice)


def of_disk(free: int, where: str) -> Finding:
    """``free``: bytes."""
    text = f"{free / (1 << 30):.1f} GiB free at {where}"
    if free >= LOW_DISK:
        return Finding("disk", Level.OK, text)
    level = Level.ERROR if free < NO_DISK else Level.WARNING
    return Finding("disk", level, text, "make room: on a full disk creates are answered with 503; see `retention`")
