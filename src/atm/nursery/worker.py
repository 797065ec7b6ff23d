"""This node's hands: its slots, the map of what runs in them, what came of it.

take ──▶ claim ──▶ run (one task each, in the runs' nursery) ──▶ record
                     ▲ cancel requests, the heartbeat's look for missed ones
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import trio

from atm import families
from atm.context import Commands, Context
from atm.coordinator import CancelRequest, Coordinator, Hint, TaskEvent, WorkerInfo
from atm.executor import Executor
from atm.flag import Flag
from atm.metrics import Metrics
from atm.nursery.family import Family
from atm.nursery.patience import persist
from atm.nursery.run import Run, attempt
from atm.nursery.slots import Slots
from atm.store import Claimed, Finished, Lease, Note, Outcome, Refusal, Refused, Store
from atm.task import Status, Task, children_ended

RECORD_BATCH = 500
CANCEL_BATCH = 200
"""Runs that are cancelled at a time: ten thousand at once would hold the loop for half a second."""

FAMILY_PAUSE = (0.02, 1.0)
"""Seconds between two looks whether the children of ended runs have ended: the first, and the longest."""

LEASE_MARGIN = 1.0
"""Seconds before the store's end of a lease at which its holder takes it to be over."""

POLL_INTERVAL = 0.1
POLL_BATCH = 100
"""How often, in seconds, and for how many tasks the store is asked while no coordinator can be reached."""

NO_LEASE_PAUSE = 1.0
"""Seconds until a task is offered again that was claimed under a lease that is over."""

logger = logging.getLogger("atm.worker")


