"""One attempt: its scope, its executor, how it ended. The only file that splits exception groups.

Why an attempt ended is read from Trio itself: ``Cancelled.source`` and ``.reason``, also inside groups.

    the scope caught the cancel    its deadline → TIMEOUT; a user's → CANCELLED; its worker's → released
    the cancel came from outside   shutdown or lease lost → released; it goes on to where it belongs
    the scope caught nothing       the executor's own outcome counts: a success that won the race is a success
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import trio

from atm.context import Context
from atm.errors import NonRetryable, RetryLater
from atm.executor import MAX_RESULT, Executor, TaskResult
from atm.nursery import left_open
from atm.store import Outcome, Receipt
from atm.task import Status, Task, TaskType, duration

MAX_ERROR = 4096
MAX_DETAILS = 16384
"""Characters of an error's message, and of its traceback in the log; the rest is cut."""

MAX_NAME = 128
"""Characters of the name of an error's class."""

MAX_TREE_MESSAGE = 256
"""Characters of each message in the tree of a group."""

MAX_WIDTH, MAX_DEPTH = 15, 10
"""Errors of one group that are told, and groups within groups; the others are counted."""

USER_CANCEL = "cancelled"
"""The reason given to a run's scope when a user cancels the task."""

SHUTDOWN = "shutdown"
"""The reason given to the scopes of runs when the grace time is over."""

LEASE_LOST = "its lease was lost"
"""The reason given to the scopes of runs when the worker's lease is refused."""

OWN_REASONS = frozenset({USER_CANCEL, SHUTDOWN, LEASE_LOST})

_encode_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


class Run:
    """An attempt under way on this worker.

    Attributes:
        cancelled_at: when a user's cancel reached it; ``started_at`` and ``ended_at`` are Trio's clock, too.
        remarks: what its log is to be told of it, and has not been yet; written with the outcome at the latest.
        trio_task: what carries it out, once it has begun.
    """

    __slots__ = (
        "cancelled_at",
        "context",
        "ended_at",
        "executor",
        "looks",
        "outcome",
        "remarks",
        "scope",
        "settings",
        "started_at",
        "task",
        "trio_task",
    )

    def __init__(self, task: Task, settings: TaskType, executor: Executor, now: float) -> None:
        self.task = task
        self.settings = settings
        self.executor = executor
        self.started_at = now
        self.ended_at: float | None = None
        self.looks = 0  # whether its children have ended, when it is to be recorded
        self.cancelled_at: float | None = None
        self.remarks: list[object] | None = None
        self.trio_task: trio.lowlevel.Task | None = None
        self.scope = trio.CancelScope(deadline=now + task.timeout)
        self.context: Context
        self.outcome: Outcome

    @property
    def seconds(self) -> float:
        """How long the executor ran."""
        return (trio.current_time() if self.ended_at is None else self.ended_at) - self.started_at

    def cancel(self) -> None:
        """A user cancels the task."""
        if self.cancelled_at is None:
            self.cancelled_at = trio.current_time()
        self.context.note_cancel("cancelled")
        self.scope.cancel(reason=USER_CANCEL)

    def stop(self, reason: str) -> None:
        """Its worker may or will not go on with it: shutdown, or the lease is lost."""
        self.context.note_cancel("shutdown")
        self.scope.cancel(reason=reason)

    def receipt(self) -> Receipt | None:
        """How the end went of a run that a user has cancelled."""
        if self.cancelled_at is None or self.ended_at is None:
            return None
        return Receipt(max(0.0, self.ended_at - self.cancelled_at), time.monotonic(), self._reaped())

    def overrun(self) -> str:
        """The same of one that has passed its deadline."""
        late = self.seconds - (self.scope.deadline - self.started_at)
        return f"the executor ended {duration(late)} after its deadline{self._reaped()}"

    def _reaped(self) -> str:
        """Its children are told of by the worker, when they have ended."""
        counts = self.context.reaped.items()
        told = [f"{count} {name if count != 1 else _ONE.get(name, name)}" for name, count in counts if count]
        return f"; reaped {', '.join(told)}" if told else ""


async def attempt(run: Run, ended: Callable[[Run], None]) -> None:
    """Carry out the attempt and hand its outcome to ``ended``. Only a cancel from outside comes out."""
    run.trio_task = me = trio.lowlevel.current_task()
    own = len(me.child_nurseries)
    error: BaseException | None = None
    outside: BaseException | None = None
    value: Any = None
    try:
        with run.scope:
            try:
                value = await run.executor.execute(run.context, run.task)
                if run.context.children is not None and _is_success(value):
                    await run.context.children_ended()
                if left_open.has_left(me, own):
                    await left_open.close(me, own)
            except BaseException as caught:
                error = caught
                if left_open.has_left(me, own):
                    await left_open.close(me, own, error)
                raise
    except BaseException as escaped:  # noqa: BLE001 - whatever user code raises, the worker lives
        outside = _from_outside(escaped)
        if error is None:
            error = escaped  # the executor has returned, but left the scopes around it broken
    run.ended_at = trio.current_time()
    try:
        if error is None:
            run.outcome = _judge_value(run, value)
        elif outside is not None:
            run.outcome = _released(run, outside)
        else:
            run.outcome = _judge_error(run, error)
    except BaseException as odd:  # noqa: BLE001 - methods of the user's values and errors run while they are judged
        reason = f"what the executor returned or raised cannot be told: {_text_of(odd)}"
        run.outcome = _failure(run, Status.FAILED, type(odd).__name__, reason)
    ended(run)
    if outside is not None:
        raise outside


