"""Every error the product raises on purpose.

AtmError
├── ConfigError            a setting is wrong; names the key
├── StartError             the node cannot start here: busy port, locked or damaged file
├── WorkerIdTaken          another process works under this worker.id
├── StoreError
│   ├── StoreUnavailable   an outage: nothing was decided, try again later
│   └── StoreDamaged       the data cannot be trusted; the node stops
└── IdempotencyConflict    the key belongs to a task with another type or payload

NonRetryable               raised by executors: fail now, whatever retries are left
└── SpawnRefused           a child cannot be started: the code has changed between attempts, or a cap forbids it
RetryLater                 raised by executors: fail, and do not come back before so many seconds
ChildFailed                raised to executors that ask for the result of a child that has none
CommandFailed              a command of ``ctx.run_process`` ended with another code than 0
WorkerDied                 the process of the process lane ended before its task
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


class AtmError(Exception):
    """Base of the errors above."""


class ConfigError(AtmError):
    """A setting is wrong.

    Args:
        key: the dotted key, as in ``server.port``; empty when the whole file is at fault.
        reason: what is wrong with it, in one line.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}" if key else reason)
        self.key = key
        self.reason = reason


class StartError(AtmError):
    """The node cannot start here; the message is one line for the operator."""


class WorkerIdTaken(AtmError):
    """Another process works under this worker id.

    Args:
        worker_id: the id.
        wait: seconds until its lease is over, if it is not renewed; None when this process had the id before
            and was superseded: it must not have it again.
    """

    def __init__(self, worker_id: str, wait: float | None) -> None:
        super().__init__(f"worker.id: {worker_id} is in use by another node; each node needs an id of its own")
        self.worker_id = worker_id
        self.wait = wait


class StoreError(AtmError):
    """Base of the store's errors."""


class StoreUnavailable(StoreError):
    """The store is away or full. Nothing was written; the call may be repeated."""


class StoreDamaged(StoreError):
    """The stored data is damaged. The node stops rather than write on."""


class IdempotencyConflict(AtmError):
    """The idempotency key already belongs to a task with another type or payload.

    Args:
        index: position of the offending task in the call.
        task_id: the task that owns the key.
    """

    def __init__(self, index: int, task_id: str) -> None:
        super().__init__(f"the idempotency key belongs to task {task_id}, which has another type or payload")
        self.index = index
        self.task_id = task_id


class NonRetryable(Exception):
    """Raised by an executor: the task is FAILED at once, whatever retries are left."""


class RetryLater(Exception):
    """Raised by an executor: the attempt fails, and a retry, if one is left, comes not before ``after``.

    Args:
        reason: what went wrong; becomes the task's error.
        after: seconds, 0 to leave it to the retry policy; more than an hour is taken for an hour.
    """

    def __init__(self, reason: str, *, after: float = 0.0) -> None:
        if not after >= 0:
            raise ValueError(f"after must be 0 or more seconds, not {after}")
        super().__init__(reason)
        self.after = after


class SpawnRefused(NonRetryable):
    """The child cannot be started, now or by another attempt; the message names its ordinal and says why."""


class ChildFailed(Exception):
    """The child ended without success.

    Args:
        task_id: the child's.
        status: FAILED, TIMEOUT or CANCELLED.
        error: its error as GET shows it; None where it has none.
    """

    def __init__(self, task_id: str, task_type: str, status: str, error: dict[str, Any] | None) -> None:
        reason = f": {error.get('message')}" if error else ""
        super().__init__(f"child {task_id} ({task_type}) is {status}{reason}")
        self.task_id = task_id
        self.task_type = task_type
        self.status = status
        self.error = error


class CommandFailed(Exception):
    """A command ended with another code than 0; its arguments are not told, they may be secrets.

    Args:
        program: its name.
        returncode: negative for the signal that ended it.
        stdout: what it wrote, as far as it was kept.
        stderr: the same; its last line is told.
    """

    def __init__(self, program: str, returncode: int, stdout: bytes = b"", stderr: bytes = b"") -> None:
        how = f"exited with code {returncode}" if returncode >= 0 else f"was ended by signal {-returncode}"
        last = stderr.decode(errors="replace").strip().rpartition("\n")[2].strip()
        super().__init__(f"{program} {how}{': ' + last if last else ''}")
        self.program = program
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr

    def __reduce__(self) -> tuple[type[CommandFailed], tuple[str, int, bytes, bytes]]:
        return CommandFailed, (self.program, self.returncode, self.stdout, self.stderr)


class WorkerDied(Exception):
    """The process that carried out the task ended before it: by a signal, by ``os._exit``."""


def leaf_of(error: BaseException, kind: type[E]) -> E | None:
    """The first error of this kind in a (nested) group, or the error itself; None when there is none."""
    found = [error]  # groups may be nested more deeply than calls can be
    while found:
        current = found.pop()
        if isinstance(current, kind):
            return current
        found.extend(reversed(inner_of(current)))
    return None


def inner_of(error: BaseException) -> Sequence[BaseException]:
    """The errors in a group; none in what is no group."""
    return error.exceptions if isinstance(error, BaseExceptionGroup) else ()


def group_of(kind: str, message: str, errors: Sequence[Exception]) -> Exception:
    """A group whose class has that name."""
    group: Exception = type(kind, (ExceptionGroup,), {})(message, errors)
    return group
