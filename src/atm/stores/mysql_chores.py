"""What the leader has the MySQL store look for now and then: tasks that were lost, overlooked, or are old."""

from __future__ import annotations

import random
from typing import cast

import msgspec

from atm.serial import Call, share
from atm.store import Recovered
from atm.stores import decide
from atm.stores import mysql_texts as texts
from atm.stores import mysql_writes as writes
from atm.stores.decide import Change, End, Row
from atm.stores.mysql_texts import COMMIT, joined, keys
from atm.stores.mysql_transaction import Transaction
from atm.stores.mysql_values import bind
from atm.stores.mysql_writes import Logs, write

RECOVERY_JITTER = 1000

_read_lost = msgspec.json.Decoder(list[tuple[int, Row, int | None, int]]).decode
_read_waiting = msgspec.json.Decoder(list[tuple[str, str, int, int]]).decode


async def settle(limit: int, calls: list[Call], tx: Transaction) -> None:
    [found] = await tx.run(bind(texts.SELECT_WITHOUT_WORKER, limit))
    share(calls, [])
    if not found.rows:
        return
    logs = Logs()
    now, rows = await tx.rows((name.decode() for name in found.column), logs)
    decisions = [decide.settle(row, now, logs.add) for row in rows.values()]
    changes = {cast("str", change.seq): change for _, change in decisions if change is not None}
    await tx.run(*write(changes, logs, now), COMMIT)
    share(calls, [settled for settled, _ in decisions])


async def recover(limit: int, calls: list[Call], tx: Transaction) -> None:
    [suspects] = await tx.run(bind(texts.SELECT_LOST, limit))
    share(calls, [])
    if not suspects.rows:
        return
    still = b" AND status = 'PROCESSING' FOR UPDATE SKIP LOCKED"
    now, found = await tx.lock(*(texts.SELECT_LOST_ROWS + some + still for some in keys(suspects.column)))
    # Looked up behind the locks: who is not alive now will never be again.
    living = {int(epoch) for epoch in (await tx.run(texts.SELECT_LIVING))[0].column}
    logs = Logs()
    changes: dict[str, Change | End] = {}
    recovered: list[Recovered] = []
    lost = _read_lost(joined(found))
    await tx.find_busy(row for _, row, _, _ in lost)
    for log_count, row, started_ms, epoch in lost:
        if epoch not in living:
            logs.know(log_count, row, started_ms)
            delay = random.randrange(RECOVERY_JITTER)
            verdict, changes[row.task_id] = decide.recover(row, now, delay, logs.add)
            recovered.append(verdict)
    await tx.run(*write(changes, logs, now), COMMIT)
    share(calls, recovered)


async def sweep(argument: tuple[tuple[int, ...], int], calls: list[Call], tx: Transaction) -> None:
    priorities, limit = argument
    now, pages = await tx.begin(*(bind(texts.SELECT_OVERDUE, priority, limit) for priority in priorities))
    rows = _read_waiting(joined(pages))
    update = bind(writes.UPDATE_SWEPT, now, now, decide.SWEEP_FIRST, decide.SWEEP_MAX)
    await tx.run(*(update + some for some in keys(row[0] for row in rows)), COMMIT)
    share(calls, [decide.waiting(*row, now) for row in rows])


async def purge(argument: tuple[float, int], calls: list[Call], tx: Transaction) -> None:
    older_than, limit = argument
    before = bind("SET @before := @now - %s", round(older_than * 1000))
    _, [_, found] = await tx.look(before, texts.oldest_ended(limit))
    still = b" AND completed_at IS NOT NULL AND sweep_at < @before FOR UPDATE SKIP LOCKED"
    ids = keys(cast("bytes", row[1]) for row in found.rows)
    _, locked = await tx.begin(*(texts.SELECT_IDS + some + still for some in ids))
    gone = [task_id for some in locked for task_id in some.column]
    await tx.run(*(delete + some for delete in writes.DELETES for some in keys(gone)))
    await tx.run(COMMIT)
    share(calls, len(gone))
