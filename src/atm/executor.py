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
"""

from __future__ import annotations

import builtins
import inspect
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, TypeVar

import msgspec
import trio

from atm.errors import ConfigError, StoreUnavailable
from atm.store import Note
from atm.task import Task, is_task_type

PROGRESS_INTERVAL = 0.1
"""Seconds between two writes of one run's progress; what comes faster is written with the next one, or the end."""

MAX_LOG_MESSAGE = 4096
"""Characters of one ``ctx.log`` message or progress message; the rest is cut."""


class TaskResult(msgspec.Struct, frozen=True):
    """What an attempt came to. ``data`` is any JSON value; ``success=False`` fails the attempt, retryable."""

    success: bool
    data: Any = None
    error: str | None = None


class NoteSink(Protocol):
    async def __call__(self, note: Note) -> None: ...


class Context:
    """What an executor knows of its run, and its way to report back.

    Attributes:
        task_id: the task's id.
        attempt: the fencing token, 1 at the first attempt; an external system that remembers the highest
            attempt seen can refuse what an older one sends.
        worker_id: who runs it.
        unsaved_progress: progress reported too soon after the last write; saved with the outcome.
    """

    __slots__ = (
        "_cleanup_budget",
        "_cleanup_until",
        "_note",
        "_progress_saved_at",
        "_scope",
        "attempt",
        "task_id",
        "unsaved_progress",
        "worker_id",
    )

    def __init__(
        self, task: Task, worker_id: str, scope: trio.CancelScope, note: NoteSink, cleanup_budget: float
    ) -> None:
        self.task_id = task.task_id
        self.attempt = task.attempt
        self.worker_id = worker_id
        self.unsaved_progress: str | None = None
        self._scope = scope
        self._note = note
        self._cleanup_budget = cleanup_budget
        self._cleanup_until: float | None = None
        self._progress_saved_at = -math.inf

    @property
    def deadline(self) -> float:
        """When the attempt times out, in the terms of ``trio.current_time()``."""
        return self._scope.deadline

    @property
    def time_left(self) -> float:
        """Seconds until the attempt times out, 0 when it has."""
        return max(0.0, self._scope.deadline - trio.current_time())

    @property
    def idempotency_key(self) -> str:
        """The same at every attempt of the task, for external systems that recognise a repetition."""
        return self.task_id

    async def progress(self, fraction: float, message: str | None = None) -> None:
        """Tell how far the work has come; GET shows it. ``fraction`` is 0 to 1. Raises ValueError outside."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress fraction must be between 0 and 1, not {fraction}")
        text = None if message is None else _printable(message)
        self.unsaved_progress = msgspec.json.encode({"fraction": fraction, "message": text}).decode()
        now = trio.current_time()
        if now - self._progress_saved_at < PROGRESS_INTERVAL:
            await trio.lowlevel.checkpoint()
            return
        self._progress_saved_at = now
        progress, self.unsaved_progress = self.unsaved_progress, None
        try:
            await self._note(Note(self.task_id, self.attempt, self.worker_id, progress_json=progress))
        except StoreUnavailable:
            self.unsaved_progress = self.unsaved_progress or progress

    async def log(self, message: str) -> None:
        """Add an INFO row to the task's log. Returns when it is durable."""
        await self._note(Note(self.task_id, self.attempt, self.worker_id, message=_printable(message)))

    def cleanup(self) -> trio.CancelScope:
        """A scope in which a cancelled run may still await, for the cleanup budget (5 s by default) in all.

        Use it as ``with ctx.cleanup(): await connection.send(b"QUIT")``. When the budget is spent the body
        is cancelled after all.
        """
        now = trio.current_time()
        if trio.current_effective_deadline() > now:
            return trio.CancelScope(shield=True, deadline=now + self._cleanup_budget)
        if self._cleanup_until is None:
            self._cleanup_until = now + self._cleanup_budget
        return trio.CancelScope(shield=True, deadline=self._cleanup_until)


def _printable(message: str) -> str:
    return message[:MAX_LOG_MESSAGE].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


class Executor:
    """Base class of executors: opened with the worker, closed with it, run once an attempt.

    Attributes:
        type: the executor's name.
        supported_task_types: the task types it runs.
        lane: where it runs; "async" is Trio code on the node's loop.
    """

    type: ClassVar[str] = ""
    supported_task_types: tuple[str, ...] = ()
    lane: ClassVar[str] = "async"

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


