"""CONTRACT: executors, which carry out the work of a task.

An executor is plain Trio code. Its run sits in one cancel scope: a user's cancel, the task's timeout and the
node's shutdown all arrive as ``trio.Cancelled`` at the next checkpoint. The task becomes CANCELLED or TIMEOUT
only after ``execute`` has ended.

    class EmailExecutor(Executor):
        type = "email"
        supported_task_types = ("send_email",)

        async def execute(self, ctx: Context, task: Task) -> TaskResult:
            ...

    @executes("resize_image")
    async def resize(ctx, task):
        return {"width": 64}

Blocking code runs in another lane: a plain ``def`` in a thread, or with ``lane="process"`` in a process that is
killed on cancel. Its ``ctx`` has the same verbs without ``await``.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import msgspec

from atm.context import Context
from atm.task import Task

MAX_RESULT = 1024 * 1024
"""Bytes of a result's JSON text."""

Lane = Literal["async", "thread", "process"]
TaskFunction = Callable[[Any, Task], Any]


class TaskResult(msgspec.Struct, frozen=True):
    """What an attempt came to. ``data`` is any JSON value; ``success=False`` fails the attempt, retryable."""

    success: bool
    data: Any = None
    error: str | None = None


class Executor:
    """Base class of executors: opened with the worker, closed with it, run once an attempt.

    Attributes:
        type: the executor's name.
        supported_task_types: the task types it runs.
        lane: where it runs: "async" is Trio code on the node's loop; "thread" and "process" take a plain
            ``def execute``.
    """

    type: ClassVar[str] = ""
    supported_task_types: tuple[str, ...] = ()
    lane: ClassVar[Lane] = "async"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: builtins.type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    async def execute(self, ctx: Context, task: Task) -> Any:
        """Carry out one attempt: return a TaskResult or any JSON value, or raise."""
        raise NotImplementedError


class FunctionExecutor(Executor):
    """A function that serves as an executor."""

    def __init__(self, function: TaskFunction, task_types: tuple[str, ...], lane: Lane = "async") -> None:
        self.supported_task_types = task_types
        self.lane = lane  # type: ignore[misc]
        # The instance's attribute spares each attempt a call through a method.
        self.execute = function  # type: ignore[method-assign,assignment]


class LaneExecutor(Executor):
    """Carries out another executor's work somewhere else than on the loop, and is opened and closed with it."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.type = inner.type  # type: ignore[misc]
        self.lane = inner.lane  # type: ignore[misc]
        self.supported_task_types = inner.supported_task_types

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: builtins.type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.inner.__aexit__(kind, error, traceback)


def name_of(executor: Executor) -> str:
    """What to call it in messages: the function's name, or the class's."""
    if isinstance(executor, LaneExecutor):
        return name_of(executor.inner)
    if isinstance(executor, FunctionExecutor):
        return getattr(executor.execute, "__qualname__", repr(executor.execute))
    return type(executor).__qualname__
