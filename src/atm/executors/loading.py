"""Find the executors: shipped, by the ``atm.executors`` entry point, by the config."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from atm.config import ExecutorSpec
from atm.errors import ConfigError
from atm.executor import Executor
from atm.executors import trial
from atm.executors.email import EmailExecutor
from atm.executors.http import HttpExecutor
from atm.imports import import_module, one_line
from atm.registry import Registry, marked_executor

ENTRY_POINT_GROUP = "atm.executors"


def load_shipped(registry: Registry) -> None:
    """Register what needs no configuration."""
    for executor in (EmailExecutor(), HttpExecutor(), trial.echo, trial.sleep):
        registry.register(executor, shipped=True)


def load_entry_points(registry: Registry) -> None:
    """Register what installed packages offer under ``atm.executors``. Raises ConfigError."""
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        where = f"entry point {entry.name} = {entry.value}"
        try:
            found = entry.load()
        except Exception as error:
            raise ConfigError(where, f"cannot be loaded: {one_line(error)}") from error
        _register(registry, found, {}, where)


def load_configured(registry: Registry, specs: Iterable[str | ExecutorSpec]) -> None:
    """Register the entries of ``executors``. The current folder is importable. Raises ConfigError."""
    for index, spec in enumerate(specs):
        where = f"executors[{index}]"
        entry = ExecutorSpec(use=spec) if isinstance(spec, str) else spec
        module_name, _, name = entry.use.partition(":")
        try:
            found: Any = import_module(module_name)
        except ImportError as error:
            raise ConfigError(where, str(error)) from error
        if name:
            try:
                found = getattr(found, name)
            except AttributeError:
                raise ConfigError(where, f"module {module_name} has no {name}") from None
        _register(registry, found, entry.config, where)


def _register(registry: Registry, found: Any, config: dict[str, Any], where: str) -> None:
    try:
        for executor in _build(found, config, where):
            registry.register(executor)
    except ConfigError as error:
        if error.key.startswith(where):
            raise
        inner = f".config.{error.key}" if error.key in config else ""
        plain = error.reason if inner or error.key == "executors" else str(error)
        raise ConfigError(where + inner, plain) from None


def _build(found: Any, config: dict[str, Any], where: str) -> list[Executor]:
    if isinstance(found, ModuleType):
        if config:
            raise ConfigError(f"{where}.config", "a module takes no config; name a class: module:Class")
        marked = [marked_executor(value) for value in vars(found).values()]
        executors = [executor for executor in marked if executor is not None]
        if not executors:
            raise ConfigError(where, f"module {found.__name__} has nothing marked by @executes")
        return executors
    if inspect.isclass(found) and issubclass(found, Executor):
        try:
            return [found(**config)]
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{where}.config", f"{found.__name__}: {one_line(error)}") from error
    if isinstance(found, Executor):
        if config:
            raise ConfigError(f"{where}.config", "an executor that is built already takes no config")
        return [found]
    marked_one = marked_executor(found)
    if marked_one is not None:
        if config:
            raise ConfigError(f"{where}.config", "a function takes no config; use a class")
        return [marked_one]
    raise ConfigError(where, f"{found!r} is neither an Executor nor marked by @executes")
