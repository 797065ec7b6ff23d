"""SIGTERM and SIGINT: the first asks the node to stop, a second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import trio

OVERTIME_EXIT = 70
"""EX_SOFTWARE of sysexits.h: something blocked the loop beyond all deadlines."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_on_signals(stop: trio.Event, patience: float) -> Iterator[Callable[[], None]]:
    """Set ``stop`` at the first signal, end at the second.

    Yields a function that sets a time limit to the rest of this context: ``patience`` seconds later the
    process ends, even though its loop is blocked. The first signal sets it too. Python runs these handlers
    also while a task blocks the loop; only the main thread may have them, so elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    token = trio.lowlevel.current_trio_token()
    asked = False

    def limit() -> None:
        signal.setitimer(signal.ITIMER_REAL, patience)

    def ask(signum: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + signum)
        asked = True
        limit()
        token.run_sync_soon(stop.set)

    def overtime(_: int, frame: FrameType | None) -> None:
        place = f"{frame.f_code.co_filename} line {frame.f_lineno}" if frame else "an unknown place"
        os.write(2, f"atm: did not stop in time; the loop was in {place}\n".encode())
        os._exit(OVERTIME_EXIT)

    before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, overtime)
    try:
        yield limit
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