TaskFunction = Callable[[Context, Task], Coroutine[Any, Any, Any]]
F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__atm_executes__"


class FunctionExecutor(Executor):
    """An async function that serves as an executor."""

    def __init__(self, function: TaskFunction, task_types: tuple[str, ...]) -> None:
        self.supported_task_types = task_types
        # The instance's attribute spares each attempt a call through a method.
        self.execute = function  # type: ignore[method-assign,assignment]


def executes(*task_types: str, lane: str | None = None) -> Callable[[F], F]:
    """Mark an async function as the executor of these task types; it is returned unchanged.

    Raises: ConfigError for what can be no task type, or a lane that this version does not have.
    """
    _check_types("@executes", task_types)

    def mark(function: F) -> F:
        where = f"@executes on {getattr(function, '__qualname__', repr(function))}"
        if lane not in (None, "async") or not inspect.iscoroutinefunction(function):
            raise ConfigError(where, "only async functions (lane 'async') are supported yet")
        setattr(function, _MARK, task_types)
        return function

    return mark


def _check_types(where: str, task_types: object) -> None:
    if not isinstance(task_types, tuple) or not task_types:
        raise ConfigError(where, 'name the task types, as in ("resize_image",)')
    for name in task_types:
        if not is_task_type(name):
            raise ConfigError(where, f"{name!r} is no task type: 1 to 128 letters, digits or any of _ . : -")


def marked_executor(value: object) -> Executor | None:
    """The executor of a function that ``executes`` has marked, None for anything else."""
    if not inspect.iscoroutinefunction(value):
        return None
    task_types = getattr(value, _MARK, None)
    return None if task_types is None else FunctionExecutor(value, task_types)


class Registry:
    """Which executor runs which task type."""

    def __init__(self) -> None:
        self._by_type: dict[str, Executor] = {}
        self._shipped: set[str] = set()

    def register(self, executor: Executor | Callable[..., Any], *, shipped: bool = False) -> None:
        """Add an executor, or a function marked by ``executes``.

        One of the user's takes the place of a shipped one for the same type.
        Raises: ConfigError when it is not an executor, or two of the user's claim one type.
        """
        found = executor if isinstance(executor, Executor) else marked_executor(executor)
        if found is None:
            raise ConfigError("executors", f"{executor!r} is neither an Executor nor marked by @executes")
        _check_types(f"supported_task_types of {name_of(found)}", found.supported_task_types)
        if found.lane != "async":
            raise ConfigError("executors", f"{name_of(found)} has lane {found.lane!r}; only 'async' exists yet")
        for task_type in found.supported_task_types:
            owner = self._by_type.get(task_type)
            if owner is not None and task_type not in self._shipped and not _same(owner, found):
                both = f"{name_of(owner)} and {name_of(found)}"
                raise ConfigError("executors", f"task type {task_type!r} is claimed by {both}")
            self._by_type[task_type] = found
            (self._shipped.add if shipped else self._shipped.discard)(task_type)

    def restrict(self, task_types: Iterable[str]) -> None:
        """Keep only these types. Raises ConfigError for one that no executor supports."""
        wanted = set(task_types)
        missing = sorted(wanted - self._by_type.keys())
        if missing:
            raise ConfigError("worker.supported_types", f"no executor supports {', '.join(missing)}")
        self._by_type = {name: self._by_type[name] for name in wanted}

    @property
    def by_type(self) -> Mapping[str, Executor]:
        return self._by_type

    def executors(self) -> list[Executor]:
        """Each executor once."""
        return list({id(executor): executor for executor in self._by_type.values()}.values())


def _same(one: Executor, other: Executor) -> bool:
    """A function listed twice, under an alias say, is one executor."""
    functions = isinstance(one, FunctionExecutor) and isinstance(other, FunctionExecutor)
    return one is other or (functions and one.execute is other.execute)


def name_of(executor: Executor) -> str:
    """What to call it in messages: the function's name, or the class's."""
    if isinstance(executor, FunctionExecutor):
        return getattr(executor.execute, "__qualname__", repr(executor.execute))
    return type(executor).__qualname__
