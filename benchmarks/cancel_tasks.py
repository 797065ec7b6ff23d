"""Work of every lane that goes on until it is ended: polite, and as rude as code can be.

Each run says in a file that it is at work. Code that is not killed takes the file away when it has ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from atm import Context, Task, executes
from atm.executors.plain import PlainContext

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LONG = 3600.0
"""Seconds."""

POLITE = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
time.sleep(3600)
"""

STUBBORN = """
import pathlib, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(3600)
"""

DAEMON = """
import os, pathlib, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(3600)
    os._exit(0)
time.sleep(3600)
"""
"""It ends at SIGTERM. What it has forked, twice, into a session of its own, does not."""


def argv(program: str, file: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", program, file]


@contextlib.contextmanager
def at_work(task: Task) -> Iterator[None]:
    file = Path(task.payload["file"])
    file.touch()
    try:
        yield
    finally:
        file.unlink()


# on the loop


@executes("async_polite")
async def async_polite(ctx: Context, task: Task) -> None:
    with at_work(task):
        await trio.sleep_forever()


@executes("async_swallows")
async def async_swallows(ctx: Context, task: Task) -> None:
    """Swallows Cancelled, goes on for some seconds, and returns."""
    with at_work(task):
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep_forever()
        with trio.CancelScope(shield=True):
            await trio.sleep(task.payload["seconds"])


@executes("async_blocks")
async def async_blocks(ctx: Context, task: Task) -> None:
    with at_work(task):
        await trio.lowlevel.checkpoint()
        time.sleep(task.payload["seconds"])  # noqa: ASYNC251 - the rudeness in question
        await trio.lowlevel.checkpoint()


# in a thread


@executes("thread_polite")
def thread_polite(ctx: PlainContext, task: Task) -> None:
    with at_work(task):
        while True:
            ctx.check_cancelled()
            time.sleep(0.01)


@executes("thread_ignores")
def thread_ignores(ctx: PlainContext, task: Task) -> None:
    with at_work(task):
        time.sleep(task.payload["seconds"])


# in a process


@executes("process_polite", lane="process")
def process_polite(ctx: PlainContext, task: Task) -> None:
    Path(task.payload["file"]).touch()
    while True:
        sum(range(1000))


@executes("process_stubborn", lane="process")
def process_stubborn(ctx: PlainContext, task: Task) -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    process_polite(ctx, task)


@executes("process_daemon", lane="process")
def process_daemon(ctx: PlainContext, task: Task) -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            process_stubborn(ctx, task)
        os._exit(0)
    time.sleep(LONG)


# commands

PROGRAMS = {"polite": POLITE, "stubborn": STUBBORN, "daemon": DAEMON}


@executes(*(f"command_{name}" for name in PROGRAMS))
async def command(ctx: Context, task: Task) -> None:
    program = PROGRAMS[task.task_type.removeprefix("command_")]
    await ctx.run_process(argv(program, task.payload["file"]))
