"""What the leader has the embedded store look for now and then: tasks that were lost, overlooked, or are old.

Each verb is carried out by the writer, in its transaction; see sqlite_writer.py.
"""

from __future__ import annotations

from atm.serial import Call, share
from atm.store import Waiting
from atm.stores import decide
from atm.stores import sqlite_texts as texts
from atm.stores.sqlite_driver import one
from atm.stores.sqlite_texts import to_json
from atm.stores.sqlite_writer import Writer


def settle(limit: int, calls: list[Call], writer: Writer, now: int) -> None:
    rows = writer.select(texts.SELECT_WITHOUT_WORKER, limit).values()
    decisions = [decide.settle(row, now, writer.log) for row in rows]
    writer.apply([change for _, change in decisions], now)
    share(calls, [settled for settled, _ in decisions])


def recover(limit: int, calls: list[Call], writer: Writer, now: int) -> None:
    lost = writer.select(texts.SELECT_LOST, limit).values()
    decisions = [decide.recover(row, now, 0, writer.log) for row in lost]
    writer.apply([change for _, change in decisions], now)
    share(calls, [recovered for recovered, _ in decisions])


def sweep(argument: tuple[tuple[int, ...], int], calls: list[Call], writer: Writer, now: int) -> None:
    priorities, limit = argument
    found: list[Waiting] = []
    for priority in priorities:
        rows = writer.db.execute(texts.SELECT_OVERDUE, (priority, now, limit)).fetchall()
        if rows:
            ids = to_json([row[0] for row in rows])
            writer.db.execute(texts.UPDATE_SWEPT, (now, now, decide.SWEEP_FIRST, decide.SWEEP_MAX, ids))
            found += [decide.waiting(row[0], row[1], row[2], row[3], now) for row in rows]
    share(calls, found)


def purge(argument: tuple[float, int], calls: list[Call], writer: Writer, now: int) -> None:
    older_than, limit = argument
    ended = one(writer.db, texts.SELECT_ENDED, now - round(older_than * 1000), limit)
    for delete in texts.DELETES:
        removed = writer.db.execute(delete, (ended,)).rowcount
    share(calls, removed)
