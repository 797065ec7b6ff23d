"""The process lane: code that computes, or that cannot be trusted to end, in a process that is killed on cancel.

A process serves one run at a time, and after it the next one: a start of Python costs more than many a task. Each
is under a reaper (``guarded.py``), so that nothing that the run has started lives on, not even without the node.
"""

from __future__ import annotations

import builtins
import json
import multiprocessing.spawn
import os
import pickle
import socket
import sys
from types import TracebackType
from typing import Any

import trio

from atm.context import Context
from atm.errors import NonRetryable, RetryLater, WorkerDied, group_of
from atm.executor import Executor, LaneExecutor, TaskResult, name_of
from atm.executors.guarded import Guarded, Guards
from atm.executors.process_talk import (
    LENGTH,
    MAX_FRAME,
    Answer,
    Await,
    Begin,
    Begun,
    Command,
    Done,
    Failed,
    Log,
    Progress,
    Question,
    Report,
    Setup,
    Spawn,
    Told,
    frame,
    heard,
)
from atm.task import Task

START = "import sys; sys.path[:] = {path!r}; from atm.executors.process_child import main; main({descriptor})"

LAST_WORDS = 1.0
"""Seconds in which a process that talks no more has to end, for its exit code to be told."""

NOT_SENT = ("authkey", "start_method", "log_to_stderr", "log_level", "name")
"""Of what ``multiprocessing`` would tell a process of its own."""


class Child:
    """A process that carries out runs, one at a time.

    Attributes:
        begun: it has begun with the run that it was given last.
        ended_as: the code with which it has ended by itself; None where it had to be ended.
    """

    def __init__(self, guarded: Guarded, sock: socket.socket) -> None:
        self.guarded = guarded
        self.begun = False
        self.ended_as: int | None = None
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    async def carry_out(self, ctx: Context, begin: Begin, setup: Setup | None) -> Report | None:
        """What came of the run; None when the process has ended before it. ``setup``: it is a new process."""
        self.begun = False
        report: Report | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_exit, nursery.cancel_scope)
            report = await self._converse(ctx, begin, setup)
            nursery.cancel_scope.cancel()
        if report is None:
            with trio.move_on_after(LAST_WORDS):  # its socket ends before it does
                self.ended_as = await self.guarded.until_exit()
        return report

    async def _until_exit(self, talk: trio.CancelScope) -> None:
        # Its end of the socket may live on in a process that it has forked.
        await self.guarded.until_exit()
        talk.cancel()

    async def _converse(self, ctx: Context, begin: Begin, setup: Setup | None) -> Report | None:
        try:
            if setup is not None:
                await self._say(setup)
            await self._say(begin)
            while (message := await self._hear()) is not None:
                match message:
                    case Begun():
                        self.begun = True
                    case Done() | Failed():
                        return message
                    case _:
                        await self._say(await _answer(ctx, message))
        except trio.BrokenResourceError:
            return None
        return None

    async def _say(self, message: Setup | Begin | Answer) -> None:
        try:
            data = frame(pickle.dumps(message))
        except Exception as error:  # noqa: BLE001 - values of the user's
            data = frame(pickle.dumps(Answer(error=RuntimeError(f"the answer cannot be sent: {error}"))))
        await self._stream.send_all(data)

    async def _hear(self) -> Begun | Question | Report | None:
        """None when there is no more to hear, or no sense in it."""
        head = await self._exactly(LENGTH.size)
        if head is None:
            return None
        (length,) = LENGTH.unpack(head)
        data = await self._exactly(length) if length <= MAX_FRAME else None
        try:
            return None if data is None else heard(data)
        except ValueError:
            return None

    async def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            part = await self._stream.receive_some(min(size - len(data), 1 << 20))
            if not part:
                return None
            data += part
        return bytes(data)

    async def end(self) -> int:
        """Kill it with all that it has started; how many processes that were."""
        try:
            return await self.guarded.kill()
        finally:
            self._stream.socket.close()


