"""How tasks come into the embedded store: they are created, or spawned by their parents.

Each verb is carried out by the writer, in its transaction; see sqlite_writer.py.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

import msgspec
from msgspec.structs import replace

from atm.errors import IdempotencyConflict
from atm.serial import Call
from atm.store import NewChild, Spawned, SpawnState
from atm.stores import decide
from atm.stores import sqlite_texts as texts
from atm.stores.decide import Change, Parent, Row
from atm.stores.sqlite_driver import one
from atm.stores.sqlite_texts import to_json
from atm.stores.sqlite_writer import Writer

_read_parents = msgspec.json.Decoder(list[Parent]).decode
_read_children = msgspec.json.Decoder(list[tuple[str, str, Row]]).decode


def create(_: None, calls: list[Call], writer: Writer, now: int) -> None:
    keys = [task.idempotency_key for call in calls for task in call.rows if task.idempotency_key]
    owners = _owners(keys, writer) if keys else {}
    values: list[Any] = []
    for call in calls:
        try:
            replays = decide.replays(call.rows, owners) if keys else repeat(None)
        except IdempotencyConflict as conflict:
            call.fail(conflict)
            continue
        call.succeed(
            [replay or writer.add(task, now, values) for task, replay in zip(call.rows, replays, strict=False)]
        )
    writer.insert(values)


def _owners(keys: list[str], writer: Writer) -> decide.Owners:
    rows = writer.db.execute(texts.owners(len(keys)), keys)
    return {key: (task_id, task_type, payload) for key, task_id, task_type, payload in rows}


def spawn(_: None, calls: list[Call], writer: Writer, now: int) -> None:
    children: list[NewChild] = [child for call in calls for child in call.rows]
    known = to_json(list({child.parent_id for child in children}))
    parents = {parent.task_id: parent for parent in _read_parents(one(writer.db, texts.SELECT_PARENTS, known))}
    former = _former(children, writer)
    values: list[Any] = []
    changes: list[Change] = []
    adopted: dict[str, tuple[str, str, int]] = {}

    def judge(child: NewChild) -> Spawned:
        parent = parents.get(child.parent_id)
        refusal = decide.refusal_to_spawn(parent, child)
        if refusal is not None:
            return refusal
        assert parent is not None
        key = decide.child_key(child.parent_id, child.ordinal)
        if key in former:
            row, payload = former[key]
            spawned, change = decide.rejoin(row, payload, child, now, writer.log)
            if change is not None:
                changes.append(change)
        elif _would_wait_for_itself(parent, child.task.task_type, writer):
            return Spawned(SpawnState.CAPPED)
        else:
            writer.add(replace(child.task, idempotency_key=key), now, values)
            spawned = Spawned(SpawnState.CREATED, child.task.task_id)
            writer.log(decide.started(parent, child))
        if spawned.state is not SpawnState.CONFLICT:
            adopted[spawned.task_id] = (spawned.task_id, parent.task_id, parent.deadline)
        return spawned

    for call in calls:
        call.succeed([judge(child) for child in call.rows])
    writer.insert(values)
    writer.apply(changes, now)
    if adopted:
        writer.db.execute(texts.UPDATE_ADOPTED, (to_json(list(adopted.values())),))
        writer.db.execute(texts.UPDATE_PARENTS, (known,))


def _former(children: list[NewChild], writer: Writer) -> dict[str, tuple[Row, str]]:
    """By key, the children that former attempts have started, and their payloads."""
    keys = to_json([decide.child_key(child.parent_id, child.ordinal) for child in children])
    found = _read_children(one(writer.db, texts.SELECT_CHILDREN, keys))
    writer.with_families(row for _, _, row in found)
    return {key: (row, payload) for key, payload, row in found}


def _would_wait_for_itself(parent: Parent, task_type: str, writer: Writer) -> bool:
    settings = writer.types.get(task_type)
    if settings is None or settings.max_concurrent is None:
        return False
    return writer.db.execute(texts.SELECT_ANCESTOR, (parent.task_id, task_type)).fetchone() is not None
