"""One attempt: its scope, its executor, how it ended. The only file that splits exception groups.

Why an attempt ended is read from Trio itself: ``Cancelled.source`` and ``.reason``, also inside groups.

    the scope caught the cancel    its deadline → TIMEOUT; explicit → CANCELLED
    the cancel came from outside   shutdown or lease lost → released; it goes on to where it belongs
    the scope caught nothing       the executor's own outcome counts: a success that won the race is a success
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import trio

from atm.errors import NonRetryable, RetryLater
from atm.executor import Context, Executor, TaskResult
from atm.store import Outcome
from atm.task import Status, Task, TaskType

MAX_RESULT = 1024 * 1024
"""Bytes of a result's JSON text."""

MAX_ERROR = 4096
MAX_DETAILS = 16384
"""Characters of an error's message, and of its traceback in the log; the rest is cut."""

USER_CANCEL = "cancelled"
"""The reason given to a run's scope when a user cancels the task."""

_encode_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


class Run:
    """An attempt under way on this worker."""

    __slots__ = ("context", "ended_at", "executor", "looks", "outcome", "scope", "settings", "started_at", "task")

    def __init__(self, task: Task, settings: TaskType, executor: Executor, now: float) -> None:
        self.task = task
        self.settings = settings
        self.executor = executor
        self.started_at = now
        self.ended_at: float | None = None
        self.looks = 0  # whether its children have ended, when it is to be recorded
        self.scope = trio.CancelScope(deadline=now + task.timeout)
        self.context: Context
        self.outcome: Outcome

    @property
    def seconds(self) -> float:
        """How long the executor ran."""
        return (trio.current_time() if self.ended_at is None else self.ended_at) - self.started_at

    def cancel(self) -> None:
        """A user cancels the task."""
        self.scope.cancel(reason=USER_CANCEL)


async def attempt(run: Run, ended: Callable[[Run], None]) -> None:
    """Carry out the attempt and hand its outcome to ``ended``. Only a cancel from outside comes out."""
    error: BaseException | None = None
    outside: BaseException | None = None
    value: Any = None
    try:
        with run.scope:
            try:
                value = await run.executor.execute(run.context, run.task)
                if run.context.children is not None and _is_success(value):
                    await run.context.children_ended()
            except BaseException as caught:
                error = caught
                raise
    except BaseException as escaped:  # noqa: BLE001 - whatever user code raises, the worker lives
        outside = _from_outside(escaped)
    run.ended_at = trio.current_time()
    try:
        if error is None:
            run.outcome = _judge_value(run, value)
        elif outside is not None:
            run.outcome = _released(run, outside)
        else:
            run.outcome = _judge_error(run, error)
    except Exception as odd:  # noqa: BLE001 - methods of the user's values and errors run while they are judged
        reason = f"what the executor returned or raised cannot be told: {_text_of(odd)}"
        run.outcome = _failure(run, Status.FAILED, type(odd).__name__, reason)
    ended(run)
    if outside is not None:
        raise outside


def _from_outside(error: BaseException) -> BaseException | None:
    """The part of what escaped the run's scope that belongs to a scope around it.

    A Cancelled that user code has kept from a scope of its own and raises again belongs to nobody.
    """
    if trio.current_effective_deadline() > -math.inf:
        return None
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[0]
    return error if isinstance(error, trio.Cancelled) else None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _is_success(value: Any) -> bool:
    return not isinstance(value, TaskResult) or value.success


def _judge_value(run: Run, value: Any) -> Outcome:
    if isinstance(value, TaskResult):
        if not value.success:
            reason = _text_of(value.error) if value.error else "the executor reported a failure"
            return _failure(run, Status.FAILED, "TaskFailed", reason)
        value = value.data
    if value is None:
        return _outcome(run, Status.SUCCESS, "Task succeeded", result_json="null")
    try:
        text = _encode_json(value)
        size = len(text) if text.isascii() else len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        reason = f"the result is not JSON: {error}"
        return _failure(run, Status.FAILED, "InvalidResult", reason, retryable=False)
    if size > MAX_RESULT:
        reason = f"the result is too large: {size} bytes, {MAX_RESULT} at most"
        return _failure(run, Status.FAILED, "InvalidResult", reason, retryable=False)
    return _outcome(run, Status.SUCCESS, "Task succeeded", result_json=text)


def _judge_error(run: Run, error: BaseException) -> Outcome:
    leaves = list(_leaves(error))
    failures = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)]
    details = _details(error) if failures else None
    cancelled = next(filter(None, map(_cancel_behind, leaves)), None) if run.scope.cancel_called else None
    if cancelled is None:
        cause = next((leaf for leaf in leaves if isinstance(leaf, NonRetryable)), leaves[0])
        retryable = not isinstance(cause, NonRetryable)
        after = max((leaf.after for leaf in leaves if isinstance(leaf, RetryLater)), default=0.0)
        kind, reason = type(cause).__name__, _text_of(cause)
        return _failure(run, Status.FAILED, kind, reason, details, retryable=retryable, after=after)
    if cancelled.source == "deadline":
        reason = f"no end within its timeout of {run.task.timeout:g} s"
        return _failure(run, Status.TIMEOUT, "Timeout", reason, details)
    return _outcome(run, Status.CANCELLED, "Task cancelled", details=details)


def _cancel_behind(error: BaseException) -> trio.Cancelled | None:
    """The Cancelled that an error is, or that was under way when the error was raised, by a cleanup say."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, trio.Cancelled):
            return current
        seen.add(id(current))
        current = current.__context__
    return None


def _released(run: Run, error: BaseException) -> Outcome:
    cancelled = next((leaf for leaf in _leaves(error) if isinstance(leaf, trio.Cancelled)), None)
    reason = cancelled.reason if cancelled is not None else None
    if cancelled is not None and cancelled.source == "deadline":
        reason = "its lease was lost"
    return _outcome(run, Status.PENDING, f"Released by its worker: {reason or 'stopped'}")


def _failure(
    run: Run,
    status: Status,
    kind: str,
    message: str,
    details: str | None = None,
    *,
    retryable: bool = True,
    after: float = 0.0,
) -> Outcome:
    message = _printable(message or kind, MAX_ERROR)
    again = retryable and run.task.retry_count < run.task.max_retry
    return _outcome(
        run,
        status,
        f"{kind}: {message}" if kind not in message else message,
        error_json=_encode_json({"type": kind, "message": message, "retryable": retryable}),
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
    )


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a __str__ of the user's
        return f"({type(value).__name__} without a readable message)"


def _details(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - formatting calls methods of the user's errors
        text = _text_of(error)
    return _printable(text, MAX_DETAILS)


def _printable(text: str, limit: int) -> str:
    """Text that any store takes: no lone surrogates, no NUL, not endless; a cut text keeps its end."""
    if len(text) > limit:
        text = "…" + text[1 - limit :] if limit == MAX_DETAILS else text[: limit - 1] + "…"
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
