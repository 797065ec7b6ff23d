"""The node's side of ``reaper.py``: commands that cannot leave anything behind.

    guards.start(argv) ──▶ Guarded: told to end, killed, waited for; "gone" when nothing of it lives

What is started carries a mark in its environment, and so does whatever it starts in turn. By it leftovers are
found, and counted by the ``atm_orphans`` metric, even where a command has killed its own reaper.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

REAPER = str(Path(__file__).with_name("reaper.py"))

MARK = "ATMGUARD"
"""The environment variable that tells whose process it is. Not under ``ATM_``: those are settings."""

KILL_PAUSE = 0.01
"""Seconds between two rounds of killing what has lost its reaper."""

END, KILL, SWEEP = b"T", b"K", b"S"

Stream = int | None
"""What a standard stream is connected to: a descriptor, ``subprocess.PIPE``, or None to inherit the node's."""


class Guarded:
    """A command under its reaper.

    Attributes:
        pid: the command's process, which leads a session and a group of its own.
        returncode: None while it runs; negative for the signal that ended it.
        gone: how many of its processes had to be ended; None while any of them may live.
    """

    def __init__(self, guards: Guards, mark: str, process: trio.Process, control: socket.socket) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self.gone: int | None = None
        self.process = process
        self._guards = guards
        self._mark = mark
        self._control = trio.socket.from_stdlib_socket(control)
        self._unread = b""
        self._swept = 0

    def order(self, what: bytes) -> None:
        """Tell the reaper to END, KILL or SWEEP."""
        with contextlib.suppress(OSError):  # it has ended
            os.write(self._control.fileno(), what)

    async def until_exit(self) -> int:
        """The command's exit code; what it has started may still live."""
        while self.returncode is None and await self._hear():
            pass
        return await self._code()

    async def until_gone(self) -> int:
        """The command's exit code, nothing of it being left."""
        while self.gone is None and await self._hear():
            pass
        return await self._code()

    async def sweep(self) -> int:
        """Kill all that the command has started, but not the command; how many that were."""
        self._swept = -1
        self.order(SWEEP)
        while self._swept < 0 and await self._hear():
            pass
        return max(0, self._swept)

    async def kill(self) -> int:
        """Kill all of it, and return when it is gone: the number of processes that had to be ended.

        Without a limit of time: a run has ended when its processes have, not before.
        """
        with trio.CancelScope(shield=True):
            self.order(KILL)
            await self.until_gone()
        return self.gone or 0

    async def started(self) -> None:
        """Raises OSError when the command could not be started."""
        while not self.pid and await self._hear():
            pass
        if not self.pid:
            await self._code()

    async def _code(self) -> int:
        if self.returncode is None:  # the reaper was killed
            self.returncode = -signal.SIGKILL
        return self.returncode

    async def _hear(self) -> bool:
        """Take in one more message; False when there will be none."""
        if self.gone is not None:
            return False
        while b"\n" not in self._unread:
            try:
                data = await self._control.recv(256)
            except ConnectionResetError:
                data = b""
            if not data:
                await self._over()
                return False
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        word, number = line.decode().split()
        match word:
            case "pid":
                self.pid = int(number)
            case "exit":
                self.returncode = int(number)
            case "swept":
                self._swept = int(number)
            case "error":
                await self._over()
                raise OSError(int(number), os.strerror(int(number)))
            case "gone":
                await self._over(int(number))
        return True

    async def _over(self, ended: int | None = None) -> None:
        """The reaper ends; if it did so without a word, do what it left undone."""
        with trio.CancelScope(shield=True):
            await self.process.wait()
            if ended is None:
                ended = await self._guards.kill_marked(self._mark)
        self.gone = ended
        self._control.close()
        self._guards.forget(self._mark)


class Guards:
    """All guarded commands of this node."""

    def __init__(self) -> None:
        self._node = f"{os.getpid()}.{secrets.token_hex(6)}"
        self._count = 0
        self._live: set[str] = set()
        self._limiter = trio.CapacityLimiter(1)

    async def start(
        self,
        argv: Sequence[str],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        keep: int = -1,
    ) -> Guarded:
        """Start a command in a session of its own.

        Args:
            env: the whole environment; None takes the node's, without its settings.
            keep: a descriptor that the command inherits.
        Raises: OSError when it cannot be started.
        """
        self._count += 1
        mark = f"{self._node}.{self._count}"
        ours, its = socket.socketpair()
        self._live.add(mark)
        with its, contextlib.ExitStack() as on_failure:
            on_failure.callback(ours.close)
            on_failure.callback(self.forget, mark)
            process = await trio.lowlevel.open_process(
                [sys.executable, "-I", "-S", REAPER, str(its.fileno()), str(os.getpid()), str(keep), *argv],
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=stdout,
                stderr=stderr,
                env={**(without_settings() if env is None else env), MARK: mark},
                cwd=cwd,
                pass_fds=[fd for fd in (its.fileno(), keep) if fd >= 0],
                start_new_session=True,
            )
            on_failure.pop_all()
        ours.setblocking(False)
        guarded = Guarded(self, mark, process, ours)
        try:
            await guarded.started()
        except BaseException:
            await guarded.kill()
            with trio.CancelScope(shield=True):  # nothing is waited for
                for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
                    await stream.aclose()
            raise
        return guarded

    def forget(self, mark: str) -> None:
        self._live.discard(mark)

    async def kill_marked(self, mark: str) -> int:
        """Kill whatever carries the mark; how many processes that were."""
        killed: set[int] = set()
        while found := [pid for pid, found_mark in await self._marked() if found_mark == mark]:
            for pid in found:
                killed.add(pid)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            await trio.sleep(KILL_PAUSE)
        return len(killed)

    async def orphans(self) -> int:
        """How many processes live that were started by commands which have ended; looked for anew."""
        if not self._count:
            return 0
        found = await self._marked()
        return sum(mark not in self._live for _, mark in found)

    async def _marked(self) -> list[tuple[int, str]]:
        look: partial[list[tuple[int, str]]] = partial(list, marked(self._node))
        return await trio.to_thread.run_sync(look, limiter=self._limiter)


def marked(node: str) -> Iterator[tuple[int, str]]:
    """(pid, mark) of the processes that carry a mark of this node; none where there is no /proc."""
    wanted = f"{MARK}={node}.".encode()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):
                for entry in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    if entry.startswith(wanted):
                        yield int(name), entry.partition(b"=")[2].decode()


def without_settings() -> dict[str, str]:
    """The environment, but for the node's own settings, its passwords among them."""
    return {name: value for name, value in os.environ.items() if not (name.startswith("ATM_") and "__" in name)}
