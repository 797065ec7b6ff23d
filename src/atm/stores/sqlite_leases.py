"""The leases of workers in the embedded store, what they hold, and the settings of task types.

Each verb is carried out by the writer, in its transaction; see sqlite_writer.py.
"""

from __future__ import annotations

import msgspec

from atm.serial import Call, share
from atm.store import Held, Lease
from atm.stores import decide
from atm.stores import sqlite_texts as texts
from atm.stores.sqlite_driver import one
from atm.stores.sqlite_texts import to_json
from atm.stores.sqlite_writer import Writer
from atm.task import TaskType


def register(argument: tuple[str, int, tuple[str, ...]], calls: list[Call], writer: Writer, now: int) -> None:
    worker_id, capacity, task_types = argument
    writer.db.execute(texts.FORGET)
    writer.db.execute(texts.SUPERSEDE, (worker_id,))
    lease = Lease(worker_id, one(writer.db, texts.NEXT_EPOCH))
    writer.db.execute(texts.INSERT_LEASE, (worker_id, lease.epoch, capacity, to_json(task_types), now))
    writer.alive = frozenset(other for other in writer.alive if other.worker_id != worker_id) | {lease}
    share(calls, lease)


def retire(lease: Lease, calls: list[Call], writer: Writer, now: int) -> None:
    writer.db.execute(texts.RETIRE, (lease.worker_id, lease.epoch))
    writer.alive = writer.alive - {lease}
    share(calls, None)


def held(lease: Lease, calls: list[Call], writer: Writer, now: int) -> None:
    rows = writer.db.execute(texts.SELECT_HELD, (lease.worker_id, lease.epoch)).fetchall()
    share(calls, [Held(row[0], row[1], (now - row[2]) / 1000, bool(row[3])) for row in rows])


def change_task_type(argument: tuple[str, str], calls: list[Call], writer: Writer, now: int) -> None:
    task_type, changes = argument
    before = writer.types.get(task_type) or TaskType(task_type=task_type)
    settings = decide.changed_type(before, msgspec.json.decode(changes))
    writer.db.execute(texts.INSERT_TYPE, (settings.task_type, to_json(settings)))
    writer.configure(settings)
    share(calls, settings)