class Worker:
    """Takes what the leader hands over, claims it, runs it, records how it ended.

    Args:
        executors: by task type.
        cleanup_budget: seconds that a cancelled run may clean up.
        commands: runs the commands of ``ctx.run_process``.
        address: where this node's API is, for the registry.

    Attributes:
        around: the scopes around all runs: the lease's, and that of the runs' nursery.
        safe_until: when the lease is to be taken for over, by Trio's clock; ``safe_until_clock``, by
            ``time.monotonic``, which other threads can read too.
        remarked: runs with remarks that their tasks' logs have not been told of.
    """

    def __init__(
        self,
        store: Store,
        coordinator: Coordinator,
        metrics: Metrics,
        executors: Mapping[str, Executor],
        *,
        worker_id: str,
        name: str,
        address: str,
        capacity: int,
        cleanup_budget: float,
        commands: Commands | None = None,
    ) -> None:
        self.id = worker_id
        self.name = name
        self.address = address
        self.capacity = capacity
        self.cleanup_budget = cleanup_budget
        self.executors = executors
        self.runs: dict[str, Run] = {}
        self.remarked: list[Run] = []
        self.around: tuple[trio.CancelScope, ...] = ()
        self.lease = Lease(worker_id, 0)
        self.enrolled = False
        self.draining = False
        self.safe_until = -math.inf
        self.safe_until_clock = -math.inf
        self._store = store
        self._coordinator = coordinator
        self._metrics = metrics
        self._commands = commands
        self._one_claim = trio.Lock()
        self._intake_ended = False
        self._waits: set[trio.CancelScope] = set()
        self._claiming: set[str] = set()
        self._early_cancels: set[tuple[str, int]] = set()
        self._ended: list[Run] = []
        self._slots = Slots(capacity)
        self.family = Family(store, coordinator, metrics, self._slots, self._slot_freed)
        self._orphaned: list[Run] = []
        self._to_end_children = Flag()
        self._unrecorded = 0
        self._to_record = Flag()
        self._to_report = Flag()
        self._recorded = trio.Event()
        self._idle = trio.Event()

    @property
    def load(self) -> int:
        """Busy slots: runs whose executor has not ended, but for those that lent theirs."""
        return self._slots.load

    @property
    def busy(self) -> int:
        """Runs whose executor has not ended."""
        return self._slots.runs

    def info(self) -> WorkerInfo:
        return WorkerInfo(
            id=self.id,
            name=self.name,
            address=self.address,
            capacity=self.capacity,
            load=self.load,
            task_types=frozenset(self.executors),
            last_seen=time.time(),
            draining=self.draining,
        )

    async def enrol(self) -> None:
        """Get a new lease, and be announced as able to work. Raises WorkerIdTaken."""
        self.lease = await self._store.register(self.id, self.capacity, sorted(self.executors))
        await self.renew()
        self.enrolled = True
        await self._coordinator.register(self.info())

    async def renew(self) -> float:
        """Renew the lease; the seconds that the store has given it."""
        asked_at, asked_at_clock = trio.current_time(), time.monotonic()
        good_for = await self._store.renew(self.lease)
        self.safe_until = asked_at + good_for - LEASE_MARGIN
        self.safe_until_clock = asked_at_clock + good_for - LEASE_MARGIN
        return good_for

    # intake: stops first

    async def intake(self, runs: trio.Nursery) -> None:
        """Claim what is handed over and start it in ``runs``, until ``end_intake``."""
        while not self._intake_ended:
            hints: list[Hint] = []
            with self._interruptible():
                hints = await self._coordinator.take(self.id)
            if hints:
                async with self._one_claim:
                    await self._claim_and_start(hints, runs)

    async def poll(self, runs: trio.Nursery) -> None:
        """While no coordinator can be reached, look for work in the store, until ``end_intake``."""
        task_types = sorted(self.executors)
        while not self._intake_ended:
            with self._interruptible():
                await self._coordinator.away()
            async with self._one_claim:
                free = 0 if self._intake_ended else min(self.capacity - self.load, POLL_BATCH)
                claimed = []
                if free > 0:
                    claimed = await persist(lambda: self._store.poll(self.lease, task_types, free), "poll")  # noqa: B023
                await self._start_runs(claimed, runs)
            if len(claimed) < POLL_BATCH:
                with self._interruptible():
                    await trio.sleep(POLL_INTERVAL)

    def end_intake(self) -> None:
        """Take nothing more. A claim under way is finished and what it got is run."""
        self._intake_ended = True
        for scope in self._waits:
            scope.cancel()

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """A wait that ``end_intake`` ends."""
        with trio.CancelScope() as scope:
            self._waits.add(scope)
            if self._intake_ended:
                scope.cancel()
            try:
                yield
            finally:
                self._waits.discard(scope)

    async def _claim_and_start(self, hints: list[Hint], runs: trio.Nursery) -> None:
        free = max(0, self.capacity - self.load)
        if hints[free:]:
            # Handed over while polling has filled the slots.
            await self._coordinator.settle(self.id, hints[free:], self.load)
            await self._coordinator.push(hints[free:])
            hints = hints[:free]
        self._claiming = {hint.task_id for hint in hints}
        try:
            verdicts = await self._claim(hints)
        finally:
            self._claiming = set()
        await self._start(hints, verdicts, runs)
        self._early_cancels.clear()

    async def _claim(self, hints: list[Hint]) -> list[Claimed | Refused]:
        ids = [hint.task_id for hint in hints]
        return await persist(lambda: self._store.claim(self.lease, ids), "claim")

    async def _start(self, hints: list[Hint], verdicts: list[Claimed | Refused], runs: trio.Nursery) -> None:
        blocked: list[Hint] = []
        settled: list[Hint] = []
        later: list[Hint] = []
        claimed: list[Claimed] = []
        expired: list[Hint] = []
        unused: dict[str, int] = {}
        for hint, verdict in zip(hints, verdicts, strict=True):
            if isinstance(verdict, Claimed):
                claimed.append(verdict)
            elif verdict.reason is Refusal.BLOCKED:
                blocked.append(hint)
                continue
            else:
                unused[hint.task_type] = unused.get(hint.task_type, 0) + 1
                if verdict.reason is Refusal.EXPIRED:
                    expired.append(hint)
                if verdict.reason in (Refusal.NOT_DUE, Refusal.NO_LEASE):
                    pause = verdict.due_in or NO_LEASE_PAUSE
                    later.append(Hint(hint.task_id, hint.task_type, hint.priority, pause))
            settled.append(hint)
        await self._start_runs(claimed, runs)
        if blocked:
            await self._coordinator.block(self.id, blocked)
        await self._coordinator.settle(self.id, settled, self.load)
        for task_type, count in unused.items():
            await self._coordinator.unblock(task_type, count)
        if later:
            await self._coordinator.push(later)
        if expired:
            await self._publish_ends((hint.task_id, Status.TIMEOUT) for hint in expired)

    async def _start_runs(self, claimed: list[Claimed], runs: trio.Nursery) -> None:
        now = trio.current_time()
        for verdict in claimed:
            self._start_run(verdict, runs, now)
        self._metrics.wait.observe([_wait(verdict.task) for verdict in claimed])
        await self._coordinator.publish([TaskEvent(v.task.task_id, Status.PROCESSING) for v in claimed])

    def _start_run(self, claimed: Claimed, runs: trio.Nursery, now: float) -> None:
        task = claimed.task
        run = Run(task, claimed.settings, self.executors[task.task_type], now)
        run.context = Context(
            task,
            self.id,
            run.scope,
            self._note,
            self.cleanup_budget,
            family=self.family,
            around=self.around,
            commands=self._commands,
        )
        self.runs[task.task_id] = run
        self._slots.take()
        if (task.task_id, task.attempt) in self._early_cancels:
            run.cancel()
        runs.start_soon(attempt, run, self._run_ended, name=task.task_type)

    async def _note(self, note: Note) -> None:
        """A log row is waited for while the store is away; progress is not worth that."""
        if note.progress_json is not None:
            await self._store.note([note])
        else:
            await persist(lambda: self._store.note([note]), "log")

    # cancels

    def on_cancel(self, request: CancelRequest) -> None:
        """End the run, if this attempt of the task runs here; remember it if it is just being claimed."""
        run = self.runs.get(request.task_id)
        if run is not None and run.task.attempt == request.attempt:
            run.cancel()
        elif request.task_id in self._claiming:
            self._early_cancels.add((request.task_id, request.attempt))

    async def reconcile(self, older_than: float, lease: Lease | None = None) -> None:
        """Compare the store's rows with what runs: end runs whose cancel was missed, release rows without one.

        Args:
            older_than: seconds; rows claimed since may be on their way here.
            lease: a former one of this worker; None takes the present one.
        """
        strays: list[Outcome] = []
        missed: list[Run] = []
        for held in await self._store.held(lease or self.lease):
            run = self.runs.get(held.task_id)
            if run is not None and run.task.attempt == held.attempt:
                if held.cancel_requested and run.cancelled_at is None:
                    missed.append(run)
            elif held.age >= older_than and held.task_id not in self._claiming:
                message = "Released by its worker: not running there"
                strays.append(
                    Outcome(task_id=held.task_id, attempt=held.attempt, status=Status.PENDING, message=message)
                )
        await _each(missed, Run.cancel)
        if strays:
            await self._release(strays)

    async def stop_runs(self, reason: str) -> None:
        """Cancel all runs; their tasks are released when they have ended."""
        await _each(self.unended(), lambda run: run.stop(reason))

    async def _release(self, strays: list[Outcome]) -> None:
        verdicts = await self._store.finish(self.lease, strays)
        ends = [(outcome.task_id, v.status) for outcome, v in zip(strays, verdicts, strict=True) if v.status]
        parents = [outcome.task_id for outcome, v in zip(strays, verdicts, strict=True) if v.children]
        if parents:
            # At another beat, when their children have ended.
            await families.cancel_children(self._store, self._coordinator, parents)
        if ends:
            logger.warning("released %d tasks that were claimed but do not run", len(ends))
            await self._publish_ends(ends)

    async def _publish_ends(self, ends: Iterable[tuple[str, Status]]) -> None:
        events = [TaskEvent(task_id, status) for task_id, status in ends if status is not Status.PENDING]
        await self._coordinator.publish(events)

    # what came of it

    def _run_ended(self, run: Run) -> None:
        self._ended.append(run)
        self._slots.leave()
        self._unrecorded += 1
        self._to_record.set()
        self._to_report.set()
        if not self._slots.runs:
            self._idle.set()

    def _slot_freed(self) -> None:
        self._to_report.set()

    async def report(self) -> None:
        """Tell the coordinator of freed slots at once, without waiting for the record."""
        while True:
            await self._to_report.wait()
            await self._coordinator.settle(self.id, (), self.load)

    async def record(self) -> None:
        """Write outcomes in batches: whatever ended during one commit is the next batch."""
        while True:
            await self._to_record.wait()
            while self._ended:
                batch, self._ended = self._ended[:RECORD_BATCH], self._ended[RECORD_BATCH:]
                await self._record(batch)
            self._recorded.set()

    async def _record(self, batch: list[Run]) -> None:
        outcomes = [run.outcome for run in batch]
        verdicts = await persist(lambda: self._store.finish(self.lease, outcomes), "record")
        again: list[Hint] = []
        ends: list[tuple[str, Status]] = []
        seconds: dict[tuple[str, Status], list[float]] = {}
        room: dict[str, int] = {}
        retried = 0
        for run, verdict in zip(batch, verdicts, strict=True):
            if verdict.children:
                self._orphaned.append(run)
                self._to_end_children.set()
                continue
            self._unrecorded -= 1
            task = run.task
            if self.runs.get(task.task_id) is run:
                del self.runs[task.task_id]
            room[task.task_type] = room.get(task.task_type, 0) + 1
            if verdict.status is None:
                self._metrics.stale_results.inc()
                logger.warning("result refused as stale", extra=about(run))
                continue
            run.context.count_reaped("children", verdict.ended_with)
            ends.append((task.task_id, verdict.status))
            ended_as = verdict.status
            if ended_as is Status.PENDING:
                again.append(Hint(task.task_id, task.task_type, task.priority, verdict.due_in))
                ended_as = run.outcome.status
                retried += ended_as is not Status.PENDING
            if ended_as is not Status.PENDING:
                seconds.setdefault((task.task_type, ended_as), []).append(run.seconds)
            if ended_as is not Status.SUCCESS:
                _tell(run, ended_as, verdict)
        self._metrics.retries.inc(retried)
        for (task_type, status), values in seconds.items():
            self._metrics.ended(task_type, status, values)
        for task_type, count in room.items():
            await self._coordinator.unblock(task_type, count)
        if again:
            await self._coordinator.push(again)
        await self._publish_ends(ends)

    async def end_children(self) -> None:
        """End the children of runs that have ended for good, and have those recorded when that is done."""
        while True:
            await self._to_end_children.wait()
            runs, self._orphaned = self._orphaned, []
            first, longest = FAMILY_PAUSE
            pause = longest
            for run in runs:
                cancel = partial(families.cancel_children, self._store, self._coordinator, [run.task.task_id])
                await persist(cancel, "cancel children")
                pause = min(pause, first * 1.5 ** min(run.looks, 10))
                run.looks += 1
            await trio.sleep(pause)
            # Those whose children live still come back here.
            self._ended += runs
            self._to_record.set()

    def unended(self) -> list[Run]:
        """Runs whose executor has not ended."""
        return [run for run in self.runs.values() if run.ended_at is None]

    async def idle(self) -> None:
        """Return when no executor runs."""
        while self._slots.runs:
            self._idle = trio.Event()
            await self._idle.wait()

    async def all_recorded(self) -> None:
        """Return when every run that has ended is recorded."""
        while self._unrecorded:
            self._recorded = trio.Event()
            await self._recorded.wait()


def _wait(task: Task) -> float:
    """Seconds from due to claimed, by the store's clock."""
    return max(0, (task.started_ms or 0) - task.due_ms) / 1000


def _tell(run: Run, ended_as: Status, verdict: Finished) -> None:
    """A log line of an attempt that did not succeed."""
    if ended_as is Status.PENDING:
        logger.info("task released: %s", run.outcome.message, extra=about(run))
        return
    more = ", will be retried" if verdict.status is Status.PENDING else children_ended(verdict.ended_with)
    level = logging.INFO if ended_as is Status.CANCELLED else logging.WARNING
    logger.log(level, "task %s: %s%s", ended_as, run.outcome.message, more, extra=about(run))


async def _each(runs: Sequence[Run], cancel: Callable[[Run], None]) -> None:
    for index, run in enumerate(runs, start=1):
        cancel(run)
        if index % CANCEL_BATCH == 0:
            await trio.lowlevel.checkpoint()


def about(run: Run) -> dict[str, Any]:
    return {"task_id": run.task.task_id, "task_type": run.task.task_type, "attempt": run.task.attempt}
