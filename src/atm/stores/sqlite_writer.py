"""The writer: carries out a group of calls in one transaction, and gives the verbs what they read and write with.

A verb is a function of an argument, the calls of a group that have it, the writer, and now; it sets the calls'
results. All runs in the writer's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from atm.errors import StoreDamaged, StoreUnavailable
from atm.serial import Call, fail_all
from atm.store import Created, Lease, NewTask
from atm.stores import decide
from atm.stores import sqlite_texts as texts
from atm.stores.decide import AddLog, Change, End, Log, Row
from atm.stores.sqlite_driver import Connection, one, transaction, translate
from atm.stores.sqlite_texts import to_json
from atm.task import TaskType

LOG_ID_BLOCK = 1_000_000

DEFAULTS = TaskType(task_type="")
"""The settings of a type that nobody has configured."""

_read_rows = msgspec.json.Decoder(list[Row]).decode


class Writer:
    """The one connection that writes, and what is known by heart of what it has written.

    Args:
        now: the store's clock, milliseconds since 1970.
        on_commit: told how many seconds each transaction took.

    Attributes:
        db: the connection, once it is open.
        log: puts a row into a task's log, by the end of the transaction.
        types: the settings that somebody has configured; change them by ``configure``.
        limited: those types that have a cap or are switched off.
        alive: the leases that are; like ``types`` never changed but replaced, so that a failed commit can take
            it back.
    """

    db: Connection

    def __init__(self, now: Callable[[], int], on_commit: Callable[[float], None]) -> None:
        self._now = now
        self._on_commit = on_commit
        self._logs: list[Log] = []
        self.log: AddLog = self._logs.append
        self._log_id = self._log_ids_end = self._seq = 0
        self.alive: frozenset[Lease] = frozenset()
        self._know({})

    def open(self, db: Connection) -> None:
        """Read what is to be known by heart, and end every lease that was alive: its node is gone."""
        self.db = db
        with transaction(db):
            db.execute(texts.LOSE_ALL)
            settings = db.execute(texts.SELECT_SETTINGS).fetchall()
            self._know({name: msgspec.json.decode(text, type=TaskType) for name, text in settings})
            self._reserve_log_ids()
            self._seq = one(db, texts.LAST_SEQ)

    def configure(self, settings: TaskType) -> None:
        """Know these settings, at once: the verbs behind this one in its group see them."""
        self._know({**self.types, settings.task_type: settings})

    def _know(self, types: Mapping[str, TaskType]) -> None:
        self.types = types
        self.limited = frozenset(
            name for name, t in types.items() if t.max_concurrent is not None or not t.enabled
        )

    # a group

    def commit(self, calls: list[Call]) -> None:
        """Carry out a group in one transaction; where it fails, each call in one of its own."""
        self._logs.clear()
        began = time.perf_counter()
        types, alive = self.types, self.alive
        try:
            with transaction(self.db):
                now = self._now()
                for (verb, argument), same in _by_verb(calls):
                    verb(argument, same, self, now)
                self._write_logs(now)
            self._on_commit(time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001 - a bug in one call must not end the others
            self.alive = alive
            self._know(types)
            self._log_id = self._log_ids_end  # a block taken in this transaction was not
            failure = translate(error)
            if isinstance(failure, StoreDamaged):
                fail_all(calls, failure)
                raise failure from None
            if isinstance(failure, StoreUnavailable) or len(calls) == 1:
                fail_all(calls, failure)
                return
            fail_all(calls, StoreUnavailable("the transaction was undone"))
            for call in calls:
                self.commit([call])

    def _write_logs(self, now: int) -> None:
        if self._log_id + len(self._logs) > self._log_ids_end:
            self._reserve_log_ids()
        values: list[Any] = []
        for log_id, row in enumerate(self._logs, self._log_id):
            values += row
            values += (log_id, now)
        for statement, some in texts.insert_logs(values):
            self.db.execute(statement, some)
        self._log_id += len(self._logs)

    def _reserve_log_ids(self) -> None:
        """Take the next block of log ids, so that they grow across restarts without a look at the logs."""
        self._log_ids_end = one(self.db, texts.RESERVE_LOG_IDS, LOG_ID_BLOCK)
        self._log_id = self._log_ids_end - LOG_ID_BLOCK

    # what verbs read and write with

    def rows(self, task_ids: Iterable[str]) -> dict[str, Row]:
        """What decisions read of these tasks, by task id."""
        return self.select(texts.SELECT_ROWS, to_json(list(task_ids)))

    def select(self, sql: str, *values: object) -> dict[str, Row]:
        """The same of the tasks that the query finds: it has them as one JSON text."""
        return self.with_families(_read_rows(one(self.db, sql, *values)))

    def with_families(self, rows: Iterable[Row]) -> dict[str, Row]:
        """The rows by task id, those with living children marked."""
        found = {row.task_id: row for row in rows}
        parents = [row.task_id for row in found.values() if row.children]
        if parents:
            for (parent_id,) in self.db.execute(texts.SELECT_BUSY, (to_json(parents),)):
                found[parent_id].busy = True
        return found

    def count_ended_with(self, rows: Mapping[str, Row], parents: Sequence[str]) -> None:
        """Count the children that were ended with these tasks, which are among the rows."""
        if parents:
            for parent_id, count in self.db.execute(texts.COUNT_ENDED_WITH, (to_json(parents),)):
                rows[parent_id].ended_with = count

    def add(self, task: NewTask, now: int, values: list[Any]) -> Created:
        """Put the row of a new task behind ``values``, for ``insert``, and its first row into the log."""
        settings = self.types.get(task.task_type, DEFAULTS)
        due_ms, scheduled_ms = decide.due(task, now)
        self._seq += 1
        values += (
            self._seq, task.task_id, task.task_type, "PENDING", task.priority, task.payload_json,
            settings.default_timeout if task.timeout is None else task.timeout,
            settings.default_max_retry if task.max_retry is None else task.max_retry,
            now, due_ms, scheduled_ms, due_ms + decide.SWEEP_FIRST, task.idempotency_key,
        )  # fmt: skip
        self.log(decide.created(self._seq))
        return Created(task.task_id, due_in=(due_ms - now) / 1000)

    def insert(self, values: list[Any]) -> None:
        """Write the new tasks."""
        for statement, some in texts.insert_tasks(values):
            self.db.execute(statement, some)

    def judge(self, calls: list[Call], judge: Callable[[Any], tuple[Any, Change | End | None]], now: int) -> None:
        """Have every row of every call judged; write the changes; give each call its verdicts."""
        changes: dict[int | str, Change | End] = {}
        for call in calls:
            verdicts = []
            for item in call.rows:
                verdict, change = judge(item)
                verdicts.append(verdict)
                if change is not None:
                    changes[change.seq] = change
            call.succeed(verdicts)
        self.apply(changes.values(), now)

    def apply(self, changes: Iterable[Change | End | None], now: int) -> None:
        """Write what was decided."""
        ends: list[End] = []
        others: list[Change] = []
        for change in changes:
            if isinstance(change, End):
                ends.append(change)
            elif change is not None:
                others.append(change)
        if ends:
            self.db.execute(texts.UPDATE_ENDED, (now, to_json(ends)))
        if others:
            self.db.execute(texts.UPDATE_CHANGED, (to_json(others),))


def _by_verb(calls: list[Call]) -> Iterable[tuple[tuple[Callable[..., None], Any], list[Call]]]:
    """The calls of a group by verb and argument. Their order means nothing: none waited for another."""
    groups: dict[tuple[Any, Any], list[Call]] = {}
    for call in calls:
        groups.setdefault((call.verb, call.argument), []).append(call)
    return groups.items()
