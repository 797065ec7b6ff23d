"""The thread lane: blocking code in a thread of its own.

The run waits for the thread. A cancel is seen by the thread at ``ctx.check_cancelled()`` and at each verb; one
that looks at neither keeps its slot, and its row stays PROCESSING with the cancel requested, until it ends.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import trio

from atm.context import MAX_OUTPUT, CancelReason, CommandResult, Context
from atm.executor import Executor, LaneExecutor
from atm.executors.plain import PlainChild, PlainContext, RunCancelled
from atm.task import Task

T = TypeVar("T")


class ThreadContext(PlainContext):
    """The twin of ``ctx`` for the thread that carries out its run."""

    def __init__(self, ctx: Context) -> None:
        deadline = time.monotonic() + ctx.deadline - trio.current_time()
        super().__init__(ctx.task_id, ctx.attempt, ctx.worker_id, deadline)
        self.thread: int | None = None
        self.over = False
        self._seen = False
        self._ctx = ctx
        self._token = trio.lowlevel.current_trio_token()
        self._cleaning = False

    @property
    def cancel_reason(self) -> CancelReason | None:
        return trio.from_thread.run_sync(lambda: self._ctx.cancel_reason, trio_token=self._token)

    @property
    def is_cancelled(self) -> bool:
        if not self._seen and not self._in_own_thread:
            self._seen = self.cancel_reason is not None
        elif not self._seen:
            try:
                trio.from_thread.check_cancelled()
            except trio.Cancelled:
                self._seen = True
        return self._seen

    def check_cancelled(self) -> None:
        if self._cleaning:
            self._run(trio.lowlevel.checkpoint)
        elif self._in_own_thread:
            trio.from_thread.check_cancelled()
        elif self.is_cancelled:
            raise RunCancelled

    def progress(self, fraction: float, message: str | None = None) -> None:
        self._run(partial(self._ctx.progress, fraction, message))

    def log(self, message: str) -> None:
        self._run(partial(self._ctx.log, message))

    @contextlib.contextmanager
    def cleanup(self) -> Iterator[None]:
        before, self._cleaning = self._cleaning, True
        try:
            yield
        finally:
            self._cleaning = before

    def run_process(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        input: bytes | None = None,  # noqa: A002
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        check: bool = True,
        limit: int = MAX_OUTPUT,
    ) -> CommandResult:
        verb = partial(self._ctx.run_process, argv, input=input, env=env, cwd=cwd, check=check, limit=limit)
        return self._run(verb)

    def spawn(
        self,
        task_type: str,
        payload: Mapping[str, Any] | None = None,
        *,
        priority: int | None = None,
        timeout: float | None = None,
        max_retry: int | None = None,
    ) -> PlainChild:
        how = {"priority": priority, "timeout": timeout, "max_retry": max_retry}
        child = self._run(partial(self._ctx.spawn, task_type, payload, **how))  # type: ignore[arg-type]
        return PlainChild(child.task_id, task_type, child.ordinal, lambda: self._run(child.wait))

    @property
    def _in_own_thread(self) -> bool:
        return threading.get_ident() == self.thread

    def _run(self, verb: Callable[[], Awaitable[T]]) -> T:
        """Carry out the verb in the run's own task, where a cancel reaches it."""
        if self.over:
            raise RuntimeError("the run has ended: its ctx is of no use any more")
        if self._in_own_thread:
            return trio.from_thread.run(self._shielded if self._cleaning else self._as_it_is, verb)
        return trio.from_thread.run(self._as_it_is, verb, trio_token=self._token)

    async def _as_it_is(self, verb: Callable[[], Awaitable[T]]) -> T:
        return await verb()

    async def _shielded(self, verb: Callable[[], Awaitable[T]]) -> T:
        result: list[T] = []
        with self._ctx.cleanup():
            result.append(await verb())
        if not result:
            # The budget is spent, and the run's cancel is no longer held off.
            await trio.lowlevel.checkpoint()
            raise TimeoutError("the cleanup budget is spent")
        return result[0]


class ThreadExecutor(LaneExecutor):
    """Runs an executor's plain ``execute`` in a thread."""

    def __init__(self, inner: Executor) -> None:
        super().__init__(inner)
        self._work = inner.execute
        # The slots bound the threads. A limiter would be held by those that wait for a task of their own.
        self._limiter = trio.CapacityLimiter(math.inf)

    async def execute(self, ctx: Context, task: Task) -> Any:
        plain = ThreadContext(ctx)
        ctx.whereabouts = partial(_whereabouts, plain, self._work)
        try:
            return await trio.to_thread.run_sync(self._in_thread, plain, task, limiter=self._limiter)
        except RunCancelled:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise
        finally:
            plain.over = True
            if plain.thread is not None and ctx.is_cancelled:
                ctx.count_reaped("threads")

    def _in_thread(self, plain: ThreadContext, task: Task) -> Any:
        plain.thread = threading.get_ident()
        return self._work(plain, task)  # type: ignore[arg-type]


def _whereabouts(plain: ThreadContext, work: Callable[..., Any]) -> str:
    """File, line and function where the thread is, and the place in the task's own file that led there."""
    frame = None if plain.thread is None else sys._current_frames().get(plain.thread)
    if frame is None:
        return "a thread that has not begun, or has just ended"
    own = getattr(getattr(work, "__code__", None), "co_filename", None)
    told = _place(frame)
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_filename != own:
        caller = caller.f_back
    return told if caller is None or caller is frame else f"{told}, called from {_place(caller)}"


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
