"""How tasks come into the MySQL store: they are created, or spawned by their parents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat

import msgspec
from msgspec.structs import replace

from atm.errors import IdempotencyConflict
from atm.serial import Call
from atm.store import Created, NewChild, NewTask, Spawned, SpawnState
from atm.stores import decide
from atm.stores import mysql_texts as texts
from atm.stores import mysql_writes as writes
from atm.stores.decide import Change, End, Parent, Row
from atm.stores.mysql_known import Known
from atm.stores.mysql_settings import DEFAULTS, Settings
from atm.stores.mysql_texts import COMMIT, joined, keys
from atm.stores.mysql_transaction import Transaction
from atm.stores.mysql_values import bind
from atm.stores.mysql_writes import Logs, write
from atm.task import TaskType

_read_owners = msgspec.json.Decoder(list[tuple[str, str, str, str]]).decode
_read_created = msgspec.json.Decoder(list[tuple[str, int]]).decode
_read_parents = msgspec.json.Decoder(list[Parent]).decode
_read_children = msgspec.json.Decoder(list[tuple[str, str, int, Row, int | None]]).decode


class Creation:
    """The verbs ``create`` and ``spawn``."""

    def __init__(self, settings: Settings, known: Known) -> None:
        self._settings = settings
        self._known = known

    async def create(self, keyed: bool, calls: list[Call], tx: Transaction) -> None:
        """``keyed``: some of the tasks have an idempotency key."""
        types = await self._settings.types(tx)
        done = await _created_before(calls, tx) if tx.losses else {}
        owners = await _owners(calls, tx) if keyed else {}
        new: list[NewTask] = []
        receipts: list[tuple[Call, list[Created | NewTask]]] = []
        for call in calls:
            try:
                replays = decide.replays(call.rows, owners) if keyed else repeat(None)
            except IdempotencyConflict as conflict:
                call.fail(conflict)
                continue
            made = [
                done.get(task.task_id) or replay or task for task, replay in zip(call.rows, replays, strict=False)
            ]
            new += [task for task in made if isinstance(task, NewTask)]
            receipts.append((call, made))
        now = 0
        if new:
            now, _ = await tx.begin(*_inserts(new, types), COMMIT)
        for call, made in receipts:
            call.succeed([_receipt(item, now) for item in made])

    async def spawn(self, _: None, calls: list[Call], tx: Transaction) -> None:
        types = await self._settings.types(tx)
        children: list[NewChild] = [child for call in calls for child in call.rows]
        logs = Logs()
        now, _rows = await tx.rows((child.parent_id for child in children), logs)
        wanted = [decide.child_key(child.parent_id, child.ordinal) for child in children]
        by_id = [texts.SELECT_PARENTS + some for some in keys(child.parent_id for child in children)]
        by_key = [texts.SELECT_CHILDREN + some + b" FOR UPDATE" for some in keys(wanted)]
        found = await tx.run(*by_id, *by_key)
        parents = {parent.task_id: parent for parent in _read_parents(joined(found[: len(by_id)]))}
        former: dict[str, tuple[Row, str]] = {}
        for key, payload, log_count, row, started_ms in _read_children(joined(found[len(by_id) :])):
            former[key] = row, payload
            logs.know(log_count, row, started_ms)
        spawning = _Spawning(now, parents, former, logs)
        spawning.capped = await _waiting_for_themselves(children, types, tx)
        for call in calls:
            call.succeed([spawning.judge(child) for child in call.rows])
        await tx.run(*_inserts(spawning.new, types), *spawning.statements(), COMMIT)
        self._known.touch(parents)


# create


async def _owners(calls: list[Call], tx: Transaction) -> decide.Owners:
    wanted = keys(task.idempotency_key for call in calls for task in call.rows if task.idempotency_key is not None)
    rows = _read_owners(joined(await tx.run(*(texts.SELECT_OWNERS + some for some in wanted))))
    return {key: (task_id, task_type, payload) for key, task_id, task_type, payload in rows}


async def _created_before(calls: list[Call], tx: Transaction) -> dict[str, Created]:
    """What an earlier try, whose outcome was unknown, has created: the callers chose the ids."""
    wanted = keys(task.task_id for call in calls for task in call.rows)
    rows = _read_created(joined(await tx.run(*(texts.SELECT_CREATED + some for some in wanted))))
    return {task_id: Created(task_id, due_in=wait / 1000) for task_id, wait in rows}


def _inserts(new: Iterable[NewTask], types: Mapping[str, TaskType]) -> list[bytes]:
    return writes.insert_tasks((task, types.get(task.task_type) or DEFAULTS) for task in new)


def _receipt(item: Created | NewTask, now: int) -> Created:
    if isinstance(item, Created):
        return item
    due_ms, _ = decide.due(item, now)
    return Created(item.task_id, due_in=(due_ms - now) / 1000)


# spawn


async def _waiting_for_themselves(
    children: list[NewChild], types: Mapping[str, TaskType], tx: Transaction
) -> set[tuple[str, str]]:
    """By parent and type, the children whose type has a cap that an ancestor of theirs has a slot of."""
    capped = {name for name, settings in types.items() if settings.max_concurrent is not None}
    asked = {(child.parent_id, child.task.task_type) for child in children if child.task.task_type in capped}
    pairs = sorted(asked)
    found = await tx.run(*(bind(texts.SELECT_ANCESTOR, *pair) for pair in pairs)) if pairs else []
    return {pair for pair, result in zip(pairs, found, strict=True) if result.rows}


class _Spawning:
    """The children of one transaction. ``former``: by key, those that are there, with their payloads.

    ``capped``: by parent and type, children that would wait for a slot of their ancestors.
    """

    def __init__(
        self, now: int, parents: Mapping[str, Parent], former: Mapping[str, tuple[Row, str]], logs: Logs
    ) -> None:
        self.new: list[NewTask] = []
        self.capped: set[tuple[str, str]] = set()
        self._now = now
        self._parents = parents
        self._former = former
        self._logs = logs
        self._changes: dict[str, Change | End] = {}
        self._adopted: list[tuple[str, str, int]] = []

    def judge(self, child: NewChild) -> Spawned:
        parent = self._parents.get(child.parent_id)
        if (refusal := decide.refusal_to_spawn(parent, child)) is not None:
            return refusal
        assert parent is not None
        key = decide.child_key(child.parent_id, child.ordinal)
        if key in self._former:
            row, payload = self._former[key]
            spawned, change = decide.rejoin(row, payload, child, self._now, self._logs.add)
            if change is not None:
                self._changes[spawned.task_id] = change
        elif (child.parent_id, child.task.task_type) in self.capped:
            return Spawned(SpawnState.CAPPED)
        else:
            self.new.append(replace(child.task, idempotency_key=key))
            spawned = Spawned(SpawnState.CREATED, child.task.task_id)
            self._logs.add(decide.started(parent, child))
        if spawned.state is not SpawnState.CONFLICT:
            self._adopted.append((spawned.task_id, child.parent_id, parent.deadline))
        return spawned

    def statements(self) -> list[bytes]:
        parents = sorted({parent_id for _, parent_id, _ in self._adopted})
        rows = writes.pieces((parent_id, self._logs.counts[parent_id]) for parent_id in parents)
        return [
            *write(self._changes, self._logs, self._now),
            *(bind(writes.UPDATE_PARENTS, piece) for piece in rows),
            *(bind(writes.UPDATE_ADOPTED, piece) for piece in writes.pieces(self._adopted)),
        ]
