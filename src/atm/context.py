"""The context of a run: what an executor knows of it, and how it reports back.

Whoever carries out runs gives each a context, and to that what its verbs lead to: a sink of notes, the starting of
children (``Family``), the running of commands (``Commands``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
import trio

from atm.children import Child, Family, child_task
from atm.errors import StoreUnavailable
from atm.store import Note
from atm.task import QUEUES, Task

PROGRESS_INTERVAL = 0.1
"""Seconds between two writes of one run's progress; what comes faster is written with the next one, or the end."""

PROGRESS_LOG_INTERVAL = 10.0
"""Seconds between two rows of one run's log that tell of its progress."""

MAX_LOG_MESSAGE = 4096
"""Characters of one ``ctx.log`` message or progress message; the rest is cut."""

MAX_OUTPUT = 1024 * 1024
"""Bytes that are kept of each of a command's two streams, where nothing else is said."""

CancelReason = Literal["cancelled", "timeout", "shutdown"]


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
        "_progress_logged_at",
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
        self._progress_logged_at = -math.inf
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
        task = child_task(task_type, payload, priority, timeout, max_retry)
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
        """Tell how far the work has come; GET shows it, and the task's log every ten seconds at the most.

        ``fraction`` is 0 to 1. Raises ValueError outside.
        """
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
        row = None
        if text is not None and now - self._progress_logged_at >= PROGRESS_LOG_INTERVAL:
            self._progress_logged_at = now
            row = _printable(f"{fraction:.0%}: {text}")
        try:
            await self._note(Note(self.task_id, self.attempt, self.worker_id, row, progress_json=progress))
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


def _printable(message: str) -> str:
    return message[:MAX_LOG_MESSAGE].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
