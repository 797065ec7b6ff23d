"""The judgement of the store, pure: given a locked row and what is asked of it, the change, the log, the verdict.

Every store reads the rows under its lock, decides here, and writes exactly the changes and log rows it gets.
``docs/protocol.md`` is the law. Times are milliseconds by the store's clock unless a name says otherwise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from atm.errors import IdempotencyConflict
from atm.store import (
    CancelState,
    CancelVerdict,
    Created,
    Finished,
    NewChild,
    NewTask,
    Outcome,
    Receipt,
    Recovered,
    Settled,
    Spawned,
    SpawnState,
    Waiting,
)
from atm.task import MAX_RECOVERIES, REOPENABLE, LogType, Status, Task, TaskType, children_ended, duration

SWEEP_FIRST = 2_000
"""A due task that nobody claims is looked at after this long, then after twice as long, and so on."""

SWEEP_MAX = 60_000

OVERRUN = 10_000
"""A PROCESSING row is looked at this long after its timeout: cleanup budget and 5 s."""


class Row(msgspec.Struct, array_like=True, gc=False):
    """What a decision reads of a task; the order of the fields is the order of the stores' SELECT.

    ``seq`` is the store's own name of the task: a number where it has short ones.
    ``children``: it has had some; only then the store has to look whether it is ``busy``: one of them lives.
    ``ended_with``: how many of them were ended with it, where ``ended_parents`` asks for that.
    """

    seq: int | str
    task_id: str
    task_type: str
    priority: int
    status: Status
    attempt: int
    retry_count: int
    recoveries: int
    releases: int
    cancel_requested_ms: int | None
    worker_id: str | None
    max_retry: int
    due_ms: int
    children: int = 0
    expires_ms: int | None = None
    busy: bool = False
    ended_with: int = 0


class Parent(msgspec.Struct, array_like=True, gc=False):
    """What is read of a task that starts a child."""

    seq: int | str
    task_id: str
    task_type: str
    status: Status
    attempt: int
    worker_id: str | None
    cancel_requested_ms: int | None
    started_ms: int | None
    timeout: float
    expires_ms: int | None

    @property
    def deadline(self) -> int:
        """When the attempt that runs times out."""
        own = (self.started_ms or 0) + round(min(self.timeout, 1e9) * 1000)
        return own if self.expires_ms is None else min(own, self.expires_ms)


class End(msgspec.Struct, array_like=True, gc=False):
    """What the end of a task by its last attempt writes: the hot case, so only what differs."""

    seq: int | str
    status: Status
    result_json: str | None
    error_json: str | None
    progress_json: str | None


class Change(msgspec.Struct, array_like=True, gc=False, kw_only=True):
    """What any other decision writes; the order of the fields is the order of the stores' UPDATE.

    ``keep_body`` leaves result, error and progress as they are; else they are set to what stands here,
    except that ``progress_json`` None leaves the progress of a task that is not opened anew.
    """

    seq: int | str
    status: Status
    due_ms: int | None = None
    sweep_ms: int | None = None
    completed_ms: int | None = None
    retry_count: int = 0
    recoveries: int = 0
    releases: int = 0
    cancel_requested_ms: int | None = None
    worker_id: str | None = None
    keep_body: bool = False
    result_json: str | None = None
    error_json: str | None = None
    progress_json: str | None = None
    opened: bool = False


class Log(NamedTuple):
    """A row for a task's log. Plain texts, not enums: drivers bind those several times as fast."""

    seq: int | str
    log_type: str
    from_status: str | None
    to_status: str | None
    message: str
    worker_id: str | None
    attempt: int | None


AddLog = Callable[[Log], None]


def step(row: Row, target: Status, message: str, log_type: LogType = LogType.STATE_CHANGE) -> Log:
    """The log row of a transition of this row."""
    source, to = row.status._value_, target._value_
    return Log(row.seq, log_type._value_, source, to, message, row.worker_id, row.attempt or None)


def created(seq: int | str) -> Log:
    return Log(seq, "STATE_CHANGE", None, "PENDING", "Task created", None, None)


def claimed(seq: int | str, attempt: int, worker_id: str) -> Log:
    return Log(seq, "STATE_CHANGE", "PENDING", "PROCESSING", "Task assigned to worker", worker_id, attempt)


