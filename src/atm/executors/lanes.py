"""Puts each executor into its lane."""

from __future__ import annotations

from collections.abc import Mapping

from atm.executor import Executor
from atm.executors.command import CommandRunner
from atm.executors.guarded import Guards
from atm.executors.process import ProcessExecutor
from atm.executors.thread import ThreadExecutor


class Lanes:
    """What the lanes of one node share."""

    def __init__(self) -> None:
        self._guards = Guards()
        self.commands = CommandRunner(self._guards)
        self.orphans = self._guards.orphans

    def dressed(self, by_type: Mapping[str, Executor]) -> dict[str, Executor]:
        """The same executors, each carried out in its lane."""
        dressed = {id(executor): self._dress(executor) for executor in by_type.values()}
        return {task_type: dressed[id(executor)] for task_type, executor in by_type.items()}

    def _dress(self, executor: Executor) -> Executor:
        if executor.lane == "thread":
            return ThreadExecutor(executor)
        if executor.lane == "process":
            return ProcessExecutor(executor, self._guards)
        return executor
