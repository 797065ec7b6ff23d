"""A node as an operator starts it: a process in the current folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 30.0
"""Seconds that a test waits for what has to come."""

ATM = (sys.executable, "-m", "atm")
FREE_PORTS = {"ATM_SERVER__PORT": "0", "ATM_METRICS__PORT": "0"}


_NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_FIRST, _PORTS = 20_000 + 1_500 * _NUMBER, 1_500
_steps = itertools.count(secrets.randbelow(_PORTS))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, from below those that the system gives away by itself.

    A port is free here for a while before it is used: processes that run tests side by side have ranges of their
    own, and within one nothing is given twice before all others were.
    """
    found: list[int] = []
    while len(found) < count:
        port = _FIRST + next(_steps) % _PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


class Process:
    """A node in the current folder, started and not yet known to be ready."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.out = Path("stdout.txt")
        self.err = Path("stderr.txt")
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=out, stderr=err)

    def wait_for(self, text: str) -> str:
        """The output, once the text is in it."""
        deadline = time.monotonic() + PATIENCE
        while text not in (output := self.out.read_text()):
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline, output
            time.sleep(0.01)
        return output

    @property
    def url(self) -> str:
        found = re.search(r"^  API +(\S+)$", self.wait_for("Ctrl-C"), re.MULTILINE)
        assert found is not None
        return found[1]

    @property
    def metrics_url(self) -> str:
        found = re.search(r"^  metrics +(\S+)$", self.wait_for("Ctrl-C"), re.MULTILINE)
        assert found is not None
        return found[1]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def create(self, task_type: str, **fields: Any) -> str:
        answer = httpx.post(f"{self.url}/api/v1/tasks", json={"task_type": task_type, **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["data"]["task_id"])

    def task(self, task_id: str, wait: float = 0) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/api/v1/tasks/{task_id}?wait={wait}", timeout=PATIENCE)
        return dict(answer.json()["data"])

    def wait_until_running(self, task_id: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.task(task_id)["status"] != "PROCESSING":
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextlib.contextmanager
def node(
    *arguments: str, environ: Mapping[str, str] = FREE_PORTS, command: Sequence[str] = ATM
) -> Iterator[Process]:
    """A node, started; it is killed at the end if the test has not ended it."""
    process = Process([*command, *arguments], environ)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()


def fill(disk: Path) -> None:
    """Leave no byte free on a small file system."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        for size in (65536, 4096, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                continue
