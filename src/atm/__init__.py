"""atm: durable asynchronous tasks on a Trio structured-concurrency runtime.

The names are imported when they are asked for: who only wants the client does not load the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atm.children import Child
    from atm.context import CommandResult, Context
    from atm.errors import ChildFailed, CommandFailed, NonRetryable, RetryLater
    from atm.executor import Executor, TaskResult
    from atm.executors.plain import PlainContext
    from atm.node import Node
    from atm.registry import executes
    from atm.task import Task

__all__ = [
    "Child",
    "ChildFailed",
    "CommandFailed",
    "CommandResult",
    "Context",
    "Executor",
    "Node",
    "NonRetryable",
    "PlainContext",
    "RetryLater",
    "Task",
    "TaskResult",
    "executes",
]

_HOMES = {
    "Child": "atm.children",
    "ChildFailed": "atm.errors",
    "CommandFailed": "atm.errors",
    "CommandResult": "atm.context",
    "Context": "atm.context",
    "Executor": "atm.executor",
    "Node": "atm.node",
    "NonRetryable": "atm.errors",
    "PlainContext": "atm.executors.plain",
    "RetryLater": "atm.errors",
    "Task": "atm.task",
    "TaskResult": "atm.executor",
    "executes": "atm.registry",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
