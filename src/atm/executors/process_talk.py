"""What a node and a process of the process lane say to each other. Each message is a frame: its length, its bytes.

node → process   Setup once, Begin for each run, Answer to each question: pickled, for the process trusts the node
process → node   Begun, questions (Progress, Log, Command, Spawn, Await), then Done or Failed: only parsed, never
                 unpickled
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from atm.task import Task

LENGTH = struct.Struct("!I")

MAX_FRAME = 64 * 1024 * 1024
"""Bytes of one message."""


class Setup(msgspec.Struct, frozen=True):
    """``preparation`` is for ``multiprocessing.spawn.prepare``; ``work`` the pickled function or method."""

    preparation: dict[str, Any]
    work: bytes


class Begin(msgspec.Struct, frozen=True):
    task: Task
    worker_id: str
    time_left: float


class Answer(msgspec.Struct, frozen=True):
    """``error`` is raised where the question was asked."""

    value: Any = None
    error: Exception | None = None


class Begun(msgspec.Struct, frozen=True, tag=True):
    """The run's code is about to be called."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    fraction: float
    message: str | None


class Log(msgspec.Struct, frozen=True, tag=True):
    message: str


class Command(msgspec.Struct, frozen=True, tag=True):
    argv: list[str]
    input: bytes | None
    env: dict[str, str] | None
    cwd: str | None
    check: bool
    limit: int


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """``payload`` is JSON text; the answer is the child's id and ordinal."""

    task_type: str
    payload: str
    priority: int | None
    timeout: float | None
    max_retry: int | None


class Await(msgspec.Struct, frozen=True, tag=True):
    """The answer is the child, a Task, when it has ended."""

    ordinal: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """What was returned, as JSON text, taken out of its TaskResult if it was in one.

    ``threads``: how many threads of the run go on; of Failed, too.
    """

    result: bytes
    success: bool = True
    error: str | None = None
    threads: int = 0


class Told(msgspec.Struct, frozen=True):
    """An error. ``after`` is None where it is no RetryLater; ``inner`` holds the errors of a group."""

    kind: str
    message: str
    retryable: bool = True
    after: float | None = None
    inner: tuple[Told, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag=True):
    """What was raised, and its traceback."""

    error: Told
    details: str
    threads: int = 0


Question = Progress | Log | Command | Spawn | Await
Report = Done | Failed

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Begun | Question | Report] = msgspec.msgpack.Decoder(Begun | Question | Report)


def said(message: Begun | Question | Report) -> bytes:
    """The frame of a message of the process."""
    return frame(_encode(message))


def heard(data: bytes) -> Begun | Question | Report:
    """Raises ValueError for what is no message."""
    return _decoder.decode(data)


def frame(data: bytes) -> bytes:
    """Raises ValueError when it is too large."""
    if len(data) > MAX_FRAME:
        raise ValueError(f"too large to be sent between processes: {len(data)} bytes, {MAX_FRAME} at most")
    return LENGTH.pack(len(data)) + data
