"""Finds runs that were cancelled and do not end, and tells of them: in the log, the task's log and a metric.

Nothing can end such a run but itself, or the end of the process. Its row stays PROCESSING, with an error that says
so, its slot taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec
import trio

from atm.errors import StoreUnavailable
from atm.executor import name_of
from atm.metrics import Metrics
from atm.nursery.places import whereabouts
from atm.nursery.run import SHUTDOWN, Run
from atm.nursery.worker import Worker, about
from atm.store import Note, Store
from atm.task import LogType, duration

LOOK = 1.0
"""Seconds between two looks."""

LOOK_BATCH = 5000
"""Runs that are looked at without letting others have their turn."""

STUCK_MARGIN = 2.0
"""Seconds beyond the cleanup budget before a cancelled run counts as stuck."""

WRITE_BATCH = 500

logger = logging.getLogger("atm.worker")


class StuckRuns:
    """The runs of a worker that ignore their cancel; and whatever else their logs have to be told of them.

    Args:
        on_stuck: called when one is found that was not known.
    """

    def __init__(self, store: Store, worker: Worker, metrics: Metrics, on_stuck: Callable[[], None]) -> None:
        self._store = store
        self._worker = worker
        self._on_stuck = on_stuck
        self._known: dict[Run, float] = {}
        self._one_write = trio.Lock()
        metrics.stuck_runs.set_function(lambda: self.count)

    @property
    def count(self) -> int:
        return sum(run.ended_at is None for run in self._known)

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await trio.sleep(LOOK)
            self._forget_ended()
            if await self._look():
                self._on_stuck()
            await self.write()

    def _forget_ended(self) -> None:
        for run, since in list(self._known.items()):
            if run.ended_at is not None:
                del self._known[run]
                took = duration(run.ended_at - since)
                logger.warning("task has ended after all, %s after its cancel", took, extra=about(run))

    async def _look(self) -> bool:
        """Tell of those that have become stuck; whether there are any."""
        latest = trio.current_time() - self._worker.cleanup_budget - STUCK_MARGIN
        found = False
        for index, run in enumerate(list(self._worker.runs.values()), start=1):
            if index % LOOK_BATCH == 0:
                await trio.lowlevel.checkpoint()
            if _cancelled_at(run) < latest and run.ended_at is None and run not in self._known:
                self._tell(run, _cancelled_at(run), _cause(run))
                found = True
        return found

    def tell_of_all(self, runs: Iterable[Run], since: float) -> None:
        """The shutdown has cancelled these runs at that time, and they have not ended."""
        for run in runs:
            if run not in self._known:
                self._tell(run, min(since, _cancelled_at(run)), f"the {SHUTDOWN}")

    def _tell(self, run: Run, since: float, cause: str) -> None:
        self._known[run] = since
        age = duration(trio.current_time() - since)
        text = f"task does not end: {cause} cancelled it {age} ago, executor {name_of(run.executor)} ignores that"
        text = f"{text}, at {whereabouts(run)}"
        logger.error(text, extra=about(run))
        run.remarks = [*(run.remarks or ()), text[:1].upper() + text[1:]]
        self._worker.remarked.append(run)

    async def write(self) -> None:
        """Write what the tasks' logs are to be told; while the store is away it is kept.

        What another call is writing has been written, too, when this returns: the process may end then.
        """
        async with self._one_write:
            await self._write()

    async def _write(self) -> None:
        while self._worker.remarked:
            remarked = self._worker.remarked
            batch, self._worker.remarked = remarked[:WRITE_BATCH], remarked[WRITE_BATCH:]
            taken = [(run, run.remarks) for run in batch if run.remarks]
            notes = [
                _note(run, text, is_stuck=run in self._known) for run, remarks in taken for text in remarks or ()
            ]
            for run, _ in taken:
                run.remarks = None
            try:
                await self._store.note(notes)
            except StoreUnavailable:
                for run, remarks in taken:
                    if run.ended_at is None:
                        run.remarks = [*(remarks or ()), *(run.remarks or ())]
                        self._worker.remarked.append(run)
                return


def _note(run: Run, text: object, *, is_stuck: bool) -> Note:
    """In the log; of a run that does not end also in the row, where else nothing but its age would tell."""
    error = {"type": "Stuck", "message": str(text), "retryable": True}
    return Note(
        run.task.task_id,
        run.task.attempt,
        run.context.worker_id,
        str(text),
        LogType.ERROR,
        error_json=msgspec.json.encode(error).decode() if is_stuck else None,
    )


def _cancelled_at(run: Run) -> float:
    """When the run was cancelled, or will be by its timeout."""
    return run.scope.deadline if run.cancelled_at is None else min(run.scope.deadline, run.cancelled_at)


def _cause(run: Run) -> str:
    by_user = run.cancelled_at is not None and run.cancelled_at <= run.scope.deadline
    return "a user" if by_user else f"its timeout of {run.task.timeout:g} s"