def is_run(task: trio.lowlevel.Task) -> bool:
    """Whether a run is carried out by this task of Trio's."""
    return getattr(task.coro, "cr_code", None) is attempt.__code__


def _from_outside(error: BaseException) -> BaseException | None:
    """The part of what escaped the run's scope that belongs to a scope around it.

    A Cancelled that user code has kept from a scope of its own and raises again belongs to nobody.
    """
    if trio.current_effective_deadline() > -math.inf:
        return None
    if isinstance(error, BaseExceptionGroup):
        try:
            return error.split(trio.Cancelled)[0]
        except RecursionError:
            return next((leaf for leaf in _leaves(error) if isinstance(leaf, trio.Cancelled)), None)
    return error if isinstance(error, trio.Cancelled) else None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """In order. Groups may be nested more deeply than calls can be."""
    found = [error]
    while found:
        current = found.pop()
        if isinstance(current, BaseExceptionGroup):
            found.extend(reversed(current.exceptions))
        else:
            yield current


def _is_success(value: Any) -> bool:
    return not isinstance(value, TaskResult) or value.success


def _judge_value(run: Run, value: Any) -> Outcome:
    if isinstance(value, TaskResult):
        if not value.success:
            reason = _text_of(value.error) if value.error else "the executor reported a failure"
            return _failure(run, Status.FAILED, "TaskFailed", reason)
        value = value.data
    if value is None:
        return _success(run, "null")
    try:
        text = _encode_json(value)
        size = len(text) if text.isascii() else len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        reason = f"the result is not JSON: {error}"
        return _failure(run, Status.FAILED, "InvalidResult", reason, retryable=False)
    if size > MAX_RESULT:
        reason = f"the result is too large: {size} bytes, {MAX_RESULT} at most"
        return _failure(run, Status.FAILED, "InvalidResult", reason, retryable=False)
    return _success(run, text)


def _success(run: Run, result_json: str) -> Outcome:
    late = f"; {run.overrun()}" if run.cancelled_at is None and _is_over(run) else ""
    return _outcome(run, Status.SUCCESS, f"Task succeeded{late}", result_json=result_json)


def _judge_error(run: Run, error: BaseException) -> Outcome:
    leaves = list(_leaves(error))
    failures = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)]
    details = _details(error, len(leaves)) if failures else None
    cancelled = None
    if run.scope.cancel_called:
        is_over = _is_over(run)
        cancelled = next(filter(None, (_cancel_behind(leaf, is_over) for leaf in leaves)), None)
    if cancelled is None and run.scope.cancelled_caught:
        return _cut_off_twice(run, details)
    if cancelled is None:
        cause = next((leaf for leaf in leaves if isinstance(leaf, NonRetryable)), (failures or leaves)[0])
        retryable = not isinstance(cause, NonRetryable)
        after = max((leaf.after for leaf in leaves if isinstance(leaf, RetryLater)), default=0.0)
        name, reason, tree = type(cause).__name__, _text_of(cause), _tree(error)
        return _failure(run, Status.FAILED, name, reason, details, retryable=retryable, after=after, tree=tree)
    if cancelled.source == "deadline":
        return _timeout(run, details, _tree(error) if failures else None)
    if cancelled.reason != USER_CANCEL:
        return _released(run, cancelled, details)
    return _outcome(run, Status.CANCELLED, "Task cancelled", details=details)


def _timeout(run: Run, details: str | None, tree: dict[str, Any] | None = None) -> Outcome:
    reason = f"no end within its timeout of {run.task.timeout:g} s"
    return _failure(run, Status.TIMEOUT, "Timeout", reason, details, tree=tree, receipt=run.overrun())


def _cut_off_twice(run: Run, details: str | None) -> Outcome:
    """The run was cancelled while a cancel of the executor's own was under way, whose cause alone Trio tells."""
    if run.cancelled_at is not None:
        return _outcome(run, Status.CANCELLED, "Task cancelled", details=details)
    if _is_over(run):
        return _timeout(run, details)
    return _outcome(run, Status.PENDING, "Released by its worker: stopped", details=details)


def _is_over(run: Run) -> bool:
    """Whether its deadline has passed when it ended."""
    return run.ended_at is not None and run.ended_at >= run.scope.deadline


