"""How the MySQL store carries out its verbs: a group of calls is one transaction, run until it comes through.

A verb is an async function of an argument, the calls to be answered, and the transaction; it sets the calls'
results. It is run again on another connection when the server undid it, and when the connection was lost, which
leaves open whether it counted: then it finds what its first try has written.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import trio

from atm.errors import StoreUnavailable, WorkerIdTaken
from atm.serial import Call, fail_all
from atm.store import Claimed
from atm.stores import mysql_texts as texts
from atm.stores.decide import Change, End, Row
from atm.stores.mysql_connection import DUPLICATE, OUTAGE, RETRY, Connection, Lost, Rejected, Result
from atm.stores.mysql_pool import Pool
from atm.stores.mysql_texts import COMMIT, joined, keys
from atm.stores.mysql_values import bind
from atm.stores.mysql_writes import Logs

TRIES = 10
LOSSES = 2
MAX_JITTER = 0.05


class Transaction:
    """A group under way: its connection, which changes from try to try, and what is known of earlier tries.

    Args:
        shift: milliseconds by which the server's clock has leapt, for tests.
    """

    connection: Connection

    def __init__(self, shift: int) -> None:
        self.shift = shift
        self._set_now = bind(texts.SET_NOW, shift)
        self.losses = 0  # tries whose outcome is unknown
        self.taken: dict[str, int | None] = {}  # tasks that those may have claimed, with the attempt if known
        self.claimed: dict[str, Claimed] | None = None  # what a first step has committed

    async def run(self, *statements: bytes) -> list[Result]:
        return await self.connection.run(*statements)

    async def at_once(self, *statements: bytes) -> None:
        """A transaction in one trip."""
        await self.connection.run(self._set_now, texts.BEGIN, *statements, COMMIT)

    async def begin(self, *reads: bytes) -> tuple[int, list[Result]]:
        """Begin, and read; now by the server's clock, and what was read."""
        _, _, now, *found = await self.connection.run(texts.BEGIN, self._set_now, texts.NOW, *reads)
        return now.number, found

    async def lock(self, *reads: bytes) -> tuple[int, list[Result]]:
        """Like ``begin``, for reads that wait for locks.

        The clock is read again behind them: who held them before has written times later than the beginning.
        """
        _, found = await self.begin(*reads, self._set_now, texts.NOW)
        *found, _, now = found
        return now.number, found

    async def look(self, *statements: bytes) -> tuple[int, list[Result]]:
        """Like ``begin``, but each statement is its own transaction."""
        now, *found = await self.each(texts.NOW, *statements)
        return now.number, found

    async def each(self, *statements: bytes) -> list[Result]:
        """In one trip, each statement a transaction of its own."""
        _, *results = await self.connection.run(self._set_now, *statements)
        return results

    async def rows(self, task_ids: Iterable[str], logs: Logs) -> tuple[int, dict[str, Row]]:
        """Begin; now, and the rows, locked."""
        now, found = await self.lock(*(texts.SELECT_ROWS + some + b" FOR UPDATE" for some in keys(task_ids)))
        rows: dict[str, Row] = {}
        for log_count, row, started_ms in texts.read_rows(joined(found)):
            rows[row.task_id] = row
            logs.know(log_count, row, started_ms)
        await self.find_busy(rows.values())
        return now, rows

    async def find_busy(self, rows: Iterable[Row]) -> None:
        """Mark those that have living children. Few tasks have any, and none of these costs a trip."""
        parents = {row.task_id: row for row in rows if row.children}
        if parents:
            for found in await self.run(*texts.busy(parents)):
                for name in found.column:
                    parents[name.decode()].busy = True

    async def count_ended_with(self, rows: Mapping[str, Row], parents: Sequence[str]) -> None:
        """Count the children that were ended with these tasks, which are among the rows."""
        if parents:
            for name, found in zip(parents, await self.run(*texts.ended_with(parents)), strict=True):
                rows[name].ended_with = found.number


class Transactions:
    """Carries out groups of calls.

    Args:
        server: its name, for messages.
        shift: milliseconds by which its clock has leapt, for tests.
        on_commit: told how many seconds each transaction took.
        on_outage: called when a transaction has not come through.
    """

    def __init__(
        self,
        server: str,
        *,
        shift: Callable[[], int],
        on_commit: Callable[[float], None],
        on_outage: Callable[[], None],
    ) -> None:
        self._server = server
        self._shift = shift
        self._on_commit = on_commit
        self._on_outage = on_outage

    async def carry_out(self, pool: Pool, calls: list[Call]) -> None:
        """Carry out a group in one transaction; where a call's data is at fault, each call in one of its own."""
        began = time.perf_counter()
        try:
            await self._transact(pool, calls)
            self._on_commit(time.perf_counter() - began)
        except (StoreUnavailable, WorkerIdTaken) as error:
            if isinstance(error, StoreUnavailable):
                self._on_outage()
            fail_all(calls, error)
        except Exception as error:  # noqa: BLE001 - a bug in one call must not end the others
            if len(calls) == 1:
                calls[0].fail(error)
                return
            fail_all(calls, StoreUnavailable("the transaction was undone"))
            for call in calls:
                await self.carry_out(pool, [call])

    async def _transact(self, pool: Pool, calls: list[Call]) -> None:
        """Run the verb until it has come through."""
        tx = Transaction(self._shift())
        for number in range(TRIES):
            await trio.sleep(random.uniform(0, MAX_JITTER) * min(number, 4))
            try:
                async with pool.connection() as tx.connection:
                    await calls[0].verb(calls[0].argument, calls, tx)
                    return
            except Rejected as error:
                if error.code in OUTAGE:
                    raise StoreUnavailable(f"MySQL at {self._server}: {error}") from None
                if error.code not in RETRY and not _is_race(error, tx):
                    raise
                reason = f"MySQL at {self._server}: {error}"
            except Lost as error:
                tx.losses += 1
                reason = str(error)
                if tx.losses > LOSSES:
                    break
        raise StoreUnavailable(reason)


def _is_race(error: Rejected, tx: Transaction) -> bool:
    """Whether a second look helps: a key was taken since the first one, or an earlier try comes through late."""
    return error.code == DUPLICATE and (tx.losses > 0 or error.text.endswith("task_idempotency'"))


def judge_all(
    calls: list[Call], judge: Callable[[Any], tuple[Any, Change | End | None]]
) -> dict[str, Change | End]:
    """Have every row of every call judged; give each call its verdicts; the changes by task."""
    changes: dict[str, Change | End] = {}
    for call in calls:
        verdicts = []
        for item in call.rows:
            verdict, change = judge(item)
            verdicts.append(verdict)
            if change is not None:
                changes[cast("str", change.seq)] = change
        call.succeed(verdicts)
    return changes
