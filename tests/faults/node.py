"""A real node, ``python -m atm``, in a folder that outlives it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import trio

from .wire import LostError, NotSentError, Wire

START_PATIENCE = 30.0
STOP_PATIENCE = 45.0
"""Seconds."""


@dataclass
class Life:
    """One process of the node. ``died_ns``: wall-clock nanoseconds at which it was certainly dead."""

    number: int
    died_ns: int | None = None
    ready_after: float | None = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Node:
    """The node of a folder: started, killed, started again, always on the same ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, metrics_port = free_port(), free_port()
        self.lives: list[Life] = []
        shutil.copy(Path(__file__).with_name("chaos_tasks.py"), folder)
        settings = {
            "server": {"port": self.port},
            "metrics": {"port": metrics_port},
            "executors": ["chaos_tasks"],
        }
        (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML

    @property
    def file(self) -> Path:
        return self.folder / "atm.db"

    def start(self) -> None:
        self.lives.append(Life(len(self.lives) + 1))
        with (self.folder / "node.out").open("a") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "atm"],
                cwd=self.folder,
                env=os.environ | {"CHAOS_LIFE": str(len(self.lives))},
                stdout=output,
                stderr=output,
            )

    async def ready(self, wire: Wire) -> None:
        """Return when it answers that it is ready."""
        began = trio.current_time()
        with trio.fail_after(START_PATIENCE):
            while not await self._is_ready(wire):
                await trio.sleep(0.02)
        self.lives[-1].ready_after = trio.current_time() - began

    async def _is_ready(self, wire: Wire) -> bool:
        self.check_alive()
        try:
            status, _ = await wire.request("GET", "/readyz")
        except (NotSentError, LostError):
            return False
        return status == 200

    def check_alive(self) -> None:
        """Raises RuntimeError when the node has ended by itself."""
        if self._process.poll() is not None:
            tail = (self.folder / "node.out").read_text()[-2000:]
            raise RuntimeError(f"the node ended by itself with {self._process.returncode}:\n{tail}")

    def kill(self) -> None:
        """SIGKILL."""
        self.check_alive()
        self._process.kill()
        self._process.wait()
        self.lives[-1].died_ns = time.time_ns()

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.check_alive()
        self._process.terminate()
        with trio.fail_after(STOP_PATIENCE):
            while self._process.poll() is None:
                await trio.sleep(0.02)
        self.lives[-1].died_ns = time.time_ns()
        return int(self._process.returncode)

    def make_sure_it_ended(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
