"""The context of blocking code: ``atm.context.Context`` without ``await``."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from atm.children import result_of
from atm.context import MAX_OUTPUT, CancelReason, CommandResult
from atm.task import Task


class RunCancelled(BaseException):
    """The run is to end. No Exception, so that blocking code does not take it for a failure of its own."""


class PlainChild:
    """A task that this run has started, or found again.

    Attributes:
        task_id: the child's id.
        ordinal: how many children the attempt had started before it.
    """

    def __init__(self, task_id: str, task_type: str, ordinal: int, wait: Callable[[], Task]) -> None:
        self.task_id = task_id
        self.task_type = task_type
        self.ordinal = ordinal
        self._wait = wait

    def wait(self) -> Task:
        """The child in the state in which it has ended. Meanwhile the run's slot serves other tasks."""
        return self._wait()

    def result(self) -> Any:
        """The child's result, once it has ended. Raises ChildFailed."""
        return result_of(self.wait())


class PlainContext(ABC):
    """What blocking code in the thread and process lanes knows of its run. Its verbs may be used by any thread.

    Attributes:
        task_id, attempt, worker_id: as in ``Context``.
        deadline: when the attempt times out, in the terms of ``time.monotonic()``.
    """

    def __init__(self, task_id: str, attempt: int, worker_id: str, deadline: float) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.worker_id = worker_id
        self.deadline = deadline

    @property
    def time_left(self) -> float:
        """Seconds until the attempt times out, 0 when it has."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def idempotency_key(self) -> str:
        """The same at every attempt of the task, for external systems that recognise a repetition."""
        return self.task_id

    @property
    def is_cancelled(self) -> bool:
        """Whether the run is to end: a user's cancel, its timeout, or the node's shutdown."""
        return self.cancel_reason is not None

    @property
    @abstractmethod
    def cancel_reason(self) -> CancelReason | None:
        """Why the run is to end: "cancelled" (by a user), "timeout", "shutdown" (it will run again), or None."""

    @abstractmethod
    def check_cancelled(self) -> None:
        """Raise when the run is to end. Let what is raised pass: it is no Exception. Quick: call it often.

        Within ``cleanup`` it raises only when the cleanup budget is spent.
        """

    @abstractmethod
    def progress(self, fraction: float, message: str | None = None) -> None:
        """Tell how far the work has come; GET shows it. ``fraction`` is 0 to 1. Raises ValueError outside."""

    @abstractmethod
    def log(self, message: str) -> None:
        """Add an INFO row to the task's log. Returns when it is durable."""

    @abstractmethod
    def cleanup(self) -> AbstractContextManager[None]:
        """In it a cancelled run may still use these verbs, for the cleanup budget (5 s by default) in all."""

    @abstractmethod
    def run_process(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        input: bytes | None = None,  # noqa: A002 - as subprocess calls it
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        check: bool = True,
        limit: int = MAX_OUTPUT,
    ) -> CommandResult:
        """Run a command to its end; see ``Context.run_process``."""

    @abstractmethod
    def spawn(
        self,
        task_type: str,
        payload: Mapping[str, Any] | None = None,
        *,
        priority: int | None = None,
        timeout: float | None = None,
        max_retry: int | None = None,
    ) -> PlainChild:
        """Start a child task; see ``Context.spawn``."""