def _cancel_behind(error: BaseException, is_over: bool) -> trio.Cancelled | None:
    """The Cancelled that an error is, or that was under way when the error was raised, by a cleanup say.

    Those of scopes that the executor has cancelled itself are its own business.

    Args:
        is_over: the run's deadline has passed; before, only the executor's own deadlines can have.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, trio.Cancelled) and (
            is_over if current.source == "deadline" else current.reason in OWN_REASONS
        ):
            return current
        seen.add(id(current))
        current = current.__context__
    return None


def _released(run: Run, error: BaseException, details: str | None = None) -> Outcome:
    cancelled = next((leaf for leaf in _leaves(error) if isinstance(leaf, trio.Cancelled)), None)
    reason = cancelled.reason if cancelled is not None else None
    if cancelled is not None and cancelled.source == "deadline":
        reason = LEASE_LOST
    return _outcome(run, Status.PENDING, f"Released by its worker: {reason or 'stopped'}", details=details)


def _failure(
    run: Run,
    status: Status,
    kind: str,
    message: str,
    details: str | None = None,
    *,
    retryable: bool = True,
    after: float = 0.0,
    tree: dict[str, Any] | None = None,
    receipt: str | None = None,
) -> Outcome:
    kind = _printable(kind, MAX_NAME)
    message = _printable(message or kind, MAX_ERROR)
    again = retryable and run.task.retry_count < run.task.max_retry
    error: dict[str, Any] = {"type": kind, "message": message, "retryable": retryable}
    if tree is not None:
        error["group"] = tree
    told = f"{kind}: {message}" if kind not in message else message
    return _outcome(
        run,
        status,
        told if receipt is None else f"{told}; {receipt}",
        error_json=_encode_json(error),
        details=details,
        retry_in=run.settings.delay(run.task.retry_count, after) if again else None,
    )


def _outcome(
    run: Run,
    status: Status,
    message: str,
    *,
    result_json: str | None = None,
    error_json: str | None = None,
    details: str | None = None,
    retry_in: float | None = None,
) -> Outcome:
    if run.remarks:
        details = "\n".join([*map(str, run.remarks), *filter(None, [details])])
        run.remarks = None
    return Outcome(
        task_id=run.task.task_id,
        attempt=run.task.attempt,
        status=status,
        message=message,
        result_json=result_json,
        error_json=error_json,
        details=details,
        progress_json=run.context.unsaved_progress,
        retry_in=retry_in,
        receipt=None if run.cancelled_at is None else run.receipt(),
    )


_ONE = {"children": "child", "threads": "thread", "processes": "process"}


def _text_of(value: object) -> str:
    try:
        return str(value)
    except BaseException:  # noqa: BLE001 - a __str__ of the user's
        return f"({type(value).__name__} without a readable message)"


def _tree(error: BaseException, depth: int = 0) -> dict[str, Any] | None:
    """A group as JSON, without the Cancelled in it; None for what is no group."""
    if not isinstance(error, BaseExceptionGroup):
        return None
    told: dict[str, Any] = {"type": _printable(type(error).__name__, MAX_NAME), "message": _message_of(error)}
    if depth < MAX_DEPTH:
        inner = [each for each in error.exceptions if not isinstance(each, trio.Cancelled)]
        told["exceptions"] = [_tree(each, depth + 1) or _leaf(each) for each in inner[:MAX_WIDTH]]
        if inner[MAX_WIDTH:]:
            told["more"] = len(inner) - MAX_WIDTH
    return told


def _leaf(error: BaseException) -> dict[str, Any]:
    return {"type": _printable(type(error).__name__, MAX_NAME), "message": _message_of(error)}


def _message_of(error: BaseException) -> str:
    text = error.message if isinstance(error, BaseExceptionGroup) else _text_of(error)
    return _printable(text, MAX_TREE_MESSAGE)


def _details(error: BaseException, leaves: int) -> str:
    try:
        # What is wider than any group that is told would take seconds to format.
        text = "".join(traceback.format_exception(error if leaves <= MAX_WIDTH else _narrow(error)))
    except BaseException:  # noqa: BLE001 - formatting calls methods of the user's errors
        text = _text_of(error)
    return _printable(text, MAX_DETAILS)


def _narrow(error: BaseException, depth: int = 0) -> BaseException:
    """A copy of a group with few of its errors, and a note that tells how many are left out."""
    if not isinstance(error, BaseExceptionGroup) or depth > MAX_DEPTH:
        return error
    kept = [_narrow(each, depth + 1) for each in error.exceptions[:MAX_WIDTH]]
    copy = BaseExceptionGroup(error.message, kept).with_traceback(error.__traceback__)
    copy.__cause__, copy.__context__ = error.__cause__, error.__context__
    copy.__suppress_context__ = error.__suppress_context__
    if len(error.exceptions) > MAX_WIDTH:
        copy.add_note(f"and {len(error.exceptions) - MAX_WIDTH} more")
    return copy


def _printable(text: str, limit: int) -> str:
    """Text that any store takes: no lone surrogates, no NUL, not endless; a cut text keeps its end."""
    if len(text) > limit:
        text = "…" + text[1 - limit :] if limit == MAX_DETAILS else text[: limit - 1] + "…"
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
