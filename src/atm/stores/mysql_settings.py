"""The settings of the task types, as a node of the MySQL store knows them; and how they are changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import msgspec
import trio

from atm.errors import StoreUnavailable
from atm.serial import Call, share
from atm.stores import decide
from atm.stores import mysql_texts as texts
from atm.stores.mysql_connection import Result
from atm.stores.mysql_texts import COMMIT
from atm.stores.mysql_transaction import Transaction
from atm.stores.mysql_values import bind, encode
from atm.task import TaskType

AGE = 1.0
"""Seconds; about so old is what is known."""

DEFAULTS = TaskType(task_type="")

_read_settings = msgspec.json.Decoder(TaskType).decode


class Settings:
    """What is known here. ``keep`` learns what other nodes change, so that no create or claim waits for that."""

    def __init__(self) -> None:
        self._types: Mapping[str, TaskType] = {}
        self._known = False

    async def types(self, tx: Transaction) -> Mapping[str, TaskType]:
        """The settings by type; of a type without any nothing."""
        if not self._known:
            [found] = await tx.run(texts.SELECT_SETTINGS)
            self._types, self._known = by_name(found), True
        return self._types

    async def keep(self, read: Callable[[], Awaitable[Mapping[str, TaskType]]]) -> None:
        """Read them again and again, until cancelled."""
        while True:
            await trio.sleep(AGE)
            with suppress(StoreUnavailable):
                before, found = self._types, await read()
                if self._types is before:  # else they were changed here meanwhile
                    self._types = found

    async def change(self, argument: tuple[str, bytes], calls: list[Call], tx: Transaction) -> None:
        task_type, changes = argument
        insert = bind(texts.INSERT_TYPE, task_type, encode(TaskType(task_type=task_type)))
        _, [_, found] = await tx.begin(insert, bind(texts.SELECT_TYPE, task_type))
        settings = decide.changed_type(_read_settings(found.column[0]), msgspec.json.decode(changes))
        await tx.run(bind(texts.UPDATE_TYPE, encode(settings), is_limited(settings), task_type), COMMIT)
        self._known = False
        share(calls, settings)


def is_limited(settings: TaskType) -> bool:
    """Whether a claim of the type needs a look at how many run."""
    return settings.max_concurrent is not None or not settings.enabled


def by_name(found: Result) -> dict[str, TaskType]:
    return {settings.task_type: settings for settings in map(_read_settings, found.column)}
