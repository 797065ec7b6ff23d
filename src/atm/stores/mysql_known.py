"""What a node of the MySQL store knows of the tasks that it has claimed.

Most of them end as they were claimed: with what is known here that end is written without a look at the row,
and the statement itself makes sure that nothing has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from atm.serial import Call
from atm.stores.mysql_writes import Success
from atm.task import Status, Task


class Claim(NamedTuple):
    """A task as it was claimed. ``log_count`` is positive where its end takes more than to find it as it was."""

    attempt: int
    log_count: int
    started_ms: int


class Known:
    """The claims of this process whose tasks have not ended, as far as it knows."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}

    def learn(self, found: Iterable[tuple[int, Task]]) -> list[Task]:
        """Told of tasks that this process has claimed, with their ``log_count``; those whose claim is news."""
        news = []
        for log_count, task in found:
            known = self._claims.get(task.task_id)
            if known is None or known.attempt != task.attempt:
                if task.children:
                    log_count = abs(log_count)
                self._claims[task.task_id] = Claim(task.attempt, log_count, task.started_ms or 0)
                news.append(task)
        return news

    def add(self, claims: Mapping[str, Claim]) -> None:
        self._claims |= claims

    def touch(self, task_ids: Iterable[str]) -> None:
        """These tasks are no longer as they were claimed."""
        for task_id in task_ids:
            if (claim := self._claims.get(task_id)) is not None:
                self._claims[task_id] = claim._replace(log_count=abs(claim.log_count))

    def plain_ends(self, calls: list[Call]) -> dict[str, Success]:
        """The successes of tasks that are, as far as known here, just as they were claimed."""
        plain: dict[str, Success] = {}
        for call in calls:
            for o in call.rows:
                claim = self._claims.get(o.task_id)
                if (
                    o.status is Status.SUCCESS
                    and claim is not None
                    and claim.attempt == o.attempt
                    and claim.log_count < 0
                    and o.error_json is None
                    and o.details is None
                ):
                    plain[o.task_id] = Success(o.task_id, *claim, o)
        return plain

    def forget(self, calls: list[Call]) -> None:
        """Told of the outcomes that were written."""
        for call in calls:
            for o in call.rows:
                claim = self._claims.get(o.task_id)
                if claim is not None and claim.attempt == o.attempt:
                    del self._claims[o.task_id]

    def clear(self) -> None:
        self._claims.clear()
