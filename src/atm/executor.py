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
import inspect
import json
import math
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar, get_args

import msgspec
import trio

from atm.errors import ChildFailed, ConfigError, NonRetryable, StoreUnavailable
from atm.store import NewTask, Note
from atm.task import QUEUES, Status, Task, is_task_type, new_task_id

PROGRESS_INTERVAL = 0.1
"""Seconds between two writes of one run's progress; what comes faster is written with the next one, or the end."""

MAX_LOG_MESSAGE = 4096
"""Characters of one ``ctx.log`` message or progress message; the rest is cut."""

MAX_RESULT = 1024 * 1024
"""Bytes of a result's JSON text."""

MAX_OUTPUT = 1024 * 1024
"""Bytes that are kept of each of a command's two streams, where nothing else is said."""

Lane = Literal["async", "thread", "process"]
CancelReason = Literal["cancelled", "timeout", "shutdown"]


MAX_TIMEOUT, MAX_RETRY, MAX_PAYLOAD = 604_800, 100, 1024 * 1024
"""Of a child, as of any task: seconds, retries, bytes."""

_encode_payload = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


class TaskResult(msgspec.Struct, frozen=True):
    """What an attempt came to. ``data`` is any JSON value; ``success=False`` fails the attempt, retryable."""

    success: bool
    data: Any = None
    error: str | None = None


class CommandResult(msgspec.Struct, frozen=True):
    """What a command came to.

    ``returncode`` is negative for the signal that ended it. ``truncated`` says that it wrote more than the limit,
    and that the rest was dropped.
    """

    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


class NoteSink(Protocol):
    async def __call__(self, note: Note) -> None: ...


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


class Commands(Protocol):
    """Runs the commands of ``Context.run_process``, whose docstring is the contract."""

    async def __call__(
        self,
        ctx: Context,
        argv: Sequence[str | os.PathLike[str]],
        *,
        input: bytes | None,  # noqa: A002 - as subprocess calls it
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        check: bool,
        limit: int,
    ) -> CommandResult: ...


class Context:
    """What an executor knows of its run, and its way to report back.

    Attributes:
        task_id: the task's id.
        attempt: the fencing token, 1 at the first attempt; an external system that remembers the highest
            attempt seen can refuse what an older one sends.
        worker_id: who runs it.
        unsaved_progress: progress reported too soon after the last write; saved with the outcome.
        children: those that this attempt has started or found; None before the first.
        slot_lent: whether the run has given its slot to others while it waits for a child.
        whereabouts: tells where the run's thread or process is now; None where it runs on the loop.
    """

    __slots__ = (
        "_around",
        "_cancel_reason",
        "_cleanup_budget",
        "_cleanup_until",
        "_commands",
        "_family",
        "_note",
        "_priority",
        "_progress_saved_at",
        "_reaped",
        "_scope",
        "attempt",
        "children",
        "slot_lent",
        "task_id",
        "unsaved_progress",
        "whereabouts",
        "worker_id",
    )

    def __init__(
        self,
        task: Task,
        worker_id: str,
        scope: trio.CancelScope,
        note: NoteSink,
        cleanup_budget: float,
        *,
        family: Family | None = None,
        around: tuple[trio.CancelScope, ...] = (),
        commands: Commands | None = None,
    ) -> None:
        """``around``: the scopes around the run's own; the end of any of them is a shutdown to the run."""
        self.task_id = task.task_id
        self.attempt = task.attempt
        self.worker_id = worker_id
        self.unsaved_progress: str | None = None
        self.children: list[Child] | None = None
        self.slot_lent = False
        self._family = family
        self._priority = task.priority
        self._scope = scope
        self._note = note
        self._cleanup_budget = cleanup_budget
        self._cleanup_until: float | None = None
        self._progress_saved_at = -math.inf
        self._around = around
        self._commands = commands
        self._cancel_reason: CancelReason | None = None
        self._reaped: dict[str, int] | None = None
        self.whereabouts: Callable[[], str] | None = None

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

    @property
    def is_cancelled(self) -> bool:
        """Whether the run is to end: a user's cancel, its timeout, or the node's shutdown."""
        return self.cancel_reason is not None

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why the run is to end: "cancelled" (by a user), "timeout", "shutdown" (it will run again), or None.

        Read from the scopes themselves; of a cancel and the timeout the one that came first.
        """
        if self._cancel_reason is None:
            if self._scope.cancel_called:
                timed_out = trio.current_time() >= self._scope.deadline
                self._cancel_reason = "timeout" if timed_out else "cancelled"
            elif any(scope.cancel_called for scope in self._around):
                self._cancel_reason = "shutdown"
        return self._cancel_reason

    def note_cancel(self, reason: CancelReason) -> None:
        """The run's scope is about to be cancelled, and this is why. For those who carry out runs."""
        if self.cancel_reason is None:
            self._cancel_reason = reason

    @property
    def reaped(self) -> Mapping[str, int]:
        """What had to be ended because the run was cancelled: how many "threads", "processes", "children"."""
        return self._reaped or {}

    def count_reaped(self, kind: str, count: int = 1) -> None:
        """Something of the run has been ended because of its cancel. For those who carry out runs."""
        if count:
            reaped = self._reaped = self._reaped or {}
            reaped[kind] = reaped.get(kind, 0) + count

    async def spawn(
        self,
        task_type: str,
        payload: Mapping[str, Any] | None = None,
        *,
        priority: int | None = None,
        timeout: float | None = None,
        max_retry: int | None = None,
    ) -> Child:
        """Start a child task. Returns when it is durable.

        A later attempt that comes to the same spawn, counted from 0 in each attempt, gets the same child: it goes
        on running, or its success counts; one that ended without success is tried again. The child ends no later
        than this run, and this task ends after all its children.

        Args:
            payload: an object of JSON values; {} by default.
            priority: 1, 0 or -1; by default one above this task's own, so that what has begun is finished first.
            timeout: seconds an attempt; by default the type's. This run's deadline ends it in any case.
            max_retry: retries; by default the type's.
        Raises: SpawnRefused; NonRetryable for arguments that no task can have.
        """
        if self._family is None:
            raise RuntimeError("this context starts no children")
        if priority is None:
            priority = min(self._priority + 1, max(QUEUES))
        task = _child_task(task_type, payload, priority, timeout, max_retry)
        if self.children is None:
            self.children = []
        ordinal = len(self.children)
        # Its place is taken before anything is waited for: runs may spawn from several tasks of their nursery.
        child = Child(self, self._family, task.task_id, task_type, ordinal)
        self.children.append(child)
        started = False
        try:
            child.task_id = await self._family.start(self, ordinal, task)
            started = True
        finally:
            if not started:
                child.task_id = ""
        return child

    async def children_ended(self) -> None:
        """Return when all children that this attempt has started have ended, successfully or not."""
        for child in self.children or ():
            if child.task_id:  # else its start has failed
                await child.wait()

    async def run_process(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        input: bytes | None = None,  # noqa: A002 - as subprocess calls it
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        check: bool = True,
        limit: int = MAX_OUTPUT,
    ) -> CommandResult:
        """Run a command to its end. No process of it lives when this returns or raises.

        When the run is cancelled all its processes get SIGTERM, and after the cleanup budget SIGKILL. What the
        command leaves behind when it ends by itself, daemons too, is killed at once.

        Args:
            argv: the program, found on the PATH, and its arguments; no shell looks at them.
            input: what it reads; None: nothing.
            env: its whole environment; None: the node's, without the node's settings.
            check: raise when it ends with another code than 0.
            limit: bytes that are kept of each of its two streams.
        Raises: CommandFailed; OSError when it cannot be started; TypeError, ValueError for what is no command.
        """
        if self._commands is None:
            raise RuntimeError("this context runs no commands")
        return await self._commands(self, argv, input=input, env=env, cwd=cwd, check=check, limit=limit)

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
        _ = self.cancel_reason  # known from now on
        if self._cleanup_until is None:
            self._cleanup_until = now + self._cleanup_budget
        return trio.CancelScope(shield=True, deadline=self._cleanup_until)


