"""What code can leave behind in its process: Trio's tasks, threads, open files and sockets, child processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import trio
from trio.testing import MockClock

PATIENCE = 10.0
"""Seconds, by any clock on the wall, in which what was cut off has to be gone."""

LOOK = 0.002
"""Seconds between two looks."""

Named = dict[object, str]
"""What there is, and what to call it."""


class Leftovers:
    """What there is at one moment. Processes are seen where the system tells of a process's children (Linux)."""

    def __init__(self) -> None:
        self._found: dict[str, Named] = {
            "Trio tasks": {task: task.name for task in _tasks()},
            "threads": {thread: thread.name for thread in busy_threads()},
            "open files": dict(_files()),
            "processes": {pid: f"{pid} {_command(pid)}" for pid in _children()},
        }

    def beyond(self, before: Leftovers) -> str:
        """What there is more of than before, and which those are that are new; "" for nothing.

        Their number counts: a pool may put one connection in another's place.
        """
        told = []
        for kind, found in self._found.items():
            known = before._found[kind]
            if len(found) > len(known):
                new = [name for key, name in found.items() if known.get(key) != name]
                told.append(f"{len(found) - len(known)} {kind} ({', '.join(new)})")
        return "; ".join(told)


async def left_since(before: Leftovers) -> str:
    """What is left, "" as soon as it is nothing; others, a server's end of a socket say, get time to notice."""
    deadline = time.monotonic() + PATIENCE
    while left := Leftovers().beyond(before):
        if time.monotonic() > deadline:
            return left
        if isinstance(trio.lowlevel.current_clock(), MockClock):
            # To sleep would make the clock jump, and end what sleeps forgotten.
            await trio.lowlevel.checkpoint()
            time.sleep(LOOK)  # noqa: ASYNC251
        else:
            await trio.sleep(LOOK)
    return ""


def busy_threads() -> list[threading.Thread]:
    """Threads at work, those too that nobody waits for any more; not those that Trio keeps for later."""
    return [thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread ")]


def _tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    found = [] if root is None else [root]
    while found:
        task = found.pop()
        yield task
        for nursery in task.child_nurseries:
            found.extend(nursery.child_tasks)


def _files() -> Iterator[tuple[str, str]]:
    for name in os.listdir("/dev/fd"):
        try:
            yield name, os.readlink(f"/dev/fd/{name}")
        except OSError:  # the one that listed them; or a system without such links
            if os.path.exists(f"/dev/fd/{name}"):
                yield name, f"descriptor {name}"


def _children() -> Iterator[str]:
    for file in Path("/proc/self/task").glob("*/children"):
        try:
            yield from file.read_text().split()
        except OSError:  # that thread has ended
            continue


def _command(pid: str) -> str:
    try:
        return Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
