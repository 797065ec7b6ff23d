"""A place in a cluster: a folder, two ports, and the node that happens to live there."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from keeper import keeper
from running import free_ports

from .node import START_PATIENCE, STOP_PATIENCE, Life
from .wire import LostError, NotSentError, Wire

ANSWER_PATIENCE = 5.0
"""Seconds that a client waits for an answer."""

AVOIDED = 2.0
"""Seconds that clients stay away from a node that did not answer, or that told them to come back later."""

UNAVAILABLE = 69
"""The exit status of a node that finds a server away when it starts."""


@dataclass
class SeatLife(Life):
    """``paused``: it was stopped for a while and went on. ``left_ill``: it ended without signing off."""

    paused: bool = False
    left_ill: bool = False


@dataclass
class Seat:
    """Started, killed, started again, always on the same ports."""

    name: str
    folder: Path
    environ: Mapping[str, str]
    numbers: itertools.count[int]
    lives: list[SeatLife] = field(default_factory=list)
    busy: bool = False
    """A fault is at work here."""
    false_starts: int = 0
    self_ended: list[str] = field(default_factory=list)
    avoided_until: float = 0.0

    def __post_init__(self) -> None:
        self.port, metrics_port = free_ports(2)
        self.wire = Wire(self.port, timeout=ANSWER_PATIENCE)
        self.folder.mkdir()
        shutil.copy(Path(__file__).with_name("chaos_tasks.py"), self.folder)
        settings = {
            "server": {"port": self.port},
            "metrics": {"port": metrics_port},
            "executors": ["chaos_tasks"],
        }
        (self.folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> Path:
        return self.folder / "runs.jsonl"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, worker_id: str | None) -> None:
        """Start a node with this worker.id; None leaves it to the default, which is new each time."""
        life = SeatLife(next(self.numbers))
        self.lives.append(life)
        own = {key: value for key, value in os.environ.items() if not key.startswith("ATM_")}
        own |= {**self.environ, "CHAOS_LIFE": str(life.number)}
        if worker_id is not None:
            own["ATM_WORKER__ID"] = worker_id
        with (self.folder / "node.out").open("a") as output:
            command = [sys.executable, "-m", "atm"]
            self._process = keeper.start(command, cwd=self.folder, env=own, stdout=output, stderr=output)

    async def up(self, worker_id: str | None) -> None:
        """Start a node; when it returns the node is ready. It starts again where a server is away, as a
        service manager would do it."""
        began = trio.current_time()
        with trio.fail_after(2 * START_PATIENCE):
            self.start(worker_id)
            while not await self._is_ready():
                if not self.running:
                    self._bury()
                    status = self.exit_status
                    self.false_starts += 1
                    if status != UNAVAILABLE:
                        self.self_ended.append(f"{self.name} ended with {status} while it started")
                    await trio.sleep(0.2)
                    self.start(worker_id)
                await trio.sleep(0.05)
        self.lives[-1].ready_after = trio.current_time() - began

    async def _is_ready(self) -> bool:
        try:
            status, _ = await self.wire.request("GET", "/readyz")
        except (NotSentError, LostError):
            return False
        return status == 200

    async def ready(self) -> None:
        with trio.fail_after(2 * START_PATIENCE):
            while not await self._is_ready():
                assert self.running, f"{self.name} does not run"
                await trio.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self.lives[-1].left_ill = True
        self._bury()

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.send(signal.SIGTERM)
        with trio.fail_after(STOP_PATIENCE):
            while self.running:
                await trio.sleep(0.02)
        self._bury()
        return self.exit_status

    async def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds."""
        self.lives[-1].paused = True
        self.send(signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            self.send(signal.SIGCONT)

    @property
    def exit_status(self) -> int:
        assert self._process is not None
        return int(self._process.returncode)

    def look(self) -> bool:
        """Whether the node still runs; takes note if it ended by itself."""
        if self.running:
            return True
        self._bury()
        self.lives[-1].left_ill = True
        self.self_ended.append(f"{self.name} ended by itself with {self.exit_status}")
        return False

    def _bury(self) -> None:
        assert self._process is not None
        self.lives[-1].died_ns = time.time_ns()
        self.wire.node_died()
        keeper.ended(self._process)

    def make_sure_it_ended(self) -> None:
        if self.running:
            self.kill()

    def log_text(self) -> str:
        """All that its nodes have written."""
        return (self.folder / "node.out").read_text(errors="replace")


class Door:
    """What clients talk to: any node that answers. Takes the place of the wire to a single node.

    A node that is away, does not answer or answers 503 is avoided for a while. 503 says as little about what came
    of a request as a lost answer does.
    """

    def __init__(self, seats: list[Seat]) -> None:
        self._seats = seats
        self._turns = itertools.count()
        self.lost = 0
        self.put_off = 0

    async def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded body. Raises NotSentError where nobody listens, LostError."""
        seat = self._choose()
        try:
            status, answer = await seat.wire.request(method, path, body, **headers)
        except NotSentError:
            seat.avoided_until = trio.current_time() + AVOIDED
            raise
        except LostError:
            self.lost += 1
            seat.avoided_until = trio.current_time() + AVOIDED
            raise
        if status == 503:
            self.put_off += 1
            await trio.sleep(0.1)
            raise LostError(f"{method} {path}: {answer}")
        return status, answer

    def _choose(self) -> Seat:
        now = trio.current_time()
        around = [seat for seat in self._seats if seat.avoided_until <= now] or self._seats
        return around[next(self._turns) % len(around)]
