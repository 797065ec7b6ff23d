"""``ctx.run_process``: a command whose processes all end with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

import trio

from atm.context import CommandResult, Context
from atm.errors import CommandFailed
from atm.executors.guarded import END, Guarded, Guards

CHUNK = 64 * 1024
LAST_WORDS = 1.0
"""Seconds in which what a command has written is read when it is gone; somebody else may hold its streams."""


class CommandRunner:
    """Implements ``atm.context.Commands``."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards

    async def __call__(
        self,
        ctx: Context,
        argv: Sequence[str | os.PathLike[str]],
        *,
        input: bytes | None,  # noqa: A002 - as subprocess calls it
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        check: bool,
        limit: int,
    ) -> CommandResult:
        command = checked(argv)
        guarded = await self._guards.start(
            command,
            stdin=None if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
        )
        out, err = Kept(limit), Kept(limit)
        process = guarded.process
        assert process.stdout is not None
        assert process.stderr is not None
        async with trio.open_nursery() as nursery:
            # Also while a cancelled command ends: one that cannot write its last words would hang.
            streams = trio.CancelScope(shield=True)
            nursery.start_soon(_carry, streams, process, input or b"", out, err)
            try:
                returncode = await guarded.until_gone()
            finally:
                if guarded.gone is None:
                    await _end(ctx, guarded)
                streams.deadline = trio.current_time() + LAST_WORDS
        if check and returncode:
            raise CommandFailed(os.path.basename(command[0]), returncode, bytes(out.data), bytes(err.data))
        return CommandResult(returncode, bytes(out.data), bytes(err.data), out.truncated or err.truncated)


async def _end(ctx: Context, guarded: Guarded) -> None:
    """SIGTERM, and SIGKILL after the cleanup budget."""
    guarded.order(END)
    try:
        with ctx.cleanup():
            await guarded.until_gone()
    finally:
        ctx.count_reaped("processes", await guarded.kill())


class Kept:
    """The beginning of a stream."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.truncated = False
        self._limit = limit

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        """Read to the end, also what is not kept."""
        async with stream:
            while chunk := await stream.receive_some(CHUNK):
                room = self._limit - len(self.data)
                self.data += chunk[:room] if room > 0 else b""
                self.truncated |= len(chunk) > room


async def _carry(scope: trio.CancelScope, process: trio.Process, given: bytes, out: Kept, err: Kept) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.read, process.stdout)
            nursery.start_soon(err.read, process.stderr)
            if process.stdin is not None:
                nursery.start_soon(_give, process.stdin, given)


async def _give(stream: trio.abc.SendStream, data: bytes) -> None:
    async with stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            return  # it does not want to read on


def checked(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Raises TypeError, ValueError, naming the argument."""
    if isinstance(argv, str | bytes) or not isinstance(argv, Sequence):
        raise TypeError("argv must be a list: the program and its arguments; there is no shell")
    if not argv:
        raise ValueError("argv is empty: it must name a program")
    command: list[str] = []
    for index, part in enumerate(argv):
        text = os.fspath(part) if isinstance(part, os.PathLike) else part
        if not isinstance(text, str):
            raise TypeError(f"argv[{index}] must be text, not {type(part).__name__}")
        if "\0" in text:
            raise ValueError(f"argv[{index}] holds a NUL character")
        command.append(text)
    if not command[0]:
        raise ValueError("argv[0] is empty: it must name a program")
    return command
