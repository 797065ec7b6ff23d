"""READ THIS FIRST: the nested nurseries that are the node's life, and their order its death.

    opened                         executors, each in a task of its own                stop last of all
    └─ root                        store, coordinator, listeners, metrics, recorder
       └─ front                    HTTP API: answers while runs finish
          ├─ leading ─ term        scanner, recovery, retention: end with the term; stops first
          └─ right (scope)         the worker's lease, one after the other: to lose it is to be cancelled
             └─ runs               end when they are done, or at the end of the grace time
                └─ intake          takes ids, starts runs in ``runs``; stops first

A service is an async function that runs until it is cancelled.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from atm.coordinator import Balance, Coordinator
from atm.errors import StartError, StoreUnavailable, WorkerIdTaken
from atm.executor import Executor, name_of
from atm.health import Health
from atm.imports import one_line
from atm.metrics import Metrics
from atm.nursery import recovery, scanner, stuck
from atm.nursery.election import stand_in
from atm.nursery.heartbeat import beat
from atm.nursery.left_open import generators_kept
from atm.nursery.run import SHUTDOWN, is_run
from atm.nursery.stuck import StuckRuns
from atm.nursery.worker import Worker
from atm.store import Store

STUCK_EXIT = 70
"""EX_SOFTWARE of sysexits.h."""

SETTLED_INTERVAL = 0.5
"""Seconds between two looks, in a drain, whether only stuck runs are left."""

ENROL_INTERVAL = 0.5
ENROL_MARGIN = 1.0
"""Seconds between two tries to get a lease under an id that is in use, and beyond that lease's end."""

CLAIM_PATIENCE = 2.0
"""Seconds that a stopping node waits for the store to answer a claim."""

RECORD_PATIENCE = 10.0
"""Seconds that a stopping node waits for the store to take the last outcomes."""

logger = logging.getLogger("atm.node")

Service = Callable[..., Awaitable[Any]]


@dataclass
class Parts:
    """What ``node.py`` has put together. ``worker`` and ``balance`` are None where their role is off."""

    store: Store
    coordinator: Coordinator
    metrics: Metrics
    health: Health
    worker: Worker | None
    balance: Balance | None
    leader_id: str
    scan_interval: float
    batch_size: int
    heartbeat_interval: float
    grace: float
    retention: float | None
    listeners: list[Service] = field(default_factory=list)
    servers: list[Service] = field(default_factory=list)
    """Each is started, takes ``stop`` (an async function that returns when it is to stop), ends by itself."""
    executors: list[Executor] = field(default_factory=list)
    closing_budget: float = 5.0
    """Seconds that each executor may take to close."""
    limit_dying: Callable[[], None] = lambda: None
    """Sets a time limit to the rest of the process's life."""
    exit_process: Callable[[int], Any] = os._exit
    exit_when_stuck: bool = False
    """Drain and end with STUCK_EXIT as soon as a run is stuck."""
    has_given_up: bool = False
    """It was so."""


async def supervise(parts: Parts, stop: trio.Event, task_status: trio.TaskStatus[None]) -> None:
    """Be the node until ``stop`` is set; then drain and return.

    A run that does not end though it was cancelled ends the process with STUCK_EXIT, everything else recorded:
    its row stays PROCESSING and is recovered by whoever comes next.
    Raises: SystemExit with STUCK_EXIT when a stuck run was the reason to stop, and ended after all.
    """
    async with trio.open_nursery() as opened:
        closing = trio.Event()
        for executor in parts.executors:
            await opened.start(_keep_open, executor, closing, parts.closing_budget)
        await _serve(parts, stop, task_status)
        closing.set()
    if parts.has_given_up:
        raise SystemExit(STUCK_EXIT)


async def _serve(parts: Parts, stop: trio.Event, task_status: trio.TaskStatus[None]) -> None:
    async with trio.open_nursery() as root:
        root.start_soon(_do_not_linger, parts)
        await root.start(parts.store.run)
        await root.start(parts.coordinator.run)
        for listener in parts.listeners:
            await root.start(listener)
        if parts.worker is not None:
            await _start_worker_services(root, parts, parts.worker)
        async with trio.open_nursery() as front:
            for server in parts.servers:
                await front.start(partial(server, stop=parts.health.stopping.wait))
            parts.health.started = True
            task_status.started()
            try:
                await _work(parts, stop)
            finally:
                parts.health.stopping.set()
        root.cancel_scope.cancel(reason=SHUTDOWN)


