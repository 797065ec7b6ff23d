"""A look at the cluster's database."""

from __future__ import annotations

import time

import msgspec

from atm.errors import StoreUnavailable
from atm.stores.mysql_connection import Connection, Lost, Rejected, Result
from atm.stores.mysql_driver import Address, connect
from atm.stores.mysql_schema import VERSION, refusal_of
from atm.stores.mysql_values import bind
from atm.stores.survey import MAX_LOOKED_AT, SAMPLE, SWEPT_WITHIN, LeaseSeen, Survey, TypeSeen

_NOW = "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)"
_NO_SUCH_TABLE = 1146
_HELD = "FROM worker_registry r WHERE r.epoch = t.worker_epoch AND r.worker_id = t.worker_id AND r.state = 'ALIVE'"
_RUNNING = "FROM task t WHERE status = 'PROCESSING'"
_ORPHANS = f"{_RUNNING} AND NOT EXISTS (SELECT 1 {_HELD})"


async def survey(address: Address) -> Survey:
    """Raises Unreachable, which names the setting that is likely at fault; StoreUnavailable."""
    connection = await connect(address)
    try:
        return await _look(connection)
    except (Rejected, Lost) as error:
        raise StoreUnavailable(str(error)) from None
    finally:
        connection.close()


async def _look(connection: Connection) -> Survey:
    version, skew = await _version_and_skew(connection)
    if (refusal := refusal_of(version)) is not None:
        raise StoreUnavailable(refusal)
    name = version if "mariadb" in version.lower() else f"MySQL {version}"
    seen = Survey(server=name, schema=0, known=VERSION, skew=skew)
    try:
        [answer] = await connection.run(b"SELECT version FROM schema_version WHERE id = 1")
    except Rejected as error:
        if error.code == _NO_SUCH_TABLE:
            return seen
        raise
    seen = msgspec.structs.replace(seen, schema=answer.number if answer.rows else 0)
    if seen.schema != VERSION:
        return seen
    leases, waiting, settings, running, orphans, some, leader = await connection.run(
        f"SELECT worker_id, epoch, lease_until - {_NOW}, task_types FROM worker_registry "  # noqa: S608 - constants
        f"WHERE state = 'ALIVE' AND lease_until > {_NOW} - 3600000".encode(),
        bind(
            "SELECT task_type, COUNT(*), " + _NOW + " - MIN(due_at) FROM (SELECT task_type, due_at FROM task "  # noqa: S608
            "WHERE status = 'PENDING' AND priority IN (1, 0, -1) AND sweep_at <= " + _NOW + " + %s "
            "AND due_at <= " + _NOW + " LIMIT %s) waits GROUP BY task_type",
            SWEPT_WITHIN,
            MAX_LOOKED_AT,
        ),
        b"SELECT task_type, settings FROM task_config WHERE limited",
        f"SELECT COUNT(*) {_RUNNING}".encode(),
        f"SELECT COUNT(*) {_ORPHANS}".encode(),
        f"SELECT task_id {_ORPHANS} LIMIT {SAMPLE}".encode(),
        f"SELECT holder FROM leader WHERE until_at > {_NOW} AND holder IS NOT NULL".encode(),  # noqa: S608
    )
    return msgspec.structs.replace(
        seen,
        leases=_leases(leases),
        waiting=_waiting(waiting, settings),
        processing=running.number,
        orphans=orphans.number,
        orphan_ids=[task_id.decode() for task_id in some.column],
        leader=leader.column[0].decode() if leader.rows else None,
    )


async def _version_and_skew(connection: Connection) -> tuple[str, float]:
    before = time.time()
    [answer] = await connection.run(f"SELECT VERSION(), {_NOW}".encode())
    after = time.time()
    version, now = answer.rows[0]
    assert version is not None
    assert now is not None
    # It was asked somewhere between.
    return version.decode(), int(now) / 1000 - (before + after) / 2


def _leases(answer: Result) -> list[LeaseSeen]:
    return [
        LeaseSeen(
            worker_id=(worker or b"").decode(),
            epoch=int(epoch or 0),
            left=int(left or 0) / 1000,
            task_types=frozenset(msgspec.json.decode(types or b"[]")),
        )
        for worker, epoch, left, types in answer.rows
    ]


def _waiting(answer: Result, settings: Result) -> list[TypeSeen]:
    limited = {name: msgspec.json.decode(text or b"{}") for name, text in settings.rows}
    return [
        TypeSeen(
            task_type=(name or b"").decode(),
            waiting=int(count or 0),
            oldest=int(age or 0) / 1000,
            enabled=name not in limited or limited[name].get("enabled", True),
        )
        for name, count, age in answer.rows
    ]
