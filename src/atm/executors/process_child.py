"""What runs in a process of the process lane: one task after the other, until its node lets it go.

Its node kills it when a run is cancelled, so nothing here has to know of cancels.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing.spawn
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from atm.context import MAX_OUTPUT, CancelReason, CommandResult
from atm.errors import NonRetryable, RetryLater, inner_of, leaf_of
from atm.executor import MAX_RESULT, TaskResult
from atm.executors.plain import PlainChild, PlainContext
from atm.executors.process_talk import (
    LENGTH,
    Answer,
    Await,
    Begin,
    Begun,
    Command,
    Done,
    Failed,
    Log,
    Progress,
    Question,
    Report,
    Setup,
    Spawn,
    Told,
    said,
)

MAX_MESSAGE = 8192
MAX_DETAILS = 16384
"""Characters of an error's message and of its traceback; the rest is cut."""

MAX_WIDTH, MAX_DEPTH = 50, 12
"""Errors of one group that are told, and groups within groups."""

_encode_json = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


class Line:
    """The connection with the node. Questions may be asked by any thread, one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._turn = threading.Lock()

    def ask(self, question: Question) -> Any:
        data = said(question)
        with self._turn:
            self._sock.sendall(data)
            answer = self.hear()
        assert isinstance(answer, Answer)
        if answer.error is not None:
            raise answer.error
        return answer.value

    def tell(self, message: Begun | Report) -> None:
        data = said(message)
        with self._turn:
            self._sock.sendall(data)

    def hear(self) -> Any:
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        return pickle.loads(self._exactly(length))  # noqa: S301 - from the node

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._sock.recv(min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


class ProcessContext(PlainContext):
    """The twin of ``ctx`` in the process. A run that is to end is killed: until then it is not cancelled."""

    def __init__(self, line: Line, begin: Begin) -> None:
        deadline = time.monotonic() + begin.time_left
        super().__init__(begin.task.task_id, begin.task.attempt, begin.worker_id, deadline)
        self._line = line

    @property
    def cancel_reason(self) -> CancelReason | None:
        return None

    def check_cancelled(self) -> None:
        return None

    def progress(self, fraction: float, message: str | None = None) -> None:
        self._line.ask(Progress(float(fraction), None if message is None else readable(message)))

    def log(self, message: str) -> None:
        self._line.ask(Log(readable(message)))

    def cleanup(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def run_process(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        input: bytes | None = None,  # noqa: A002
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        check: bool = True,
        limit: int = MAX_OUTPUT,
    ) -> CommandResult:
        if isinstance(argv, str | bytes):
            raise TypeError("argv must be a list: the program and its arguments; there is no shell")
        folder = os.path.abspath(cwd if cwd is not None else ".")
        variables = None if env is None else dict(env)
        done: CommandResult = self._line.ask(
            Command([os.fspath(part) for part in argv], input, variables, folder, check, limit)
        )
        return done

    def spawn(
        self,
        task_type: str,
        payload: Mapping[str, Any] | None = None,
        *,
        priority: int | None = None,
        timeout: float | None = None,
        max_retry: int | None = None,
    ) -> PlainChild:
        try:
            text = _encode_json(dict(payload or {}))
        except (TypeError, ValueError, RecursionError) as error:
            raise NonRetryable(f"spawn: the payload is no JSON object: {error}") from error
        asked = Spawn(str(task_type), text, priority, timeout, max_retry)
        task_id, ordinal = self._line.ask(asked)
        return PlainChild(task_id, asked.task_type, ordinal, lambda: self._line.ask(Await(ordinal)))


def main(descriptor: int) -> None:
    """Serve the node at the other end of this socket."""
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    line = Line(sock)
    own = os.getpid()
    try:
        work = _set_up(line.hear())
    except EOFError:
        return
    except BaseException as error:  # noqa: BLE001 - whatever the user's modules raise
        line.tell(_failed(error))
        return
    with contextlib.suppress(EOFError, OSError):
        while True:
            begin: Begin = line.hear()
            line.tell(Begun())
            report = _carry_out(work, ProcessContext(line, begin), begin)
            if os.getpid() != own:
                os._exit(1)  # a fork of the user's that has come back as if it were the run
            line.tell(msgspec.structs.replace(report, threads=threading.active_count() - 1))


def _set_up(setup: Setup) -> Callable[..., Any]:
    multiprocessing.spawn.prepare(setup.preparation)
    work: Callable[..., Any] = pickle.loads(setup.work)  # noqa: S301 - from the node
    return work


def _carry_out(work: Callable[..., Any], ctx: PlainContext, begin: Begin) -> Report:
    try:
        value = work(ctx, begin.task)
        success, error = True, None
        if isinstance(value, TaskResult):
            success, error, value = value.success, value.error, value.data
        if not success:
            return Done(b"null", success=False, error=None if error is None else readable(str(error)))
        return _done(value)
    except BaseException as error:  # noqa: BLE001 - whatever user code raises, SystemExit too
        return _failed(error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()


def _done(value: Any) -> Report:
    try:
        text = _encode_json(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return _invalid(f"the result is not JSON: {error}")
    if len(text) > MAX_RESULT:
        return _invalid(f"the result is too large: {len(text)} bytes, {MAX_RESULT} at most")
    return Done(text)


def _invalid(reason: str) -> Failed:
    return Failed(Told("InvalidResult", readable(reason), retryable=False), "")


def _failed(error: BaseException) -> Failed:
    try:
        details = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - formatting calls methods of the user's errors
        details = ""
    return Failed(_told(error), readable(details)[-MAX_DETAILS:])


def _told(error: BaseException, depth: int = 0) -> Told:
    inner = inner_of(error)
    if len(inner) > MAX_WIDTH:  # what decides on the retry is told in any case
        inner = sorted(inner, key=lambda each: _decides(each) is None)[:MAX_WIDTH]
    if inner and depth < MAX_DEPTH:
        message = getattr(error, "message", "")
        told = tuple(_told(each, depth + 1) for each in inner)
        return Told(readable(type(error).__name__), readable(str(message))[:MAX_MESSAGE], inner=told)
    deciding = _decides(error)
    return _leaf(error if deciding is None else deciding)


def _decides(error: BaseException) -> NonRetryable | RetryLater | None:
    final = leaf_of(error, NonRetryable)
    return leaf_of(error, RetryLater) if final is None else final


def _leaf(error: BaseException) -> Told:
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 - a __str__ of the user's
        message = "(without a readable message)"
    return Told(
        readable(type(error).__name__),
        readable(message)[:MAX_MESSAGE],
        retryable=not isinstance(error, NonRetryable),
        after=_seconds(error.after) if isinstance(error, RetryLater) else None,
    )


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value >= 0 else 0.0


def readable(text: str) -> str:
    """Without lone surrogates, which cannot be sent."""
    return text.encode("utf-8", "replace").decode()