def same_request(task: NewTask, task_type: str, payload_json: str) -> bool:
    """Whether a create asks for what a task of this type and payload is: a replay, not a conflict."""
    if task.task_type != task_type:
        return False
    return task.payload_json == payload_json or _canonical(task.payload_json) == _canonical(payload_json)


def _canonical(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


Owners = dict[str, tuple[str, str, str]]
"""By idempotency key: id, type and payload of the task that has it."""


def replays(tasks: Sequence[NewTask], owners: Owners) -> list[Created | None]:
    """For each task of a call the receipt of the one that has its key already; the new ones own theirs then.

    Raises: IdempotencyConflict; no key of the call is owned then.
    """
    mine: Owners = {}
    replays: list[Created | None] = []
    for index, task in enumerate(tasks):
        key = task.idempotency_key
        owner = None if key is None else mine.get(key) or owners.get(key)
        if owner is not None and not same_request(task, owner[1], owner[2]):
            raise IdempotencyConflict(index, owner[0])
        if owner is None and key is not None:
            mine[key] = (task.task_id, task.task_type, task.payload_json)
        replays.append(None if owner is None else Created(owner[0], replayed=True))
    owners |= mine
    return replays


def due(task: NewTask, now: int) -> tuple[int, int | None]:
    """When the task is due, and what its scheduled_at shows."""
    if task.scheduled_ms is not None:
        return max(now, task.scheduled_ms), task.scheduled_ms
    if task.delay:
        return (at := now + round(task.delay * 1000)), at
    return now, None


def finish(row: Row | None, outcome: Outcome, now: int, log: AddLog) -> tuple[Finished, Change | End | None]:
    """Judge how an attempt ended. The row is brought up to date, so that a repetition in the batch sees it."""
    if row is None or row.attempt != outcome.attempt:
        return Finished(None), None
    if row.status is not Status.PROCESSING:
        if row.status not in _possible_ends(row, outcome):
            return Finished(None), None
        due_in = max(0, row.due_ms - now) / 1000 if row.status is Status.PENDING else 0.0
        return Finished(row.status, due_in, ended_with=row.ended_with), None
    again = _is_tried_again(row, outcome, now)
    if row.busy and (row.cancel_requested_ms is not None or not (again or outcome.status is Status.PENDING)):
        return Finished(None, children=True), None
    if outcome.details is not None:
        log(Log(row.seq, "ERROR", None, None, outcome.details, row.worker_id, row.attempt))
    if row.ended_with:
        outcome = replace(outcome, message=outcome.message + children_ended(row.ended_with))
    if row.cancel_requested_ms is not None:
        message = _cancelled(outcome, now - row.cancel_requested_ms)
        return _end(row, Status.CANCELLED, outcome, message, log)
    if outcome.status is Status.PENDING:
        row.releases += 1
        return Finished(Status.PENDING), _to_pending(row, outcome.message, now, 0, log)
    if outcome.status in (Status.FAILED, Status.TIMEOUT) and outcome.retry_in is not None and again:
        log(step(row, outcome.status, outcome.message))
        row.status = outcome.status
        row.retry_count += 1
        message = f"Retry {row.retry_count} of {row.max_retry} in {outcome.retry_in:.2f} s"
        change = _to_pending(row, message, now, round(outcome.retry_in * 1000), log, LogType.RETRY)
        change.keep_body = False
        change.error_json, change.progress_json = outcome.error_json, outcome.progress_json
        return Finished(Status.PENDING, outcome.retry_in), change
    late = "" if outcome.retry_in is None else "; its parent's deadline leaves no time for a retry"
    return _end(row, outcome.status, outcome, outcome.message + late, log)


def ended_parents(rows: Mapping[str, Row], outcomes: Iterable[Outcome], now: int) -> list[str]:
    """The tasks that these outcomes end for good, after children that they have had."""
    parents = {name for name, row in rows.items() if row.children and not row.busy}
    if not parents:
        return []
    return [o.task_id for o in outcomes if o.task_id in parents and _is_end(rows[o.task_id], o, now)]


def _is_end(row: Row, outcome: Outcome, now: int) -> bool:
    if row.attempt != outcome.attempt or row.status is Status.PENDING:
        return False
    lives_on = outcome.status is Status.PENDING or _is_tried_again(row, outcome, now)
    return row.cancel_requested_ms is not None or not lives_on


def _is_tried_again(row: Row, outcome: Outcome, now: int) -> bool:
    return outcome.retry_in is not None and not _is_late(row, outcome.retry_in, now)


def _is_late(row: Row, retry_in: float, now: int) -> bool:
    """Whether a retry would come after the deadline that the task has from its parent."""
    return row.expires_ms is not None and now + retry_in * 1000 >= row.expires_ms


def _cancelled(outcome: Outcome, asked_ms: int) -> str:
    """The message of a cancel that was asked for so many ms ago."""
    if outcome.receipt is not None:
        steps = f" ({_steps(outcome.receipt, asked_ms)})"
    elif outcome.status is not Status.CANCELLED:
        steps = f" (asked → ended {duration(asked_ms / 1000)}, before it had reached the run)"
    else:
        steps = ""
    return f"{'' if outcome.status is Status.CANCELLED else 'Cancelled; '}{outcome.message}{steps}"


def _steps(receipt: Receipt, asked_ms: int) -> str:
    """How long each step of a cancel took.

    ``asked_ms`` ago it was asked for, by the store's clock; what came after it had reached the node is known
    by that node's own clock, which is this process's. The rest is the way there.
    """
    way = asked_ms / 1000 - receipt.took - (time.monotonic() - receipt.ended_clock)
    return f"asked → node {duration(way)} → executor ended {duration(receipt.took)}{receipt.reaped}"


def _possible_ends(row: Row, outcome: Outcome) -> tuple[Status, ...]:
    """The states that an earlier commit of this very outcome can have led to."""
    if outcome.retry_in is not None and row.expires_ms is not None:
        return (Status.PENDING, outcome.status, Status.CANCELLED)
    if outcome.retry_in is not None or outcome.status is Status.PENDING:
        return (Status.PENDING, Status.CANCELLED)
    return (outcome.status, Status.CANCELLED)


def _end(row: Row, status: Status, outcome: Outcome, message: str, log: AddLog) -> tuple[Finished, End]:
    log(step(row, status, message))
    row.status = status
    result = None if status is Status.CANCELLED else outcome.result_json
    end = End(row.seq, status, result, outcome.error_json, outcome.progress_json)
    return Finished(status, ended_with=row.ended_with), end


def cancel(row: Row | None, now: int, log: AddLog) -> tuple[CancelVerdict, Change | None]:
    if row is None:
        return CancelVerdict(CancelState.UNKNOWN), None
    if row.status is Status.PENDING and row.busy:
        row.cancel_requested_ms = now
        log(step(row, Status.PROCESSING, "Cancellation requested; its children end first"))
        change = _wait_for_children(row, now)
        return _waits_no_more(CancelState.REQUESTED, row, children=True), change
    if _waits_for_children(row) and not row.busy:
        row.cancel_requested_ms = row.cancel_requested_ms or now
        return CancelVerdict(CancelState.CANCELLED, Status.CANCELLED, changed=True), _settle(row, now, log)
    if row.status is Status.PENDING:
        log(step(row, Status.CANCELLED, "Task cancelled"))
        row.status = Status.CANCELLED
        change = _change(row, completed_ms=now, keep_body=True)
        row.cancel_requested_ms = change.cancel_requested_ms = now
        return _waits_no_more(CancelState.CANCELLED, row), change
    if row.status is Status.PROCESSING:
        first = row.cancel_requested_ms is None
        verdict = CancelVerdict(
            CancelState.REQUESTED, row.status, row.worker_id, row.attempt, changed=first, children=row.busy
        )
        if first:
            row.cancel_requested_ms = now
            log(Log(row.seq, "INFO", None, None, "Cancellation requested", row.worker_id, row.attempt))
        return verdict, None
    state = CancelState.CANCELLED if row.status is Status.CANCELLED else CancelState.TERMINAL
    return CancelVerdict(state, row.status), None


def _waits_no_more(state: CancelState, row: Row, *, children: bool = False) -> CancelVerdict:
    return CancelVerdict(
        state, row.status, changed=True, children=children, task_type=row.task_type, priority=row.priority
    )


def reopen(row: Row, now: int, log: AddLog, message: str = "Retry requested") -> Change | None:
    """A user's retry: budgets start anew, the fencing token goes on. None when the state forbids it."""
    if row.status not in REOPENABLE:
        return None
    row.retry_count = row.recoveries = row.releases = 0
    row.cancel_requested_ms = None
    change = _to_pending(row, message, now, 0, log, LogType.RETRY)
    change.keep_body = False
    change.opened = True
    return change


def recover(row: Row, now: int, delay_ms: int, log: AddLog) -> tuple[Recovered, Change]:
    """The worker of this row is lost."""
    if row.cancel_requested_ms is None and row.recoveries >= MAX_RECOVERIES:
        row.recoveries += 1
        change = _wait_for_children(row, now, log) if row.busy else _poison(row, now, log)
    elif row.cancel_requested_ms is not None and row.busy:
        change = _wait_for_children(row, now, log)
    elif row.cancel_requested_ms is not None:
        waited = duration((now - row.cancel_requested_ms) / 1000)
        log(step(row, Status.CANCELLED, f"Cancelled; the worker was lost (asked → ended {waited})"))
        row.status = Status.CANCELLED
        change = _change(row, completed_ms=now, keep_body=True)
    else:
        row.recoveries += 1
        change = _to_pending(row, "Recovered: its worker was lost", now, delay_ms, log)
    return Recovered(row.task_id, row.task_type, row.priority, row.status), change


def _poison(row: Row, now: int, log: AddLog) -> Change:
    message = f"Worker lost {row.recoveries} times: the task is taken for poison"
    log(step(row, Status.FAILED, message))
    row.status = Status.FAILED
    change = _change(row, completed_ms=now)
    change.error_json = json.dumps({"type": "WorkerLost", "message": message, "retryable": False})
    return change


# parents and children

NEAR = 1_000
"""A running child is left to its parent's deadline when that is so near, or passed no longer than OVERRUN ago."""

_KEY_MARK = "\x1f"  # no key of a user's holds a control character


def child_key(parent_id: str, ordinal: int) -> str:
    """The idempotency key of a child."""
    return f"{_KEY_MARK}{parent_id}/{ordinal}"


def child_keys(parent_id: str) -> tuple[str, str]:
    """The keys of all children of a task lie between these."""
    return f"{_KEY_MARK}{parent_id}/", f"{_KEY_MARK}{parent_id}0"  # 0 comes next after /


def refusal_to_spawn(parent: Parent | None, child: NewChild) -> Spawned | None:
    """Why this attempt may not start a child; None when it may."""
    if (
        parent is None
        or parent.status is not Status.PROCESSING
        or (parent.attempt, parent.worker_id) != (child.attempt, child.worker_id)
    ):
        return Spawned(SpawnState.STALE)
    return None if parent.cancel_requested_ms is None else Spawned(SpawnState.CANCELLED)


def started(parent: Parent, child: NewChild) -> Log:
    """Tells the parent's log of a new child."""
    message = f"Child {child.ordinal} started: {child.task.task_type} {child.task.task_id}"
    return Log(parent.seq, "INFO", None, None, message, parent.worker_id, parent.attempt)


def rejoin(row: Row, payload_json: str, child: NewChild, now: int, log: AddLog) -> tuple[Spawned, Change | None]:
    """A child that was started before: by an earlier try of this call, or by a former attempt of the parent.

    One that a user has cancelled stays so until a user retries it.
    """
    if row.task_id == child.task.task_id:
        return Spawned(SpawnState.CREATED, row.task_id), None
    if not same_request(child.task, row.task_type, payload_json):
        return Spawned(SpawnState.CONFLICT, row.task_id), None
    if row.status not in REOPENABLE or (row.status is Status.CANCELLED and row.expires_ms != 0):
        return Spawned(SpawnState.JOINED, row.task_id), None
    return Spawned(SpawnState.REOPENED, row.task_id), reopen(row, now, log, "Its parent tries again")


def cancel_child(row: Row, now: int, log: AddLog) -> tuple[CancelVerdict, Change | None]:
    """The parent ends: so does this child, if it lives."""
    if row.expires_ms is not None and row.expires_ms > 0:
        if row.status is Status.PENDING and row.expires_ms <= now and not row.busy:
            log(_expiry(row.seq))
            row.status = Status.TIMEOUT
            change = _change(row, completed_ms=now)
            change.error_json = EXPIRED_ERROR
            return _waits_no_more(CancelState.TERMINAL, row), change
        if row.status is Status.PROCESSING and row.worker_id and -OVERRUN < row.expires_ms - now < NEAR:
            return CancelVerdict(CancelState.REQUESTED, row.status), None
    return cancel(row, now, log)


EXPIRED_ERROR = json.dumps(
    {"type": "Timeout", "message": "its parent's deadline passed before it started", "retryable": False}
)


def _expiry(seq: int | str) -> Log:
    message = "Its parent's deadline passed before it started"
    return Log(seq, "STATE_CHANGE", "PENDING", "TIMEOUT", message, None, None)


def expired(seq: int | str, log: AddLog) -> End:
    """A child that was to start too late."""
    log(_expiry(seq))
    return End(seq, Status.TIMEOUT, None, EXPIRED_ERROR, None)


def time_left(task: Task, now: int) -> float:
    """Seconds that an attempt which begins now has: its timeout, but no more than its parent has.

    0: it must not start. A task that has children itself is started all the same, to be ended with them.
    """
    if task.expires_ms is None:
        return task.timeout
    left = (task.expires_ms - now) / 1000
    return min(task.timeout, max(left, 0.001) if task.children else max(left, 0.0))


def settle(row: Row, now: int, log: AddLog) -> tuple[Settled, Change | None]:
    """End a task that has no worker and waited for its children, if they have ended."""
    change = _settle(row, now, log) if _waits_for_children(row) and not row.busy else None
    return Settled(row.task_id, row.task_type, row.status), change


def _settle(row: Row, now: int, log: AddLog) -> Change:
    if row.cancel_requested_ms is None:
        return _poison(row, now, log)
    log(step(row, Status.CANCELLED, "Task cancelled; its children have ended"))
    row.status = Status.CANCELLED
    return _change(row, completed_ms=now, keep_body=True)


def _waits_for_children(row: Row) -> bool:
    return row.status is Status.PROCESSING and row.worker_id is None


def _wait_for_children(row: Row, now: int, log: AddLog | None = None) -> Change:
    """PROCESSING without a worker: nobody claims it, nobody recovers it."""
    if log is not None:
        log(
            Log(
                row.seq,
                "INFO",
                None,
                None,
                "Its worker was lost; its children end first",
                row.worker_id,
                row.attempt,
            )
        )
    row.status = Status.PROCESSING
    row.worker_id = None
    return _change(row, sweep_ms=now, keep_body=True)


def _to_pending(
    row: Row, message: str, now: int, delay_ms: int, log: AddLog, log_type: LogType = LogType.STATE_CHANGE
) -> Change:
    log(step(row, Status.PENDING, message, log_type))
    row.status = Status.PENDING
    row.worker_id = None
    row.due_ms = due_ms = now + delay_ms
    return _change(row, due_ms=due_ms, sweep_ms=due_ms + SWEEP_FIRST, keep_body=True)


def _change(
    row: Row,
    *,
    due_ms: int | None = None,
    sweep_ms: int | None = None,
    completed_ms: int | None = None,
    keep_body: bool = False,
) -> Change:
    return Change(
        seq=row.seq,
        status=row.status,
        due_ms=due_ms,
        sweep_ms=sweep_ms,
        completed_ms=completed_ms,
        retry_count=row.retry_count,
        recoveries=row.recoveries,
        releases=row.releases,
        cancel_requested_ms=row.cancel_requested_ms,
        worker_id=row.worker_id,
        keep_body=keep_body,
    )


def room(settings: TaskType, running: int) -> int | None:
    """How many more tasks of the type may be claimed; None without a cap."""
    if not settings.enabled:
        return 0
    return None if settings.max_concurrent is None else max(0, settings.max_concurrent - running)


def changed_type(before: TaskType, changes: dict[str, Any]) -> TaskType:
    """The settings with these fields changed."""
    return msgspec.convert({**msgspec.structs.asdict(before), **changes}, TaskType)


def waiting(task_id: str, task_type: str, priority: int, due_ms: int, now: int) -> Waiting:
    """A PENDING row as a hint needs it; times are milliseconds."""
    return Waiting(task_id, task_type, priority, max(0, due_ms - now) / 1000)
