"""One attempt, made by the runtime's own parts and judged by them; only the store's rows are kept in memory."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypedDict, Unpack

import msgspec
import trio
from msgspec.structs import replace

from atm.context import Context
from atm.executor import Executor, FunctionExecutor, name_of
from atm.executors.lanes import Lanes
from atm.nursery.left_open import generators_kept
from atm.nursery.places import whereabouts
from atm.nursery.run import SHUTDOWN, Run, attempt
from atm.nursery.stuck import STUCK_MARGIN
from atm.registry import Registry, marked_executor
from atm.store import LogRow, NewTask, Note
from atm.stores import decide
from atm.task import LogType, Status, Task, TaskType, new_task_id

logger = logging.getLogger("atm.testing")

WORKER = "worker-of-the-test"
EPOCH_MS = 1_700_000_000_000
"""When each attempt begins, in milliseconds since 1970."""


class Options(TypedDict, total=False):
    """What else may be said of an attempt.

    Attributes:
        task_type: one of the executor's; by default its first.
        timeout: seconds; by default the type's, 300.
        attempt: the attempt's number, from 1; the retries before it are used up.
        max_retry: retries in all; by default the type's, 3.
        settings: those of the task type.
        cleanup_budget: seconds for ``ctx.cleanup()``; 5 by default.
        opened: the executor has been opened by the test, which closes it, too.
        children: what ``ctx.spawn`` starts, by task type: an executor that carries them out, or the result of
            each, or an exception that each ends with.
    """

    task_type: str
    timeout: float
    attempt: int
    max_retry: int
    settings: TaskType
    cleanup_budget: float
    opened: bool
    children: Mapping[str, Any]


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended, and what a node would have recorded of it.

    Attributes:
        status: SUCCESS, FAILED, TIMEOUT or CANCELLED; PENDING: released by the shutdown.
        task_status: the state of the task after it: PENDING, if there will be another attempt.
        result: what GET shows; None unless it is a SUCCESS.
        error: ``{"type", "message", "retryable"}``; None unless it is FAILED or TIMEOUT.
        message: the text of the log row that tells of the end.
        details: the traceback that the log keeps; None where there is none.
        retry_in: seconds until the next attempt; None: there is none.
        progress: all that was written, the last one being what GET shows.
        logs: the task's log from the claim on.
        spawned: type and payload of the children, in their order.
        seconds: how long the executor ran, by Trio's clock.
    """

    status: Status
    task_status: Status
    result: Any
    error: dict[str, Any] | None
    message: str
    details: str | None
    retry_in: float | None
    progress: list[dict[str, Any]]
    logs: list[LogRow]
    spawned: list[tuple[str, dict[str, Any]]]
    seconds: float


async def run_executor(
    executor: Executor | Callable[..., Any],
    payload: Mapping[str, Any] | None = None,
    *,
    cancel_after: float | None = None,
    shutdown_after: float | None = None,
    **options: Unpack[Options],
) -> Ended:
    """Carry out one attempt as a worker would: opened, run in its scope, judged, closed.

    Args:
        executor: an Executor, or a function marked by ``executes``.
        payload: the task's; {} by default.
        cancel_after: a user cancels it after so many seconds; at 0 it is cancelled before it begins.
        shutdown_after: the node stops, and its grace time is over after so many seconds.
        options: see ``Options``.
    Raises: ConfigError for what is no executor; whatever opening and closing it raises. What ``execute`` raises
        is told in what is returned.
    """
    lanes = Lanes()
    found = executor_of(executor, lanes)
    async with opened(found, options):
        trial = Trial(found, payload, options, lanes)
        if shutdown_after is not None:
            trial.after(shutdown_after, trial.shut_down)
        if cancel_after is not None:
            trial.after(cancel_after, trial.cancel)
        return await trial.carry_out()


def executor_of(given: Executor | Callable[..., Any], lanes: Lanes) -> Executor:
    """Checked as a node checks it, and in its lane. Raises ConfigError."""
    registry = Registry()
    registry.register(given)
    return next(iter(lanes.dressed(registry.by_type).values()))


