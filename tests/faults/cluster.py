"""Three nodes over MariaDB and Redis, under load, while nodes and servers are killed, paused and emptied.

    python -m tests.faults.cluster --minutes 5 --rate 60 --seed 7

Exits 1 if an invariant of checker.py was broken. The folder with all that was left is kept with --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from atm.task import TERMINAL
from servers import MariaDb, RedisServer, Server

from . import evidence as looking
from .checker import Violation, check
from .evidence import Evidence, LogRow, RunLines
from .ledger import Ledger
from .load import TASK_TYPES, Load
from .seat import Door, Seat, SeatLife
from .wire import LostError, NotSentError

NODES = 3
INTERVAL = 2.5
"""Seconds between two faults, in the mean."""

LONG_NAPS = 0.12
"""The part of the naps that last for seconds."""

END_PATIENCE = 150.0
"""Seconds in which all tasks must have ended after the last fault."""

CLEAR_PATIENCE = 40.0
"""Seconds in which the queues must be empty once all tasks have ended: longer than a lost worker is remembered."""

LOGS_READ_BY_API = 200
DATABASE = "atm_chaos"

BY_RECOVERY = ("Recovered: ", "Cancelled; the worker was lost", "Worker lost ")
"""How the messages begin by which the leader takes a task from a lost worker."""

CANCEL_MARKS = "task:cancel:"
"""Keys that are left for an hour."""

STALE = "result refused as stale"

T = TypeVar("T")


@dataclass
class Report:
    evidence: Evidence
    violations: list[Violation]
    faults: Counter[str]
    history: list[str]
    seats: list[Seat]
    door: Door
    rate: float
    seed: int
    stats: dict[str, Any]

    def text(self) -> str:
        rows = _rows(self)
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        for violation in self.violations[:40]:
            lines.append(f"  {violation}")
            lines += [f"      {step}" for step in self._story(violation.task_id)]
        return "\n".join(lines)

    def _story(self, task_id: str) -> Iterator[str]:
        """What happened to a task, in the words of its log and its executors."""
        began = min((row.at_ms for row in self.evidence.logs.get(task_id, [])), default=0)
        for row in self.evidence.logs.get(task_id, []):
            arrow = f"{row.source}→{row.target}" if row.source or row.target else row.log_type
            yield f"{row.at_ms - began:+7} ms  attempt {row.attempt}  {arrow}  {row.message[:80]}"
        for (owner, attempt), run in sorted(self.evidence.runs.items()):
            if owner == task_id:
                started = f"{run.start_ns // 1_000_000 - began:+7} ms"
                ended = "never" if run.end_ns is None else f"{run.end_ns // 1_000_000 - began:+}"
                yield f"{started}  attempt {attempt} ran in life {run.life}, ended {ended}"


@dataclass
class Storm:
    """The faults: one after the other begins at a random moment, and some last into the next."""

    seats: list[Seat]
    mariadb: MariaDb
    redis: RedisServer
    luck: random.Random
    say: Callable[[str], Any]
    faults: Counter[str] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)
    exits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._servers: set[str] = set()
        self._thread = trio.CapacityLimiter(2)
        self._names = itertools.count(1)
        self._last_id: dict[str, str | None] = {}

    async def rage(self, seconds: float) -> None:
        """Returns when all is up again."""
        kinds = {
            self._kill_node: 4,
            self._stop_node: 2,
            self._pause_node: 3,
            self._kill_redis: 2,
            self._flush_redis: 1.5,
            self._pause_redis: 2,
            self._kill_mariadb: 0.8,
            self._pause_mariadb: 0.8,
        }
        ending = trio.current_time() + seconds
        async with trio.open_nursery() as under_way:
            while True:
                await trio.sleep(min(0.3 + self.luck.expovariate(1 / INTERVAL), 3 * INTERVAL))
                if trio.current_time() > ending:
                    break
                (fault,) = self.luck.choices(list(kinds), list(kinds.values()))
                under_way.start_soon(fault)
        for seat in self.seats:
            await self._revive(seat)
            await seat.ready()

    def _note(self, kind: str, text: str) -> None:
        self.faults[kind] += 1
        self._tell(text)

    def _tell(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {time.monotonic() - self._began:6.1f} s  {text}"
        self.history.append(line)
        self.say(line)

    @contextmanager
    def _some_seat(self) -> Iterator[Seat | None]:
        """A node that is well; None where another one would be the last."""
        well = [seat for seat in self.seats if not seat.busy]
        if len(well) < 2:
            yield None
            return
        seat = self.luck.choice(well)
        seat.busy = True
        try:
            yield seat
        finally:
            seat.busy = False

    @contextmanager
    def _alone(self, server: str) -> Iterator[bool]:
        if server in self._servers:
            yield False
            return
        self._servers.add(server)
        try:
            yield True
        finally:
            self._servers.discard(server)

    async def _revive(self, seat: Seat) -> None:
        """Start a node again that has ended by itself."""
        if not seat.look():
            self._tell(seat.self_ended[-1])
            await seat.up(None)

    def _worker_id(self, seat: Seat) -> str | None:
        """That of the new node: the default one, a new name, or the name of the node before."""
        chance = self.luck.random()
        name = self._last_id.get(seat.name) if chance < 0.3 else None
        if name is None and chance < 0.65:
            name = f"{seat.name}-{next(self._names)}"
        self._last_id[seat.name] = name
        return name

    async def _kill_node(self) -> None:
        with self._some_seat() as seat:
            if seat is None:
                return
            await self._revive(seat)
            seat.kill()
            gap = self.luck.choice((0.0, self.luck.uniform(0, 4)))
            again = self._worker_id(seat)
            self._note("node killed", f"kill -9 of {seat.name}, back after {gap:.1f} s as {again or 'itself'}")
            await trio.sleep(gap)
            await seat.up(again)

    async def _stop_node(self) -> None:
        with self._some_seat() as seat:
            if seat is None:
                return
            await self._revive(seat)
            again = self._worker_id(seat)
            self._note("node stopped", f"SIGTERM to {seat.name}, back as {again or 'itself'}")
            outage = bool(self._servers)
            status = await seat.stop()
            if status != 0:
                self.exits.append(f"{seat.name} ended with {status} on SIGTERM")
                self._tell(self.exits[-1])
            seat.lives[-1].left_ill = outage or bool(self._servers)
            await seat.up(again)

    async def _pause_node(self) -> None:
        with self._some_seat() as seat:
            if seat is None:
                return
            await self._revive(seat)
            seconds = self.luck.uniform(1, 20)
            self._note("node paused", f"SIGSTOP of {seat.name} for {seconds:.1f} s")
            await seat.pause(seconds)
            self._tell(f"{seat.name} goes on")

    async def _kill_redis(self) -> None:
        with self._alone("redis") as free:
            if free:
                gap = self.luck.choice((0.0, self.luck.uniform(0, 4)))
                self._note("Redis killed", f"kill -9 of Redis, back empty after {gap:.1f} s")
                await self._in_thread(self.redis.kill)
                await trio.sleep(gap)
                await self._in_thread(self.redis.start)

    async def _flush_redis(self) -> None:
        with self._alone("redis") as free:
            if free:
                self._note("Redis flushed", "FLUSHALL")
                await self._in_thread(self.redis.flushall)

    async def _pause_redis(self) -> None:
        with self._alone("redis") as free:
            if free:
                seconds = self.luck.uniform(0.5, 3)
                self._note("Redis paused", f"SIGSTOP of Redis for {seconds:.1f} s")
                self.redis.pause()
                try:
                    await trio.sleep(seconds)
                finally:
                    self.redis.resume()

    async def _kill_mariadb(self) -> None:
        with self._alone("mariadb") as free:
            if free:
                gap = self.luck.choice((0.0, self.luck.uniform(0, 3)))
                self._note("MariaDB killed", f"kill -9 of MariaDB, back after {gap:.1f} s")
                await self._in_thread(self.mariadb.kill)
                await trio.sleep(gap)
                await self._in_thread(self.mariadb.start)

    async def _pause_mariadb(self) -> None:
        with self._alone("mariadb") as free:
            if free:
                seconds = self.luck.choice((self.luck.uniform(0.5, 4), self.luck.uniform(4, 14)))
                self._note("MariaDB paused", f"SIGSTOP of MariaDB for {seconds:.1f} s")
                self.mariadb.pause()
                try:
                    await trio.sleep(seconds)
                finally:
                    self.mariadb.resume()

    async def _in_thread(self, verb: Callable[[], Server | None]) -> None:
        await trio.to_thread.run_sync(verb, limiter=self._thread)


async def run(
    folder: Path, *, seconds: float, rate: float, seed: int, say: Callable[[str], Any] = lambda text: None
) -> Report:
    """Rage for so many seconds, let everything end, and check."""
    luck = random.Random(seed)
    with MariaDb() as mariadb, RedisServer() as redis:
        mariadb.create_database(DATABASE)
        environ = {**mariadb.environ(DATABASE), **redis.environ()}
        numbers = itertools.count(1)
        seats = [Seat(f"n{n}", folder / f"n{n}", environ, numbers) for n in range(1, NODES + 1)]
        try:
            storm = Storm(seats, mariadb, redis, random.Random(luck.random()), say)
            return await _run(storm, seconds, rate, seed, luck)
        finally:
            for seat in seats:
                seat.make_sure_it_ended()


async def _run(storm: Storm, seconds: float, rate: float, seed: int, luck: random.Random) -> Report:
    seats, began = storm.seats, time.monotonic()
    ledger, door = Ledger(), Door(seats)
    # Some tasks are long enough to run elsewhere when a node wakes up that had them.
    load = Load(door, ledger, rate, random.Random(luck.random()), long=LONG_NAPS)
    async with trio.open_nursery() as starting:
        for seat in seats:
            starting.start_soon(seat.up, None)
    for name, settings in TASK_TYPES.items():
        await seats[0].wire.request("PUT", f"/api/v1/task-types/{name}", settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run)
        await storm.rage(seconds)
        load_seconds = time.monotonic() - began
        load.stop()
    storm._tell("load and faults are over")
    aftermath: list[Violation] = []
    ended = await _within(END_PATIENCE, partial(_all_ended, door))
    if not ended:
        aftermath.append(Violation("A", "", f"not all tasks had ended after {END_PATIENCE:g} s"))
    drained_after = time.monotonic() - began - load_seconds
    storm._tell("all tasks have ended")
    served = await looking.read_api(door)
    sample = luck.sample(sorted(served), min(LOGS_READ_BY_API, len(served)))
    served_logs = {task_id: await looking.read_api_log(door, task_id) for task_id in sample}
    aftermath += await _look_at_queues(storm)
    stats = {"load_seconds": load_seconds, "drained_after": drained_after, **_footprint(seats)}
    aftermath += await _stop_all(storm)
    keys = sorted(key for key in storm.redis.call("KEYS", "*") if not key.startswith(CANCEL_MARKS))
    stats["keys"] = ", ".join(keys)
    aftermath += _leftovers(storm, keys)
    tasks, logs = looking.read_tables(lambda statements: storm.mariadb.sql(statements, DATABASE))
    runs, twice = looking.read_runs(*(seat.runs for seat in seats))
    lives: list[SeatLife] = sorted((life for seat in seats for life in seat.lives), key=lambda life: life.number)
    aftermath += _healthy_are_not_robbed(logs, runs, lives)
    _end_with_recovery(logs, runs, lives)
    evidence = Evidence(ledger, list(lives), tasks, logs, served, served_logs, runs, twice)
    aftermath += [Violation("X", "", what) for seat in seats for what in [*seat.self_ended, *_crashes(seat)]]
    aftermath += [Violation("X", "", what) for what in storm.exits]
    stats["seconds"] = time.monotonic() - began
    violations = [*aftermath, *check(evidence)]
    return Report(evidence, violations, storm.faults, storm.history, seats, door, rate, seed, stats)


async def _within(patience: float, happened: Callable[[], Awaitable[T]]) -> T:
    """What ``happened`` gives, once that is something, or when patience is over."""
    deadline = trio.current_time() + patience
    while True:
        found = await happened()
        if found or trio.current_time() > deadline:
            return found
        await trio.sleep(0.1)


async def _all_ended(door: Door) -> bool:
    """Whether each task was terminal when it was read: nobody opens one again now."""
    try:
        for status in ("PENDING", "PROCESSING"):
            if (await looking.get(door, f"/api/v1/tasks?status={status}&limit=1"))["tasks"]:
                return False
        served = await looking.read_api(door)
    except (NotSentError, LostError):
        return False
    return all(task["status"] in TERMINAL for task in served.values())


async def _look_at_queues(storm: Storm) -> list[Violation]:
    """S: nothing is left in the queues once nothing waits."""

    async def empty() -> bool:
        return not _queued(storm.redis)

    if await _within(CLEAR_PATIENCE, empty):
        return []
    return [Violation("S", "", f"{key} still holds {count}") for key, count in _queued(storm.redis).items()]


def _queued(redis: RedisServer) -> dict[str, int]:
    counters = {"list": "LLEN", "zset": "ZCARD"}
    found = {}
    for key in redis.call("KEYS", "*"):
        kind = redis.call("TYPE", key)
        if kind in counters and (count := redis.call(counters[kind], key)):
            found[key] = count
    return found


def _footprint(seats: list[Seat]) -> dict[str, Any]:
    """The largest of the nodes, as the system counts it."""
    memory, files = [], []
    for seat in seats:
        status = Path(f"/proc/{seat.pid}/status").read_text()
        memory += [int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS")]
        files.append(len(os.listdir(f"/proc/{seat.pid}/fd")))
    return {"memory": max(memory), "files": max(files)}


async def _stop_all(storm: Storm) -> list[Violation]:
    found = []
    for seat in storm.seats:
        await seat.wire.aclose()
        if seat.look() and (status := await seat.stop()) != 0:
            found.append(Violation("X", "", f"{seat.name} ended with {status} on the last SIGTERM"))
    return found


def _leftovers(storm: Storm, keys: list[str]) -> list[Violation]:
    """S and O: what the nodes have left behind."""
    found = []
    for key in keys:
        if storm.redis.call("TTL", key) == -1 and storm.redis.call("TYPE", key) in ("list", "zset"):
            found.append(Violation("S", "", f"{key} is left in Redis"))
    if (clients := len(storm.redis.call("CLIENT", "LIST").splitlines())) > 1:
        found.append(Violation("S", "", f"{clients - 1} connections to Redis are left"))
    count = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'atm'"
    deadline = time.monotonic() + 5
    while (connections := int(storm.mariadb.sql(count))) and time.monotonic() < deadline:
        time.sleep(0.1)
    if connections:
        found.append(Violation("S", "", f"{connections} connections to MariaDB are left"))
    folders = {str(seat.folder) for seat in storm.seats}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") in folders:
                found.append(
                    Violation("O", "", f"process {process.name} is left: {(process / 'cmdline').read_text()}")
                )
        except OSError:
            continue  # it is gone, or not ours
    return found


def _closings(logs: Mapping[str, list[LogRow]]) -> Iterator[tuple[tuple[str, int], LogRow]]:
    """By (task, attempt): the row by which the leader took the task from its worker."""
    for task_id, rows in logs.items():
        for row in rows:
            if row.source == "PROCESSING" and row.attempt is not None and row.message.startswith(BY_RECOVERY):
                yield (task_id, row.attempt), row


def _healthy_are_not_robbed(
    logs: Mapping[str, list[LogRow]], runs: Mapping[tuple[str, int], RunLines], lives: list[SeatLife]
) -> list[Violation]:
    """W: no task is taken from a worker that lives and was never paused."""
    by_number = {life.number: life for life in lives}
    found = []
    for key, row in _closings(logs):
        if key not in runs:
            continue
        life = by_number[runs[key].life]
        died_ms = math.inf if life.died_ns is None else life.died_ns // 1_000_000
        if not life.paused and row.at_ms < died_ms:
            found.append(
                Violation("W", key[0], f"attempt {key[1]} was taken from life {life.number}, which was well")
            )
    return found


def _end_with_recovery(
    logs: Mapping[str, list[LogRow]], runs: dict[tuple[str, int], RunLines], lives: list[SeatLife]
) -> None:
    """E and C do not judge what a node that was paused did after its tasks were taken from it.

    It could not know; its attempt number keeps it from writing. Its run is taken to end with the recovery.
    """
    paused = {life.number for life in lives if life.paused}
    for key, row in _closings(logs):
        run = runs.get(key)
        if run is None or run.life not in paused:
            continue
        taken_ns = row.at_ms * 1_000_000
        if run.start_ns > taken_ns:
            del runs[key]
        elif run.end_ns is None or run.end_ns > taken_ns:
            run.end_ns = taken_ns


def _crashes(seat: Seat) -> Iterator[str]:
    """Errors of the program, told in the log."""
    for line in seat.log_text().splitlines():
        if '"exception"' in line or line.startswith("Traceback") or '"critical"' in line:
            yield f"{seat.name} wrote: {line[:300]}"


def _rows(report: Report) -> list[tuple[str, str]]:
    evidence, ledger, stats = report.evidence, report.evidence.ledger, report.stats
    tasks, creates, logs = evidence.tasks.values(), ledger.creates, evidence.logs
    starts = [life.ready_after for life in evidence.lives if life.ready_after is not None]
    closings = list(_closings(logs))
    releases = sum(
        row.source == "PROCESSING" and row.message.startswith("Released") for rows in logs.values() for row in rows
    )
    stale = sum(seat.log_text().count(STALE) for seat in report.seats)
    broken = Counter(violation.law for violation in report.violations)
    cancels = Counter(str(a or "lost") for v in ledger.cancels.values() for a in v)
    retries = Counter(str(a or "lost") for v in ledger.retries.values() for a in v)
    false_starts = sum(seat.false_starts for seat in report.seats)
    mean_rate = len(creates) / stats["load_seconds"]
    return [
        ("faults", f"{sum(report.faults.values())} (seed {report.seed}): {_counts(report.faults)}"),
        ("load", f"{report.rate:g} creates a second are tried, {mean_rate:.0f} made"),
        ("creates acknowledged", f"{len(ledger.acknowledged()):,}"),
        ("creates repeated after a lost answer", f"{sum(create.repeated > 0 for create in creates):,}"),
        ("creates unknown (lost answer, no key)", f"{sum(create.given_up for create in creates):,}"),
        ("answers lost, answers 503", f"{report.door.lost:,}, {report.door.put_off:,}"),
        ("cancels by answer", _counts(cancels)),
        ("retries by answer", _counts(retries)),
        ("tasks by final state", _counts(Counter(task.status for task in tasks))),
        ("attempts", f"{sum(task.attempt for task in tasks):,}"),
        ("recoveries", f"{len(closings):,}, tasks taken for poison {sum(t.recoveries > 3 for t in tasks):,}"),
        ("releases", f"{releases:,}"),
        ("stale results refused", f"{stale:,}"),
        ("log rows", f"{sum(len(rows) for rows in logs.values()):,}"),
        ("lives of nodes", f"{len(evidence.lives)}, starts repeated while a server was away {false_starts}"),
        ("start to ready", f"median {statistics.median(starts):.2f} s, longest {max(starts):.2f} s"),
        ("largest node at the end", f"{stats['memory']} MB, {stats['files']} descriptors"),
        ("keys left in Redis", stats["keys"]),
        ("all ended", f"{stats['drained_after']:.1f} s after the last fault"),
        ("duration", f"{stats['seconds']:.0f} s, {stats['load_seconds']:.0f} s of it under load"),
        ("violations", f"{len(report.violations)} {_counts(broken)}".rstrip()),
    ]


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--rate", type=float, default=60, help="tasks created a second (default 60)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--keep", metavar="FOLDER", help="use this folder and leave it")
    chosen = parser.parse_args()
    work = partial(run, seconds=60 * chosen.minutes, rate=chosen.rate, seed=chosen.seed, say=_say)
    with contextlib.ExitStack() as stack:
        if chosen.keep:
            Path(chosen.keep).mkdir(parents=True, exist_ok=False)
        folder = chosen.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="atm-chaos-"))
        report = trio.run(partial(work, Path(folder)))
        print(report.text())  # reads the nodes' logs
    return 1 if report.violations else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
