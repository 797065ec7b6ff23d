"""A thread that carries out calls in groups: whatever arrives while one group runs is the next group.

There is no linger: the group under way is the only timer. Waiters are woken in one hop a group, and can be
cancelled without harm to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import outcome
import trio

from atm.errors import StoreUnavailable

Result = outcome.Value[Any] | outcome.Error

MAX_ROWS = 1000
MAX_BYTES = 4 * 1024 * 1024


class Call:
    """One caller's batch for one verb; ``result`` is set by whoever executes it.

    Who waits for it: a task (``waiter``), a function that is told in the loop (``told``), or nobody.
    """

    __slots__ = ("argument", "result", "rows", "size", "told", "verb", "waiter")

    def __init__(self, verb: Callable[..., Any], argument: object, rows: Sequence[Any], size: int) -> None:
        self.verb = verb
        self.argument = argument
        self.rows = rows
        self.size = size
        self.waiter: trio.lowlevel.Task | None = None
        self.told: Callable[[Result], None] | None = None
        self.result: Result = outcome.Error(StoreUnavailable("the store is closed"))

    def succeed(self, value: object) -> None:
        self.result = outcome.Value(value)

    def fail(self, error: BaseException) -> None:
        self.result = outcome.Error(error)


def share(calls: list[Call], result: object) -> None:
    """The first call gets the result; those joined to it by chance get the same."""
    for call in calls:
        call.succeed(result)


def fail_all(calls: list[Call], error: BaseException) -> None:
    for call in calls:
        call.fail(error)


class SerialThread:
    """Runs ``execute(calls)`` for group after group, in a thread of its own.

    Args:
        execute: carries out the calls of a group and sets their results. What it raises ends the thread
            and comes out of ``serve``.
        inline: without a thread, in the caller's task; for tests on a virtual clock, which leaps over threads.
    """

    def __init__(self, execute: Callable[[list[Call]], None], *, inline: bool = False) -> None:
        self._execute = execute
        self._inline = inline
        self._inbox: SimpleQueue[Call | None] = SimpleQueue()
        self._open = False
        self._closed = False

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the thread until cancelled; then let it finish what has arrived."""
        self._open = True
        if self._inline:
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._open = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_thread, trio.lowlevel.current_trio_token())
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._open = False
                    self._inbox.put(None)
        finally:
            self._deliver(self._leftovers())

    async def call(
        self, verb: Callable[..., Any], argument: object, rows: Sequence[Any] = (), size: int = 0
    ) -> Any:
        """Have the verb carried out with the next group; its result.

        Args:
            verb, argument: calls with both the same may be carried out as one.
            rows: the batch.
            size: bytes that the batch takes, where it may be much.
        Raises: what the verb raised; StoreUnavailable when the thread has ended.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        call = Call(verb, argument, rows, size)
        if not self._open:
            return call.result.unwrap()
        if self._inline:
            self._execute([call])
            await trio.lowlevel.cancel_shielded_checkpoint()
            return call.result.unwrap()
        call.waiter = trio.lowlevel.current_task()
        self._inbox.put(call)

        def abort(_: object) -> trio.lowlevel.Abort:
            call.waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    async def _run_thread(self, token: trio.lowlevel.TrioToken) -> None:
        await trio.to_thread.run_sync(self._loop, token, limiter=trio.CapacityLimiter(1))

    def _loop(self, token: trio.lowlevel.TrioToken) -> None:
        waiting: deque[Call] = deque()
        while self._receive(waiting):
            group = _as_many_as_fit(waiting)
            try:
                self._execute(group)
            except BaseException:
                token.run_sync_soon(self._deliver, [*group, *waiting])
                raise
            token.run_sync_soon(self._deliver, group)

    def _receive(self, waiting: deque[Call]) -> bool:
        """Add what has arrived; wait if nothing has. False when all is done and no more will come."""
        while True:
            try:
                call = self._inbox.get(block=not waiting and not self._closed)
            except Empty:
                return bool(waiting)
            if call is None:
                self._closed = True
            else:
                waiting.append(call)

    def _leftovers(self) -> list[Call]:
        calls: list[Call] = []
        while True:
            try:
                call = self._inbox.get_nowait()
            except Empty:
                return calls
            if call is not None:
                calls.append(call)

    def _deliver(self, group: list[Call]) -> None:
        for call in group:
            if call.waiter is not None:
                waiter, call.waiter = call.waiter, None
                trio.lowlevel.reschedule(waiter, call.result)


def _as_many_as_fit(waiting: deque[Call]) -> list[Call]:
    """Take out, in order, what one transaction holds; one call at least."""
    group = [waiting.popleft()]
    rows, size = len(group[0].rows), group[0].size
    while waiting:
        rows += len(waiting[0].rows)
        size += waiting[0].size
        if rows > MAX_ROWS or size > MAX_BYTES:
            break
        group.append(waiting.popleft())
    return group
