"""The children of a run: what may be asked of them, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import trio

from atm.errors import ChildFailed, NonRetryable
from atm.store import NewTask
from atm.task import QUEUES, Status, Task, is_task_type, new_task_id

if TYPE_CHECKING:
    from atm.context import Context

MAX_TIMEOUT, MAX_RETRY, MAX_PAYLOAD = 604_800, 100, 1024 * 1024
"""Of a child, as of any task: seconds, retries, bytes."""

_encode_payload = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


class Family(Protocol):
    """Starts the children of ``Context.spawn``, and waits for their ends."""

    async def start(self, ctx: Context, ordinal: int, task: NewTask) -> str:
        """The id of the child of this ordinal: a new one, or that of a former attempt. Raises SpawnRefused."""
        ...

    async def ended(self, ctx: Context, task_id: str) -> Task:
        """The child, once it has ended; the run's slot is lent meanwhile."""
        ...


class Child:
    """A task that this run has started, or found again.

    Attributes:
        task_id: the child's id.
        ordinal: how many children the attempt had started before it.
    """

    __slots__ = ("_context", "_family", "_task", "ordinal", "task_id", "task_type")

    def __init__(self, ctx: Context, family: Family, task_id: str, task_type: str, ordinal: int) -> None:
        self.task_id = task_id
        self.task_type = task_type
        self.ordinal = ordinal
        self._context = ctx
        self._family = family
        self._task: Task | None = None

    async def wait(self) -> Task:
        """The child in the state in which it has ended. Meanwhile the run's slot serves other tasks."""
        if self._task is None:
            self._task = await self._family.ended(self._context, self.task_id)
        else:
            await trio.lowlevel.checkpoint()
        return self._task

    async def result(self) -> Any:
        """The child's result, once it has ended. Raises ChildFailed."""
        return result_of(await self.wait())


def result_of(child: Task) -> Any:
    """What a child that has ended came to. Raises ChildFailed."""
    if child.status is not Status.SUCCESS:
        error = None if child.error_json is None else json.loads(child.error_json)
        raise ChildFailed(child.task_id, child.task_type, child.status, error)
    return None if child.result_json is None else json.loads(child.result_json)


def child_task(
    task_type: str, payload: Mapping[str, Any] | None, priority: int, timeout: float | None, max_retry: int | None
) -> NewTask:
    """Checked as the API checks a task. Raises NonRetryable."""
    if not is_task_type(task_type):
        raise NonRetryable(f"spawn: {task_type!r} is no task type: 1 to 128 letters, digits or any of _ . : -")
    if priority not in QUEUES:
        raise NonRetryable(f"spawn: priority must be 1 (high), 0 (normal) or -1 (low), not {priority!r}")
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT:
        raise NonRetryable(f"spawn: timeout must be above 0 and at most {MAX_TIMEOUT} seconds, not {timeout!r}")
    if max_retry is not None and (not isinstance(max_retry, int) or not 0 <= max_retry <= MAX_RETRY):
        raise NonRetryable(f"spawn: max_retry must be an integer from 0 to {MAX_RETRY}, not {max_retry!r}")
    try:
        text = _encode_payload(dict(payload or {}))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise NonRetryable(f"spawn: the payload is no JSON object: {error}") from error
    if size > MAX_PAYLOAD:
        raise NonRetryable(f"spawn: the payload is too large: {size} bytes, {MAX_PAYLOAD} at most")
    return NewTask(
        task_id=new_task_id(),
        task_type=task_type,
        payload_json=text,
        priority=priority,
        timeout=timeout,
        max_retry=max_retry,
    )
