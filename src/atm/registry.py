"""Which executor runs which task type: the marks of functions, the register, and what neither takes."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, get_args

from atm.errors import ConfigError
from atm.executor import Executor, FunctionExecutor, Lane, name_of
from atm.task import is_task_type

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__atm_executes__"


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
