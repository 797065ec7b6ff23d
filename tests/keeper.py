"""Ends the processes of a test run, and removes their folders, however the run ends: kill -9 of it included.

The keeper is a process of its own that holds the reading end of a pipe. The run tells it whom to look after; when
the pipe closes, the run is over, and the keeper ends what is left.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

PATIENCE = 30.0
"""Seconds that the run waits for its keeper at the end."""


class Keeper:
    """The run's side of the pipe. Its verbs may be called from any thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process that does not outlive the run. Ctrl-C is for the run alone and does not reach it."""
        process = subprocess.Popen(command, start_new_session=True, **options)
        self._say("+process", process.pid)
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Its number may be given to another process now."""
        self._say("-process", process.pid)

    def folder(self, parent: Path | None = None) -> Path:
        """A new folder with a short name, removed at the end of the run or by `remove`."""
        path = Path(tempfile.mkdtemp(prefix="atm-", dir=parent))
        self._say("+folder", path)
        return path

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._say("-folder", folder)

    def _say(self, verb: str, what: object) -> None:
        if self._process is None:
            # Without the environment: the keeper is not to be measured.
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__], stdin=subprocess.PIPE, env={}, start_new_session=True
            )
            atexit.register(self._leave)
        assert self._process.stdin is not None
        # One write of a short line is never mixed with that of another thread.
        os.write(self._process.stdin.fileno(), f"{verb} {what}\n".encode())

    def _leave(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


keeper = Keeper()


def keep(lines: IO[str]) -> None:
    """The keeper's own life."""
    processes: set[int] = set()
    folders: set[str] = set()
    for line in lines:
        verb, _, what = line.rstrip("\n").partition(" ")
        if verb == "+process":
            processes.add(int(what))
        elif verb == "-process":
            processes.discard(int(what))
        elif verb == "+folder":
            folders.add(what)
        else:
            folders.discard(what)
    clear(processes, folders)


def clear(processes: Iterable[int], folders: Iterable[str]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    keep(sys.stdin)