def _child_task(
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


def _printable(message: str) -> str:
    return message[:MAX_LOG_MESSAGE].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


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


TaskFunction = Callable[[Any, Task], Any]
F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__atm_executes__"


class FunctionExecutor(Executor):
    """A function that serves as an executor."""

    def __init__(self, function: TaskFunction, task_types: tuple[str, ...], lane: Lane = "async") -> None:
        self.supported_task_types = task_types
        self.lane = lane  # type: ignore[misc]
        # The instance's attribute spares each attempt a call through a method.
        self.execute = function  # type: ignore[method-assign,assignment]


def executes(*task_types: str, lane: Lane | None = None) -> Callable[[F], F]:
    """Mark a function as the executor of these task types; it is returned unchanged.

    Args:
        lane: "async", the default of an ``async def``; "thread", the default of a plain ``def``; or "process".
    Raises: ConfigError for what can be no task type, and for a function that does not fit its lane.
    """
    _check_types("@executes", task_types)

    def mark(function: F) -> F:
        where = f"@executes on {getattr(function, '__qualname__', repr(function))}"
        if not inspect.isfunction(function):
            raise ConfigError(where, "only functions can be marked: def or async def")
        chosen = lane or ("async" if inspect.iscoroutinefunction(function) else "thread")
        _check_lane(where, chosen, function)
        setattr(function, _MARK, (task_types, chosen))
        return function

    return mark


def _check_lane(where: str, lane: object, function: Callable[..., Any]) -> None:
    if lane not in get_args(Lane):
        raise ConfigError(where, f"there is no lane {lane!r}: async, thread or process")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(where, "a generator cannot carry out a task: return the result")
    if lane == "async" and inspect.isroutine(function) and not inspect.iscoroutinefunction(function):
        raise ConfigError(where, "lane 'async' takes an async def; a plain def runs in lane 'thread' or 'process'")
    if lane != "async" and inspect.iscoroutinefunction(function):
        raise ConfigError(where, f"lane {lane!r} takes a plain def; an async def runs in lane 'async'")


def _check_sendable(where: str, work: object) -> None:
    try:
        pickle.dumps(work)
    except Exception as error:
        reason = f"lane 'process' cannot take it to another process: {type(error).__name__}: {error}"
        raise ConfigError(where, reason) from error


def _check_types(where: str, task_types: object) -> None:
    if not isinstance(task_types, tuple) or not task_types:
        raise ConfigError(where, 'name the task types, as in ("resize_image",)')
    for name in task_types:
        if not is_task_type(name):
            raise ConfigError(where, f"{name!r} is no task type: 1 to 128 letters, digits or any of _ . : -")


def marked_executor(value: object) -> Executor | None:
    """The executor of a function that ``executes`` has marked, None for anything else."""
    mark = getattr(value, _MARK, None) if inspect.isfunction(value) else None
    return None if mark is None else FunctionExecutor(value, *mark)  # type: ignore[arg-type]


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
        _check_lane(f"executor {name_of(found)}", found.lane, found.execute)
        if found.lane == "process":
            _check_sendable(f"executor {name_of(found)}", found.execute)
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
