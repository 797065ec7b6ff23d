"""Work for the process lane: a process imports it from here by its name."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from atm.errors import NonRetryable, RetryLater
from atm.executor import Executor, TaskResult
from atm.executors.plain import PlainContext
from atm.task import Task

DAEMON_NAP = 1000


class Odd(Exception):
    """An error that cannot be pickled, and cannot be read either."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __str__(self) -> str:
        raise RuntimeError("no words")


def work(ctx: PlainContext, task: Task) -> Any:
    """What the payload asks for."""
    payload = task.payload
    return _HOW[payload["how"]](ctx, payload)


def facts(ctx: PlainContext, payload: dict[str, Any]) -> dict[str, Any]:
    return {"pid": os.getpid(), "attempt": ctx.attempt, "worker": ctx.worker_id, "key": ctx.idempotency_key,
            "left": ctx.time_left, "cancelled": ctx.is_cancelled}  # fmt: skip


def verbs(ctx: PlainContext, payload: dict[str, Any]) -> Any:
    ctx.check_cancelled()
    with ctx.cleanup():
        ctx.log("a line")
    ctx.progress(0.5, "half")
    try:
        ctx.progress(2)
    except ValueError as error:
        refused = str(error)
    done = ctx.run_process(["cat"], input=b"fed")
    return [refused, done.stdout.decode(), done.returncode]


def fails(ctx: PlainContext, payload: dict[str, Any]) -> None:
    later = RetryLater("c", after=9)
    kinds: dict[str, BaseException] = {
        "final": NonRetryable("never"),
        "later": RetryLater("busy", after=30),
        "plain": KeyError("missing"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "odd": Odd(),
        "surrogate": ValueError("\ud800"),
        "group": ExceptionGroup("both", [ValueError("one"), NonRetryable("two")]),
        "tree": ExceptionGroup("outer", [OSError("a"), ExceptionGroup("inner", [KeyError("b"), later])]),
        "wide": ExceptionGroup("wide", [*map(ValueError, range(5000)), NonRetryable("last")]),
        "deep": nested(5000, ValueError("leaf")),
    }
    raise kinds[payload["kind"]]


def nested(depth: int, error: Exception) -> Exception:
    for number in range(depth):
        error = ExceptionGroup(f"level {number}", [error])
    return error


def dies(ctx: PlainContext, payload: dict[str, Any]) -> None:
    if payload["by"] == "exit":
        os._exit(7)
    if payload["by"] == "silence":
        os.closerange(3, 1000)
        time.sleep(DAEMON_NAP)
    if payload["by"] == "with a daemon":
        # It has the process's end of the line, too.
        if os.fork() == 0:
            os.setsid()
            time.sleep(DAEMON_NAP)
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)


def returns(ctx: PlainContext, payload: dict[str, Any]) -> Any:
    return {
        "object": object(),
        "nan": float("nan"),
        "huge": "x" * 2_000_000,
        "surrogate": "\ud800",
        "failure": TaskResult(success=False, error="not today"),
        "nothing": None,
        "tuple": (1, "ü", None),
    }[payload["what"]]


def leaves(ctx: PlainContext, payload: dict[str, Any]) -> int:
    if payload["what"] == "thread":
        threading.Thread(target=time.sleep, args=(DAEMON_NAP,), daemon=True).start()
    elif os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(payload["begun"]).touch()
            time.sleep(DAEMON_NAP)
        os._exit(0)
    while payload["what"] == "daemon" and not Path(payload["begun"]).exists():
        time.sleep(0.005)
    return os.getpid()


def stubborn(ctx: PlainContext, payload: dict[str, Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    leaves(ctx, {"what": "daemon", "begun": payload["begun"]})
    while True:
        pass


def forks_back(ctx: PlainContext, payload: dict[str, Any]) -> str:
    """Comes back twice, as a fork without an exit does."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return "parent" if pid else "child"


_HOW = {
    function.__name__: function for function in (facts, verbs, fails, dies, returns, leaves, stubborn, forks_back)
}


class Settled(Executor):
    """A class with a setting, which goes with it."""

    type = "settled"
    lane = "process"
    supported_task_types = ("x",)

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def execute(self, ctx: PlainContext, task: Task) -> Any:  # type: ignore[override]
        return {"folder": self.folder}
