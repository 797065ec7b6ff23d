"""The invariants of docs/protocol.md, looked for in what a run has left behind.

A  each acknowledged create is one task, in exactly one terminal state
L  its log is a legal path that ends in the row's state
N  attempts since the last opening ≤ 1 + retries + recoveries + releases, each within its cap
F  the stored result carries the last attempt; no task succeeds twice
E  an attempt is over in the store only after its executor has ended; no two runs of a task overlap
C  a type's cap is never exceeded
K  what a client was told of a cancel or a retry came true
V  the API shows what the store holds
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from atm.task import MAX_RECOVERIES, TERMINAL, legal_path

from .evidence import Evidence, LogRow, RunLines, Stored
from .load import NARROW_CAP, OUR_TYPES

USER_RETRY = "Retry requested"
"""The message of the log row by which a user's retry opens a task again."""


@dataclass(frozen=True)
class Violation:
    law: str
    task_id: str
    what: str

    def __str__(self) -> str:
        return f"{self.law}  {self.task_id}  {self.what}"


def check(evidence: Evidence) -> list[Violation]:
    """Every violation there is; none if all held."""
    laws = (
        _no_create_is_lost,
        _every_task_is_wanted_and_ended,
        _every_log_is_legal,
        _attempts_are_within_bounds,
        _results_are_of_the_last_attempt,
        _store_waits_for_executors,
        _runs_do_not_overlap,
        _cap_is_kept,
        _answers_came_true,
        _api_agrees,
    )
    return [violation for law in laws for violation in law(evidence)]


def _no_create_is_lost(evidence: Evidence) -> Iterator[Violation]:
    for create in evidence.ledger.creates:
        if len(set(create.answers)) > 1:
            yield Violation("A", create.answers[0], f"one key, several tasks: {create.answers}")
        for task_id in set(create.answers):
            task = evidence.tasks.get(task_id)
            if task is None:
                yield Violation("A", task_id, f"acknowledged create {create.ref} is lost")
            elif task.payload.get("ref") != create.ref:
                yield Violation("A", task_id, f"create {create.ref} got the task of {task.payload.get('ref')}")
        if not create.answers and not create.given_up:
            yield Violation("A", "", f"create {create.ref} never got an answer")
    for surprise in evidence.ledger.surprises:
        yield Violation("A", "", f"unexpected answer: {surprise}")


def _every_task_is_wanted_and_ended(evidence: Evidence) -> Iterator[Violation]:
    wanted = {create.ref for create in evidence.ledger.creates}
    copies = Counter(task.payload.get("ref") for task in evidence.tasks.values())
    for task in evidence.tasks.values():
        ref = task.payload.get("ref")
        if ref not in wanted:
            yield Violation("A", task.task_id, f"nobody asked for it (ref {ref})")
        if copies[ref] > 1:
            yield Violation("A", task.task_id, f"create {ref} became {copies[ref]} tasks")
        if task.status not in TERMINAL:
            yield Violation("A", task.task_id, f"not terminal but {task.status}")


def _every_log_is_legal(evidence: Evidence) -> Iterator[Violation]:
    for task in evidence.tasks.values():
        rows = evidence.logs.get(task.task_id, [])
        try:
            end = legal_path((row.source, row.target) for row in rows)
        except ValueError as error:
            yield Violation("L", task.task_id, f"{error} in {_path(rows)}")
            continue
        if end != task.status:
            yield Violation("L", task.task_id, f"the log ends in {end}, the row is {task.status}")
        if any(before.at_ms > after.at_ms for before, after in pairwise(rows)):
            yield Violation("L", task.task_id, "the log's times go backwards")
    for task_id in evidence.logs.keys() - evidence.tasks.keys():
        yield Violation("L", task_id, "a log without its task")


def _path(rows: Iterable[LogRow]) -> str:
    return " ".join(f"{row.source}→{row.target}" for row in rows if row.source or row.target)


def _claims(rows: Iterable[LogRow]) -> list[LogRow]:
    return [row for row in rows if row.target == "PROCESSING"]


def _since_opening(rows: list[LogRow]) -> list[LogRow]:
    openings = [at for at, row in enumerate(rows) if row.log_type == "RETRY" and row.message == USER_RETRY]
    return rows[openings[-1] :] if openings else rows


def _attempts_are_within_bounds(evidence: Evidence) -> Iterator[Violation]:
    for task in evidence.tasks.values():
        rows = evidence.logs.get(task.task_id, [])
        numbers = [row.attempt for row in _claims(rows)]
        if numbers != list(range(1, task.attempt + 1)):
            yield Violation("N", task.task_id, f"claims {numbers} in the log, attempt {task.attempt}")
        opened = _since_opening(rows)
        attempts = len(_claims(opened))
        if attempts > 1 + task.retry_count + task.recoveries + task.releases:
            yield Violation("N", task.task_id, f"{attempts} attempts, but {_counters(task)}")
        retries = sum(row.log_type == "RETRY" and row.message != USER_RETRY for row in opened)
        if retries != task.retry_count:
            yield Violation("N", task.task_id, f"{retries} retries in the log, but {_counters(task)}")
        if task.retry_count > task.max_retry:
            yield Violation("N", task.task_id, f"more retries than the {task.max_retry} allowed")
        if task.recoveries > MAX_RECOVERIES + (task.status == "FAILED"):
            yield Violation("N", task.task_id, f"{task.recoveries} recoveries and still {task.status}")


def _counters(task: Stored) -> str:
    return f"retries {task.retry_count}, recoveries {task.recoveries}, releases {task.releases}"


