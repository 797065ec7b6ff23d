"""Load-balance strategies: which of the workers that could run a task gets it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import cast

from atm.coordinator import Balance, Hint, WorkerInfo
from atm.errors import ConfigError
from atm.imports import import_module, one_line


class LeastTask:
    """The worker with the smallest part of its slots busy."""

    def choose(self, hint: Hint, workers: Sequence[WorkerInfo]) -> WorkerInfo:
        return min(workers, key=lambda worker: (worker.load / worker.capacity, worker.id))


class RoundRobin:
    """Each in turn, in the order of their ids."""

    def __init__(self) -> None:
        self._last = ""

    def choose(self, hint: Hint, workers: Sequence[WorkerInfo]) -> WorkerInfo:
        ordered = sorted(workers, key=lambda worker: worker.id)
        chosen = next((worker for worker in ordered if worker.id > self._last), ordered[0])
        self._last = chosen.id
        return chosen


class ConsistentHash:
    """The same task type and id to the same worker, as long as it is there (rendezvous hashing)."""

    def choose(self, hint: Hint, workers: Sequence[WorkerInfo]) -> WorkerInfo:
        def score(worker: WorkerInfo) -> bytes:
            text = f"{hint.task_type}\0{hint.task_id}\0{worker.id}"
            return hashlib.blake2b(text.encode(), digest_size=8).digest()

        return max(workers, key=score)


_SHIPPED: dict[str, type[Balance]] = {
    "least_task": LeastTask,
    "round_robin": RoundRobin,
    "consistent_hash": ConsistentHash,
}


def load(name: str) -> Balance:
    """The strategy of this name, or the user's class named ``module:Class``. Raises ConfigError."""
    key = "scheduler.load_balance_strategy"
    if name in _SHIPPED:
        return _SHIPPED[name]()
    module_name, _, class_name = name.partition(":")
    if not class_name:
        raise ConfigError(key, f"{name} is none of {', '.join(_SHIPPED)}, nor module:Class")
    try:
        strategy = getattr(import_module(module_name), class_name)()
    except ImportError as error:
        raise ConfigError(key, str(error)) from error
    except Exception as error:
        raise ConfigError(key, f"cannot load {name}: {one_line(error)}") from error
    if not callable(getattr(strategy, "choose", None)):
        raise ConfigError(key, f"{name} has no method choose(hint, workers)")
    return cast("Balance", strategy)
