"""Lanes of calls to a server whose answers are waited for: the async twin of ``atm.serial``.

Whatever arrives while a lane's workers are busy makes the next group; there is no linger. A lane owns what it
has begun: callers can be cancelled without harm, and at the end groups under way get a while to finish.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import trio

from atm.errors import StoreUnavailable
from atm.serial import MAX_BYTES, MAX_ROWS, Call, Result

TURNS = 3
"""Of the loop: in so many, who is woken by the same thing as the first caller has called, too."""

GRACE = 5.0
"""Seconds that a group under way gets to finish when the lane is cancelled."""


class Lane:
    """Has ``execute(calls)`` called for group after group.

    Args:
        execute: carries out the calls of a group and sets their results. What it raises comes out of ``serve``.
        workers: how many groups may be under way at a time.
        mixed: a group may hold any calls; else they have verb and argument in common. As such calls are small,
            a trip costs more than what they do: the first of a group waits for those that come just behind it.
        thorough: at the end all that has arrived is carried out, not only what is under way.
        closed: makes the error of a call that comes too late.
    """

    def __init__(
        self,
        execute: Callable[[list[Call]], Awaitable[None]],
        workers: int = 1,
        *,
        mixed: bool = False,
        thorough: bool = False,
        closed: Callable[[], Exception] = lambda: StoreUnavailable("the store is closed"),
    ) -> None:
        self._execute = execute
        self._workers = workers
        self._mixed = mixed
        self._thorough = thorough
        self._closed_error = closed
        self._waiting: deque[Call] = deque()
        self._idle = trio.lowlevel.ParkingLot()
        self._scopes: set[trio.CancelScope] = set()
        self._open = False
        self.waiting_rows = 0  # of calls that are not delivered

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then let the groups under way finish. What waits is answered as closed."""
        self._open = True
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._workers):
                    nursery.start_soon(self._work)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._open = False
                    for scope in self._scopes:
                        scope.deadline = trio.current_time() + GRACE
        finally:
            self._deliver(self._waiting)
            self._waiting.clear()

    async def call(
        self, verb: Callable[..., Any], argument: object, rows: Sequence[Any] = (), size: int = 0
    ) -> Any:
        """Have the verb carried out with the next group; its result.

        Args:
            verb, argument: calls with both the same may be carried out as one.
            rows: the batch.
            size: bytes that the batch takes, where it may be much.
        Raises: what the verb raised; StoreUnavailable when the lane is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self._new_call(verb, argument, rows, size)
        if not self._open:
            return call.result.unwrap()
        call.waiter = trio.lowlevel.current_task()
        self._put(call)

        def abort(_: object) -> trio.lowlevel.Abort:
            call.waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def post(
        self,
        verb: Callable[..., Any],
        argument: object,
        rows: Sequence[Any] = (),
        told: Callable[[Result], None] | None = None,
    ) -> None:
        """Have the verb carried out after all that came before, and do not wait for it.

        Args:
            told: is called with what came of it; not at all when the lane was closed before.
        """
        if self._open:
            call = self._new_call(verb, argument, rows, 0)
            call.told = told
            self._put(call)

    def _new_call(self, verb: Callable[..., Any], argument: object, rows: Sequence[Any], size: int) -> Call:
        call = Call(verb, argument, rows, size)
        call.fail(self._closed_error())
        return call

    def _put(self, call: Call) -> None:
        self.waiting_rows += len(call.rows)
        self._waiting.append(call)
        self._idle.unpark()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                await self._idle.park()
                if self._mixed:
                    for _ in range(TURNS):
                        await trio.lowlevel.cancel_shielded_checkpoint()
            if not self._thorough:
                await trio.lowlevel.checkpoint_if_cancelled()
            group = _next_group(self._waiting, mixed=self._mixed)
            with trio.CancelScope(shield=True) as scope:
                self._scopes.add(scope)
                try:
                    await self._execute(group)
                finally:
                    self._scopes.remove(scope)
                    self._deliver(group)

    def _deliver(self, group: Iterable[Call]) -> None:
        for call in group:
            self.waiting_rows -= len(call.rows)
            if call.told is not None:
                call.told(call.result)
            if call.waiter is not None:
                waiter, call.waiter = call.waiter, None
                trio.lowlevel.reschedule(waiter, call.result)


def _next_group(waiting: deque[Call], *, mixed: bool) -> list[Call]:
    """Take out, in order, what fits into one transaction and, unless ``mixed``, is alike; one call at least."""
    group = [waiting.popleft()]
    verb, argument = group[0].verb, group[0].argument
    rows, size = len(group[0].rows), group[0].size
    while waiting and (mixed or (waiting[0].verb == verb and waiting[0].argument == argument)):
        rows += len(waiting[0].rows)
        size += waiting[0].size
        if rows > MAX_ROWS or size > MAX_BYTES:
            break
        group.append(waiting.popleft())
    return group
