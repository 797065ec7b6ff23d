"""Looks for processes that carry a mark in their environment or command line."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

PATIENCE = 10.0
"""Seconds in which what was started has to be seen."""

DAEMON = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(os.environ["BEGUN"], "w").close()
        time.sleep(1000)
    os._exit(0)
time.sleep(1000)
"""
"""A program that ignores SIGTERM, and has a daemon by a double fork with a session of its own."""


def marked(mark: str) -> list[int]:
    """The processes that live, zombies left out, and carry the mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark.encode() in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return found


def until_exists(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.005)
