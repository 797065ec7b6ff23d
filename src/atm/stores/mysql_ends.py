"""How tasks of the MySQL store end, by their workers or because somebody asks for it, and how they open again.

An end as most are, of a task that nobody has touched since its claim, is one trip; else the rows are locked and
read, judged, and written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from atm.serial import Call, share
from atm.store import CancelVerdict, Finished, Lease, Outcome, Reopened
from atm.stores import decide
from atm.stores import mysql_texts as texts
from atm.stores import mysql_writes as writes
from atm.stores.decide import Change, End, Log
from atm.stores.mysql_connection import DUPLICATE, NOT_NULL, Rejected
from atm.stores.mysql_known import Known
from atm.stores.mysql_texts import COMMIT, joined, keys
from atm.stores.mysql_transaction import Transaction, judge_all
from atm.stores.mysql_values import bind
from atm.stores.mysql_writes import Logs, write
from atm.task import Status

_SUCCEEDED, _STALE = Finished(Status.SUCCESS), Finished(None)


class Ends:
    """The verbs of a task's worker, ``finish`` and ``note``."""

    def __init__(self, known: Known) -> None:
        self._known = known

    async def finish(self, lease: Lease, calls: list[Call], tx: Transaction) -> None:
        plain = {} if tx.losses else self._known.plain_ends(calls)
        if not (plain and await _succeed(lease, plain, tx)):
            plain = {}
        others = [o for call in calls for o in call.rows if o.task_id not in plain]
        logs = Logs()
        now, rows = await tx.rows((o.task_id for o in others), logs) if others else (0, {})
        await tx.count_ended_with(rows, decide.ended_parents(rows, others, now))

        def judge(o: Outcome) -> tuple[Finished, Change | End | None]:
            if (success := plain.get(o.task_id)) is not None:
                return _SUCCEEDED if success.outcome is o else _STALE, None
            return decide.finish(rows.get(o.task_id), o, now, logs.add)

        changes = judge_all(calls, judge)
        if others:
            await tx.run(*write(changes, logs, now), COMMIT)
        self._known.forget(calls)

    async def note(self, _: None, calls: list[Call], tx: Transaction) -> None:
        logs = Logs()
        _now, rows = await tx.rows((note.task_id for call in calls for note in call.rows), logs)
        told: dict[str, tuple[str | None, str | None]] = {}
        for call in calls:
            for note in call.rows:
                row = rows.get(note.task_id)
                if row is None or row.attempt != note.attempt or row.status is not Status.PROCESSING:
                    continue
                progress, error = told.get(note.task_id, (None, None))
                told[note.task_id] = note.progress_json or progress, note.error_json or error
                if note.message is not None:
                    log_type = note.log_type.value
                    logs.add(Log(row.seq, log_type, None, None, note.message, note.worker_id, note.attempt))
                    self._known.touch([note.task_id])
            call.succeed(None)
        noted = writes.pieces((task_id, logs.counts[task_id], *values) for task_id, values in told.items())
        await tx.run(*(bind(writes.UPDATE_NOTED, piece) for piece in noted), *logs.statements(), COMMIT)


async def _succeed(lease: Lease, plain: Mapping[str, writes.Success], tx: Transaction) -> bool:
    """Write these ends in one trip; False, and nothing is written, when one of the tasks has changed."""
    try:
        await tx.at_once(*writes.succeed(list(plain.values()), lease))
        return True
    except Rejected as error:
        if error.code not in (NOT_NULL, DUPLICATE):
            raise
        await tx.run(b"ROLLBACK")
        return False


async def cancel(_: None, calls: list[Call], tx: Transaction) -> None:
    logs = Logs()
    now, rows = await tx.rows((task_id for call in calls for task_id in call.rows), logs)
    marked: list[str] = []

    def judge(task_id: str) -> tuple[CancelVerdict, Change | None]:
        verdict, change = decide.cancel(rows.get(task_id), now, logs.add)
        if change is None and verdict.changed:
            marked.append(task_id)
        return verdict, change

    changes = judge_all(calls, judge)
    await tx.run(*writes.mark(marked, logs, now), *write(changes, logs, now), COMMIT)


async def cancel_children(argument: tuple[tuple[str, ...], int], calls: list[Call], tx: Transaction) -> None:
    parents, limit = argument
    alive: list[str] = []
    while parents and len(alive) < limit:
        found = [
            row
            for result in await tx.run(*texts.family(parents, limit))
            for row in cast("list[tuple[bytes, bytes, bytes]]", result.rows)
        ]
        alive += [name.decode() for name, _, asked in found if asked == b"0"]
        parents = tuple(name.decode() for name, has_children, _ in found if has_children != b"0")
    share(calls, await _end_children(alive, tx) if alive else {})


async def _end_children(task_ids: list[str], tx: Transaction) -> dict[str, CancelVerdict]:
    """What changed, by task."""
    logs = Logs()
    now, rows = await tx.rows(task_ids, logs)
    decisions = {name: decide.cancel_child(row, now, logs.add) for name, row in rows.items()}
    changes = {name: change for name, (_, change) in decisions.items() if change is not None}
    verdicts = {name: verdict for name, (verdict, _) in decisions.items() if verdict.changed}
    marks = writes.mark([name for name in verdicts if name not in changes], logs, now)
    orphaned = keys(name for name, verdict in verdicts.items() if verdict.status is not Status.TIMEOUT)
    orphans = [writes.UPDATE_ORPHANED + some for some in orphaned]
    await tx.run(*marks, *orphans, *write(changes, logs, now), COMMIT)
    return verdicts


async def reopen(_: None, calls: list[Call], tx: Transaction) -> None:
    logs = Logs()
    now, rows = await tx.rows((task_id for call in calls for task_id in call.rows), logs)

    def judge(task_id: str) -> tuple[bool, Change | None]:
        row = rows.get(task_id)
        change = decide.reopen(row, now, logs.add) if row else None
        return change is not None, change

    written = write(judge_all(calls, judge), logs, now)
    reads = [texts.SELECT_TASKS + some for some in keys(rows)]
    results = await tx.run(*written, *reads, COMMIT)
    after = {task.task_id: task for task in texts.read_tasks(joined(results[len(written) : -1]))}
    for call in calls:
        changed: list[bool] = call.result.unwrap()
        call.succeed([Reopened(after.get(name), ok) for name, ok in zip(call.rows, changed, strict=True)])