async def _keep_open(
    executor: Executor, closing: trio.Event, budget: float, *, task_status: trio.TaskStatus[None]
) -> None:
    """Open the executor, and close it when asked, within the budget (seconds)."""
    name = executor.type or name_of(executor)
    opened = False
    with trio.CancelScope() as scope:
        try:
            async with executor:
                opened = True
                task_status.started()
                await closing.wait()
                scope.deadline = trio.current_time() + budget
        except Exception as error:
            if not opened:
                raise StartError(f"executor {name} cannot be opened: {one_line(error)}") from error
            logger.error("executor %s was not closed well: %s", name, one_line(error))
    if scope.cancelled_caught:
        logger.error("executor %s was not closed within %g s", name, budget)


async def _do_not_linger(parts: Parts) -> None:
    """When the node dies of an error, a run that swallows its cancel must not keep it half alive."""
    try:
        await trio.sleep_forever()
    finally:
        parts.limit_dying()


async def _start_worker_services(root: trio.Nursery, parts: Parts, worker: Worker) -> None:
    root.start_soon(worker.record)
    root.start_soon(worker.report)
    root.start_soon(worker.end_children)
    root.start_soon(worker.family.look)
    root.start_soon(worker.family.listen)
    await root.start(parts.coordinator.listen_cancels, worker.id, worker.on_cancel)
    try:
        await worker.enrol()
    except WorkerIdTaken as taken:
        logger.warning("%s; tasks run here once its lease is over", taken)
    except StoreUnavailable as error:
        logger.error("no lease yet: %s", error)


async def _work(parts: Parts, stop: trio.Event) -> None:
    """Lead and run until ``stop``; then let the runs end, and leave the store without a trace of this node."""
    async with trio.open_nursery() as working:
        if parts.balance is not None:
            working.start_soon(_lead, parts, stop)
        if parts.worker is not None:
            working.start_soon(_run_tasks, parts, parts.worker, stop)
        await stop.wait()
        parts.health.draining = True


async def _lead(parts: Parts, stop: trio.Event) -> None:
    async with trio.open_nursery() as leading:
        leading.start_soon(parts.coordinator.lead, parts.leader_id, partial(_term, parts))
        recovery_round = recovery.Recovery(parts.store, parts.coordinator, parts.metrics)
        leading.start_soon(stand_in, parts.coordinator, parts.store, parts.leader_id, recovery_round)
        await stop.wait()
        leading.cancel_scope.cancel(reason=SHUTDOWN)


async def _run_tasks(parts: Parts, worker: Worker, stop: trio.Event) -> None:
    """Run tasks until ``stop``."""
    stuck_runs = StuckRuns(parts.store, worker, parts.metrics, partial(_give_up, parts, stop))
    if not worker.enrolled and not await _enrol(worker, stop):
        return
    with generators_kept(is_run):
        await _run_under_leases(parts, worker, stuck_runs, stop)


async def _run_under_leases(parts: Parts, worker: Worker, stuck_runs: StuckRuns, stop: trio.Event) -> None:
    """Under one lease after the other."""
    while not await _run_under_lease(parts, worker, stuck_runs, stop):
        parts.metrics.lease_losses.inc()
        logger.error("the worker's lease was lost: its tasks are given to others")
        # What was handed over and not claimed goes back to the queues.
        await parts.coordinator.unregister(worker.id)
        await _record_rest(worker)
        former = worker.lease
        if not await _enrol(worker, stop):
            return
        try:
            await worker.reconcile(older_than=0, lease=former)
        except StoreUnavailable as error:
            logger.error("the former lease's tasks are left to the leader: %s", error)
    await _leave(parts, worker)


def _give_up(parts: Parts, stop: trio.Event) -> None:
    """A run is stuck."""
    if not parts.exit_when_stuck or parts.has_given_up:
        return
    logger.critical("worker.stuck is exit: the node drains and ends")
    parts.has_given_up = True
    if not stop.is_set():
        parts.limit_dying()
        stop.set()


async def _enrol(worker: Worker, stop: trio.Event) -> bool:
    """Get a lease, waiting for that of a former process of this id to end; False when ``stop`` came first.

    Raises: WorkerIdTaken when the other process goes on living.
    """
    patience: float | None = None
    while not stop.is_set():
        try:
            await worker.enrol()
            return True
        except StoreUnavailable as error:
            logger.error("cannot get a lease yet: %s", error)
        except WorkerIdTaken as taken:
            if taken.wait is None or (patience is not None and trio.current_time() > patience):
                raise
            patience = patience or trio.current_time() + taken.wait + ENROL_MARGIN
        with trio.move_on_after(ENROL_INTERVAL):
            await stop.wait()
    return False