def _results_are_of_the_last_attempt(evidence: Evidence) -> Iterator[Violation]:
    for task in evidence.tasks.values():
        rows = evidence.logs.get(task.task_id, [])
        successes = [row for row in rows if row.target == "SUCCESS"]
        if len(successes) > 1:
            yield Violation("F", task.task_id, f"succeeded {len(successes)} times")
        if task.status != "SUCCESS":
            if task.result is not None:
                yield Violation("F", task.task_id, f"{task.status} with a result")
            continue
        if any(row.attempt != task.attempt for row in successes):
            yield Violation("F", task.task_id, f"succeeded in an attempt other than its last, {task.attempt}")
        if task.task_type not in OUR_TYPES:
            continue
        told = task.result.get("attempt") if isinstance(task.result, dict) else None
        if told != task.attempt:
            yield Violation("F", task.task_id, f"the result is of attempt {told}, the last one was {task.attempt}")
        run = evidence.runs.get((task.task_id, task.attempt))
        if run is None or run.end_ns is None:
            yield Violation("F", task.task_id, "SUCCESS, but its executor never ended")


def _store_waits_for_executors(evidence: Evidence) -> Iterator[Violation]:
    died = {life.number: life.died_ns for life in evidence.lives}
    for task_id, rows in evidence.logs.items():
        for row in rows:
            if row.source != "PROCESSING" or row.attempt is None:
                continue
            run = evidence.runs.get((task_id, row.attempt))
            if run is None:
                continue  # a shipped executor, or cut off before its first line
            over = _over_ns(run, died)
            if over is None or over // 1_000_000 > row.at_ms:
                when = "is still running" if over is None else f"ended {over // 1_000_000 - row.at_ms} ms later"
                what = f"attempt {row.attempt} became {row.target}, but its executor {when}"
                yield Violation("E", task_id, what)


def _over_ns(run: RunLines, died: dict[int, int | None]) -> int | None:
    """When this run was over: by its own line, or by the death of its process."""
    return died.get(run.life) if run.end_ns is None else run.end_ns


def _runs_do_not_overlap(evidence: Evidence) -> Iterator[Violation]:
    for task_id, attempt in evidence.twice_started:
        yield Violation("E", task_id, f"attempt {attempt} started twice")
    died = {life.number: life.died_ns for life in evidence.lives}
    by_task: dict[str, list[tuple[int, RunLines]]] = {}
    for (task_id, attempt), run in evidence.runs.items():
        by_task.setdefault(task_id, []).append((attempt, run))
    for task_id, runs in by_task.items():
        claims = {row.attempt: row.at_ms for row in _claims(evidence.logs.get(task_id, []))}
        for (attempt, run), (following, after) in pairwise(sorted(runs, key=lambda numbered: numbered[0])):
            over = _over_ns(run, died)
            if over is None or over > after.start_ns:
                yield Violation("E", task_id, f"attempts {attempt} and {following} overlap")
        for attempt, run in runs:
            if attempt not in claims or claims[attempt] > run.start_ns // 1_000_000:
                yield Violation("E", task_id, f"attempt {attempt} ran before its claim was stored")


def _cap_is_kept(evidence: Evidence) -> Iterator[Violation]:
    died = {life.number: life.died_ns for life in evidence.lives}
    moves: list[tuple[int, int, str]] = []
    for (task_id, _), run in evidence.runs.items():
        task = evidence.tasks.get(task_id)
        over = _over_ns(run, died)
        if task is not None and task.task_type == "narrow" and over is not None:
            moves += [(run.start_ns, 1, task_id), (over, -1, task_id)]
    running = 0
    for _, step, task_id in sorted(moves):
        running += step
        if running > NARROW_CAP:
            yield Violation("C", task_id, f"{running} ran at once, the cap is {NARROW_CAP}")


def _answers_came_true(evidence: Evidence) -> Iterator[Violation]:
    for task_id, answers in evidence.ledger.cancels.items():
        task = evidence.tasks.get(task_id)
        # With a retry about, the order of the two is not known here; the log's path tells enough.
        if task is None or task_id in evidence.ledger.retries:
            continue
        if (200 in answers or 202 in answers) and task.status != "CANCELLED":
            yield Violation("K", task_id, f"a cancel was answered {answers}, the task is {task.status}")
        if answers == [409] and task.status == "CANCELLED":
            yield Violation("K", task_id, "a cancel was refused, the task is CANCELLED")
    for task_id, answers in evidence.ledger.retries.items():
        rows = evidence.logs.get(task_id, [])
        opened = sum(row.log_type == "RETRY" and row.message == USER_RETRY for row in rows)
        if not answers.count(200) <= opened <= len(answers) - answers.count(409):
            yield Violation("K", task_id, f"retries were answered {answers}, the log has {opened}")


def _api_agrees(evidence: Evidence) -> Iterator[Violation]:
    for task_id in evidence.served.keys() ^ evidence.tasks.keys():
        where = "the API" if task_id in evidence.served else "the store"
        yield Violation("V", task_id, f"only {where} knows it")
    for task_id, served in evidence.served.items():
        task = evidence.tasks.get(task_id)
        if task is None:
            continue
        for name in ("status", "attempt", "retry_count", "recoveries", "releases", "result", "payload"):
            if served[name] != getattr(task, name):
                what = f"{name}: the API shows {served[name]!r}, the store holds {getattr(task, name)!r}"
                yield Violation("V", task_id, what)
    for task_id, steps in evidence.served_logs.items():
        held = [(row.log_type, row.source, row.target) for row in evidence.logs.get(task_id, [])]
        if steps != held:
            yield Violation("V", task_id, f"log: the API shows {steps}, the store holds {held}")
