"""How tasks of the embedded store end, by their workers or because somebody asks for it, and how they open again.

Each verb is carried out by the writer, in its transaction; see sqlite_writer.py.
"""

from __future__ import annotations

from atm.serial import Call, share
from atm.store import CancelVerdict, Reopened
from atm.stores import decide
from atm.stores import sqlite_texts as texts
from atm.stores.decide import Change, Log
from atm.stores.sqlite_texts import as_task, to_json
from atm.stores.sqlite_writer import Writer
from atm.task import Status


def finish(_: None, calls: list[Call], writer: Writer, now: int) -> None:
    rows = writer.rows(o.task_id for call in calls for o in call.rows)
    writer.count_ended_with(rows, decide.ended_parents(rows, (o for call in calls for o in call.rows), now))
    writer.judge(calls, lambda o: decide.finish(rows.get(o.task_id), o, now, writer.log), now)


def note(_: None, calls: list[Call], writer: Writer, now: int) -> None:
    rows = writer.rows({item.task_id for call in calls for item in call.rows})
    told: dict[str, tuple[str | None, str | None]] = {}
    for call in calls:
        for item in call.rows:
            row = rows.get(item.task_id)
            if row is None or row.attempt != item.attempt or row.status is not Status.PROCESSING:
                continue
            if item.message is not None:
                writer.log(
                    Log(row.seq, item.log_type._value_, None, None, item.message, item.worker_id, item.attempt)
                )
            if item.progress_json is not None or item.error_json is not None:
                progress, error = told.get(item.task_id, (None, None))
                told[item.task_id] = item.progress_json or progress, item.error_json or error
        call.succeed(None)
    if told:
        noted = [(task_id, *values) for task_id, values in told.items()]
        writer.db.execute(texts.UPDATE_NOTED, (to_json(noted),))


def cancel(_: None, calls: list[Call], writer: Writer, now: int) -> None:
    rows = writer.rows(task_id for call in calls for task_id in call.rows)
    marked: list[str] = []

    def judge(task_id: str) -> tuple[CancelVerdict, Change | None]:
        verdict, change = decide.cancel(rows.get(task_id), now, writer.log)
        if change is None and verdict.changed:
            marked.append(task_id)
        return verdict, change

    writer.judge(calls, judge, now)
    if marked:
        writer.db.execute(texts.UPDATE_MARKED, (now, to_json(marked)))


def cancel_children(argument: tuple[tuple[str, ...], int], calls: list[Call], writer: Writer, now: int) -> None:
    alive = _descendants(*argument, writer)
    rows = writer.rows(alive)
    decisions = {task_id: decide.cancel_child(row, now, writer.log) for task_id, row in rows.items()}
    writer.apply([change for _, change in decisions.values()], now)
    asked = [name for name, (verdict, _) in decisions.items() if verdict.changed]
    ended = [name for name in asked if decisions[name][0].status is not Status.TIMEOUT]
    if ended:
        writer.db.execute(texts.UPDATE_ORPHANED, (now, to_json(ended)))
    share(calls, {name: decisions[name][0] for name in asked})


def _descendants(parents: tuple[str, ...], limit: int, writer: Writer) -> list[str]:
    """About ``limit`` that live, and that nobody has asked to end."""
    alive: list[str] = []
    while parents and len(alive) < limit:
        found = []
        for parent_id in parents:
            found += writer.db.execute(texts.SELECT_FAMILY, (*decide.child_keys(parent_id), limit)).fetchall()
        alive += [task_id for task_id, _, is_asked in found if not is_asked]
        parents = tuple(task_id for task_id, has_children, _ in found if has_children)
    return alive


def reopen(_: None, calls: list[Call], writer: Writer, now: int) -> None:
    rows = writer.rows(task_id for call in calls for task_id in call.rows)

    def judge(task_id: str) -> tuple[bool, Change | None]:
        row = rows.get(task_id)
        change = decide.reopen(row, now, writer.log) if row else None
        return change is not None, change

    writer.judge(calls, judge, now)
    for call in calls:
        verdicts: list[bool] = call.result.unwrap()
        after = [writer.db.execute(texts.SELECT_TASK, (task_id,)).fetchone() for task_id in call.rows]
        call.succeed([Reopened(as_task(r) if r else None, ok) for r, ok in zip(after, verdicts, strict=True)])
