"""Tasks of every lane that go on until they are ended: polite ones, and those that ignore whatever they can."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import trio

from atm import executes

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

RUDE = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").close()
        time.sleep(1000)
    os._exit(0)
time.sleep(1000)
"""


def command(begun: str, *, rude: bool) -> list[str]:
    if rude:
        return [sys.executable, "-I", "-S", "-c", RUDE, begun]
    return ["sh", "-c", 'touch "$0"; exec sleep 1000', begun]


@executes("async_polite")
async def async_polite(ctx, task):
    await trio.Path(task.payload["begun"]).touch()
    await trio.sleep_forever()


@executes("command_polite", "command_rude")
async def commands(ctx, task):
    await ctx.run_process(command(task.payload["begun"], rude=task.task_type.endswith("rude")))


@executes("thread_polite")
def thread_polite(ctx, task):
    Path(task.payload["begun"]).touch()
    while True:
        ctx.check_cancelled()
        time.sleep(0.01)


@executes("thread_command_rude")
def thread_command_rude(ctx, task):
    ctx.run_process(command(task.payload["begun"], rude=True))


@executes("thread_rude")
def thread_rude(ctx, task):
    Path(task.payload["begun"]).touch()
    while not Path("release").exists():
        time.sleep(0.01)


@executes("process_polite", lane="process")
def process_polite(ctx, task):
    Path(task.payload["begun"]).touch()
    while True:
        ctx.check_cancelled()
        time.sleep(0.01)


@executes("process_rude", lane="process")
def process_rude(ctx, task):
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(task.payload["begun"]).touch()
            time.sleep(1000)
        os._exit(0)
    while True:
        sum(range(1000))