class ProcessExecutor(LaneExecutor):
    """Runs an executor's plain ``execute`` in processes.

    Args:
        idle: how many processes are kept for later runs at the most.
    """

    def __init__(self, inner: Executor, guards: Guards, idle: int = os.cpu_count() or 1) -> None:
        super().__init__(inner)
        self._guards = guards
        self._most_idle = idle
        self._idle: list[Child] = []
        self._work = pickle.dumps(inner.execute)

    async def __aexit__(
        self,
        kind: builtins.type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._most_idle = 0
        while self._idle:
            await self._idle.pop().end()
        await super().__aexit__(kind, error, traceback)

    async def execute(self, ctx: Context, task: Task) -> Any:
        while True:
            setup = None if self._idle else self._setup()
            child = await self._start() if setup else self._idle.pop()
            report = await self._run_in(child, ctx, task, setup)
            if report is not None:
                return _value_of(report)
            if child.begun or setup:
                raise WorkerDied(_how(child.ended_as))
            # It had died while it was idle: the task has not been seen by anybody.

    async def _run_in(self, child: Child, ctx: Context, task: Task, setup: Setup | None) -> Report | None:
        ctx.whereabouts = lambda: f"process {child.guarded.pid}"
        report: Report | None = None
        keep = False
        try:
            report = await child.carry_out(ctx, Begin(task, ctx.worker_id, ctx.time_left), setup)
            if report is not None and not report.threads:
                await child.guarded.sweep()
                keep = child.guarded.returncode is None and len(self._idle) < self._most_idle
        finally:
            if not keep:
                ended = await child.end()
                if ctx.is_cancelled:
                    ctx.count_reaped("processes", ended)
        if keep:
            self._idle.append(child)
        return report

    async def _start(self) -> Child:
        ours, its = socket.socketpair()
        try:
            with its:
                code = START.format(path=[entry or os.getcwd() for entry in sys.path], descriptor=its.fileno())
                guarded = await self._guards.start([sys.executable, "-c", code], keep=its.fileno())
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return Child(guarded, ours)

    def _setup(self) -> Setup:
        found = multiprocessing.spawn.get_preparation_data(name_of(self))
        for key in NOT_SENT:
            found.pop(key, None)
        if b"__main__" not in self._work:
            for key in ("init_main_from_name", "init_main_from_path"):
                found.pop(key, None)
        return Setup(found, self._work)


async def _answer(ctx: Context, asked: Question) -> Answer:
    try:
        match asked:
            case Progress():
                return Answer(await ctx.progress(asked.fraction, asked.message))  # type: ignore[func-returns-value]
            case Log():
                return Answer(await ctx.log(asked.message))  # type: ignore[func-returns-value]
            case Command():
                return Answer(
                    await ctx.run_process(
                        asked.argv,
                        input=asked.input,
                        env=asked.env,
                        cwd=asked.cwd,
                        check=asked.check,
                        limit=asked.limit,
                    )
                )
            case Spawn():
                child = await ctx.spawn(
                    asked.task_type,
                    json.loads(asked.payload),
                    priority=asked.priority,
                    timeout=asked.timeout,
                    max_retry=asked.max_retry,
                )
                return Answer((child.task_id, child.ordinal))
            case Await():
                return Answer(await (ctx.children or [])[asked.ordinal].wait())
    except Exception as error:  # noqa: BLE001 - it is raised where the verb was used
        return Answer(error=error)


def _value_of(report: Report) -> TaskResult:
    """Raises: what the process has raised, under the same name."""
    if isinstance(report, Done):
        return TaskResult(report.success, json.loads(report.result), report.error)
    error = _error_of(report.error)
    if report.details:
        error.add_note(f"In its process:\n{report.details}")
    raise error


def _error_of(told: Told) -> Exception:
    if told.inner:
        return group_of(told.kind, told.message, [_error_of(each) for each in told.inner])
    error: Exception
    if not told.retryable:
        error = type(told.kind, (NonRetryable,), {})(told.message)
    elif told.after is not None:
        error = type(told.kind, (RetryLater,), {})(told.message, after=told.after)
    else:
        error = type(told.kind, (Exception,), {})(told.message)
    return error


def _how(returncode: int | None) -> str:
    if returncode is None:
        return "the task's process lives, but has closed its connection with the node or misused it"
    if returncode < 0:
        perhaps = ", perhaps for want of memory" if returncode == -9 else ""
        return f"the task's process was ended by signal {-returncode}{perhaps}"
    return f"the task's process exited with code {returncode} before the end of the task"