@contextlib.asynccontextmanager
async def opened(executor: Executor, options: Options) -> AsyncIterator[None]:
    if options.get("opened"):
        yield
    else:
        async with executor:
            yield


class Trial:
    """One attempt and its rows.

    Attributes:
        run: the runtime's.
        top: the Trio task that carries it out, once it has begun.
    """

    def __init__(
        self, executor: Executor, payload: Mapping[str, Any] | None, options: Options, lanes: Lanes
    ) -> None:
        task_type = options.get("task_type", executor.supported_task_types[0])
        settings = options.get("settings", TaskType(task_type=task_type))
        number = options.get("attempt", 1)
        self._began = trio.current_time()
        self._task = Task(
            task_id=new_task_id(),
            task_type=task_type,
            status=Status.PROCESSING,
            priority=0,
            payload_json=json.dumps(dict(payload or {}), allow_nan=False),
            timeout=options.get("timeout", settings.default_timeout),
            max_retry=options.get("max_retry", settings.default_max_retry),
            attempt=number,
            retry_count=number - 1,
            recoveries=0,
            releases=0,
            worker_id=WORKER,
            created_ms=EPOCH_MS,
            due_ms=EPOCH_MS,
            scheduled_ms=None,
            started_ms=EPOCH_MS,
            completed_ms=None,
            cancel_requested_ms=None,
            result_json=None,
            error_json=None,
            progress_json=None,
        )
        self._row = _row_of(self._task)
        self._progress: list[dict[str, Any]] = []
        self._logs: list[LogRow] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._around = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self.top: trio.lowlevel.Task | None = None
        self.run = Run(self._task, settings, executor, self._began)
        self._children = Children(options, lanes)
        self._budget = budget = options.get("cleanup_budget", 5.0)
        self.run.context = Context(
            self._task,
            WORKER,
            self.run.scope,
            self._note,
            budget,
            around=(self._around,),
            commands=lanes.commands,
            family=self._children,
        )

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something done to it so many seconds after its beginning."""
        self._later.append((seconds, act))

    def cancel(self) -> None:
        """A user cancels the task."""
        decide.cancel(self._row, self._now, self._log)
        self.run.cancel()
        if self._nursery is not None:
            self._nursery.start_soon(self._tell_if_stuck)

    def shut_down(self) -> None:
        """The node's grace time is over."""
        self._around.cancel(reason=SHUTDOWN)

    async def carry_out(self) -> Ended:
        """Return when it has ended."""
        self._log(decide.claimed(self._row.seq, self._task.attempt, WORKER))
        ended = trio.Event()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for seconds, act in self._later:
                if seconds <= 0:
                    act()
                else:
                    nursery.start_soon(_act_after, seconds, act)
            nursery.start_soon(self._attempt, ended, name=self._task.task_type)
            await ended.wait()
            nursery.cancel_scope.cancel()
        return self._ended()

    async def _attempt(self, ended: trio.Event) -> None:
        self.top = trio.lowlevel.current_task()
        try:
            with self._around, generators_kept(lambda task: task is self.top):
                await attempt(self.run, lambda _: None)
        finally:
            ended.set()

    async def _tell_if_stuck(self) -> None:
        """Nothing can end such a run; but the log is shown with a test that is ended for its time."""
        await trio.sleep(self._budget + STUCK_MARGIN)
        name, where = name_of(self.run.executor), whereabouts(self.run)
        logger.error("%s does not end: cancelled %g s ago, it is at %s", name, self._budget + STUCK_MARGIN, where)

    async def _note(self, note: Note) -> None:
        await trio.lowlevel.checkpoint()
        if note.message is not None:
            kind = note.log_type._value_
            self._log(decide.Log(self._row.seq, kind, None, None, note.message, WORKER, note.attempt))
        if note.progress_json is not None:
            self._progress.append(json.loads(note.progress_json))

    def _log(self, row: decide.Log) -> None:
        source, target = (None if name is None else Status(name) for name in (row.from_status, row.to_status))
        number, kind = len(self._logs) + 1, LogType(row.log_type)
        self._logs.append(LogRow(number, kind, source, target, row.message, row.worker_id, row.attempt, self._now))

    def as_task(self, ended: Ended) -> Task:
        """The task as the store would have it now."""
        result = None if ended.status is not Status.SUCCESS else json.dumps(ended.result)
        error = None if ended.error is None else json.dumps(ended.error)
        return replace(self._task, status=ended.task_status, result_json=result, error_json=error)

    @property
    def _now(self) -> int:
        return EPOCH_MS + round((trio.current_time() - self._began) * 1000)

    def _ended(self) -> Ended:
        outcome = self.run.outcome
        verdict, change = decide.finish(self._row, outcome, self._now, self._log)
        assert verdict.status is not None
        assert change is not None
        if outcome.progress_json is not None:
            self._progress.append(json.loads(outcome.progress_json))
        status = outcome.status if verdict.status is Status.PENDING else verdict.status
        return Ended(
            status=status,
            task_status=verdict.status,
            result=None if change.result_json is None else json.loads(change.result_json),
            error=None if change.error_json is None else json.loads(change.error_json),
            message=next(row.message for row in reversed(self._logs) if row.to_status is status),
            details=outcome.details,
            retry_in=outcome.retry_in if verdict.status is Status.PENDING else None,
            progress=self._progress,
            logs=self._logs,
            spawned=self._children.spawned,
            seconds=self.run.seconds,
        )