async def _run_under_lease(parts: Parts, worker: Worker, stuck_runs: StuckRuns, stop: trio.Event) -> bool:
    """Run tasks until ``stop`` and let them end (True), or until the lease is lost (False)."""
    with trio.CancelScope(deadline=worker.safe_until) as right:
        async with trio.open_nursery() as holding:
            holding.start_soon(beat, worker, parts.coordinator, right, parts.heartbeat_interval)
            holding.start_soon(stuck_runs.watch)
            async with trio.open_nursery() as runs:
                worker.around = (right, runs.cancel_scope)
                async with trio.open_nursery() as intake:
                    intake.start_soon(worker.intake, runs)
                    intake.start_soon(worker.poll, runs)
                    await stop.wait()
                    worker.end_intake()
                    intake.cancel_scope.deadline = trio.current_time() + CLAIM_PATIENCE
                # Not in here: what cancels the runs must not be cancelled with them.
                holding.start_soon(_drain, parts, worker, stuck_runs, runs)
            holding.cancel_scope.cancel(reason=SHUTDOWN)
    return not right.cancelled_caught


async def _drain(parts: Parts, worker: Worker, stuck_runs: StuckRuns, runs: trio.Nursery) -> None:
    """Let runs finish within the grace time, then cancel them. Nobody waits for those that are stuck."""
    worker.draining = True
    await parts.coordinator.register(worker.info())
    if worker.busy:
        logger.info("draining: %d tasks get up to %g s to finish", worker.busy, parts.grace)
    with trio.move_on_after(parts.grace):
        await _settled(worker, stuck_runs)
    if not worker.busy:
        return
    logger.warning("grace time is over: %d tasks are cancelled and released", worker.busy)
    cancelled_at = trio.current_time()
    await worker.stop_runs(SHUTDOWN)
    runs.cancel_scope.cancel(reason=SHUTDOWN)
    with trio.move_on_after(worker.cleanup_budget + stuck.STUCK_MARGIN):
        await _settled(worker, stuck_runs)
    if not worker.busy:
        return
    stuck_runs.tell_of_all(worker.unended(), cancelled_at)
    await _record_rest(worker)
    with trio.move_on_after(RECORD_PATIENCE):
        await stuck_runs.write()
    logging.shutdown()
    parts.exit_process(STUCK_EXIT)


async def _settled(worker: Worker, stuck_runs: StuckRuns) -> None:
    """Return when nothing runs but what is stuck."""
    while worker.busy > stuck_runs.count:
        with trio.move_on_after(SETTLED_INTERVAL):
            await worker.idle()


async def _leave(parts: Parts, worker: Worker) -> None:
    await _record_rest(worker)
    try:
        await worker.reconcile(older_than=0)
        await parts.store.retire(worker.lease)
    except StoreUnavailable as error:
        logger.error("left without signing off: %s", error)
    await parts.coordinator.unregister(worker.id)


async def _record_rest(worker: Worker) -> None:
    with trio.move_on_after(RECORD_PATIENCE):
        await worker.all_recorded()
        return
    logger.error("the store did not take the last outcomes; those tasks will be recovered and run again")


async def _term(parts: Parts) -> None:
    """The leader's duties; they live and die with the term."""
    assert parts.balance is not None
    store, coordinator = parts.store, parts.coordinator
    recover = recovery.Recovery(store, coordinator, parts.metrics)
    async with trio.open_nursery() as term:
        term.start_soon(scanner.scan, coordinator, parts.balance, parts.scan_interval, parts.batch_size)
        term.start_soon(recovery.repeat, recover, recovery.EXPIRE_INTERVAL)
        term.start_soon(_rebuild_then_sweep, parts)
        if parts.retention is not None:
            purge = partial(recovery.purge, store, parts.retention)
            term.start_soon(recovery.repeat, purge, recovery.PURGE_INTERVAL)


async def _rebuild_then_sweep(parts: Parts) -> None:
    while True:
        try:
            await recovery.rebuild(parts.store, parts.coordinator)
            break
        except StoreUnavailable as error:
            logger.error("queues not rebuilt yet: %s", error)
            await trio.sleep(recovery.SWEEP_INTERVAL)
    sweep = partial(recovery.sweep, parts.store, parts.coordinator)
    await recovery.repeat(sweep, recovery.SWEEP_INTERVAL)
