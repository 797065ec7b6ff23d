"""Signals: the first asks, a second ends at once, and a blocked loop has a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from atm.nursery.signals import OVERTIME_EXIT, STOP_SIGNALS, stop_on_signals

WATCHED = (*STOP_SIGNALS, signal.SIGALRM)

PROGRAM = """
import os, signal, sys, time
import trio
from atm.nursery.signals import stop_on_signals

async def main():
    stop = trio.Event()
    with stop_on_signals(stop, float(sys.argv[2])) as limit:
        match sys.argv[1]:
            case "twice":
                os.kill(os.getpid(), signal.SIGTERM)
                await stop.wait()
                os.kill(os.getpid(), signal.SIGINT)
            case "blocked":
                os.kill(os.getpid(), signal.SIGTERM)
            case "dying":
                limit()
            case "in time":
                os.kill(os.getpid(), signal.SIGTERM)
                await stop.wait()
                return
        print("goes on", flush=True)
        time.sleep(60)

trio.run(main)
"""


@pytest.fixture(autouse=True)
def alarm_is_given_back() -> Iterator[None]:
    """The time limit of these very tests is an alarm too; ``stop_on_signals`` takes it for itself."""
    handlers = {number: signal.getsignal(number) for number in WATCHED}
    limit, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    assert {number: signal.getsignal(number) for number in WATCHED} == handlers
    signal.setitimer(signal.ITIMER_REAL, limit)


def run(what: str, patience: float = 30.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, what, str(patience)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_the_first_signal_asks_the_node_to_stop(number: signal.Signals) -> None:
    stop = trio.Event()
    with stop_on_signals(stop, 50):
        os.kill(os.getpid(), number)
        await stop.wait()
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left <= 50
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


async def test_the_limit_can_be_set_without_a_signal() -> None:
    stop = trio.Event()
    with stop_on_signals(stop, 50) as limit:
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        limit()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        assert not stop.is_set()


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone() -> None:
    handlers: list[object] = []

    async def look() -> None:
        with stop_on_signals(trio.Event(), 50) as limit:
            limit()
            handlers.extend(signal.getsignal(number) for number in untouched)
        await trio.lowlevel.checkpoint()

    untouched = (signal.SIGTERM, signal.SIGALRM)  # SIGINT is Trio's own while it runs
    before = [signal.getsignal(number) for number in untouched]
    trio.run(trio.to_thread.run_sync, trio.run, look)
    assert handlers == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_second_signal_ends_the_process_at_once() -> None:
    ended = run("twice")
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGINT, "", "")


@pytest.mark.parametrize("what", ["blocked", "dying"])
def test_a_blocked_loop_ends_with_the_patience(what: str) -> None:
    ended = run(what, patience=0.3)
    assert (ended.returncode, ended.stdout) == (OVERTIME_EXIT, "goes on\n")
    line = PROGRAM.splitlines().index("        time.sleep(60)") + 1
    assert ended.stderr == f"atm: did not stop in time; the loop was in <string> line {line}\n"


def test_a_node_that_stops_in_time_is_left_alone() -> None:
    ended = run("in time")
    assert (ended.returncode, ended.stderr) == (0, "")