class Children:
    """Implements ``atm.children.Family``: each child is one attempt, made when its parent first waits for it."""

    def __init__(self, options: Options, lanes: Lanes) -> None:
        self.spawned: list[tuple[str, dict[str, Any]]] = []
        self._lanes = lanes
        self._known = options.get("children", {})
        self._budget = options.get("cleanup_budget", 5.0)
        self._plans: dict[str, tuple[Executor, dict[str, Any], Options]] = {}
        self._alone: dict[str, trio.Lock] = {}
        self._ended: dict[str, Task] = {}

    async def start(self, ctx: Context, ordinal: int, task: NewTask) -> str:
        await trio.lowlevel.checkpoint()
        if task.task_type not in self._known:
            raise LookupError(f"the test has no children of type {task.task_type!r}: name it in `children`")
        payload = json.loads(task.payload_json)
        self.spawned.append((task.task_type, payload))
        options = Options(task_type=task.task_type, max_retry=0, cleanup_budget=self._budget, children=self._known)
        if task.timeout is not None:
            options["timeout"] = task.timeout
        child = _child(self._known[task.task_type], task.task_type, self._lanes)
        self._plans[task.task_id] = child, payload, options
        self._alone[task.task_id] = trio.Lock()
        return task.task_id

    async def ended(self, ctx: Context, task_id: str) -> Task:
        async with self._alone[task_id]:
            if task_id not in self._ended:
                executor, payload, options = self._plans[task_id]
                async with opened(executor, options):
                    trial = Trial(executor, payload, options, self._lanes)
                    self._ended[task_id] = trial.as_task(await trial.carry_out())
        return self._ended[task_id]


def _child(given: object, task_type: str, lanes: Lanes) -> Executor:
    if isinstance(given, Executor) or marked_executor(given) is not None:
        return executor_of(given, lanes)  # type: ignore[arg-type]

    async def stand_in(ctx: Context, task: Task) -> object:
        await trio.lowlevel.checkpoint()
        if isinstance(given, Exception):
            raise given
        return given

    return FunctionExecutor(stand_in, (task_type,))


async def _act_after(seconds: float, act: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    act()


def _row_of(task: Task) -> decide.Row:
    return decide.Row(
        seq=1,
        task_id=task.task_id,
        task_type=task.task_type,
        priority=task.priority,
        status=task.status,
        attempt=task.attempt,
        retry_count=task.retry_count,
        recoveries=task.recoveries,
        releases=task.releases,
        cancel_requested_ms=None,
        worker_id=task.worker_id,
        max_retry=task.max_retry,
        due_ms=task.due_ms,
    )
