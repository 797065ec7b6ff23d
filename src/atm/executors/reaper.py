"""Runs one command and sees to it that nothing of it survives. A program of its own, not to be imported by others.

    node ─── reaper ─── command ─── whatever it starts
      └──────  a socket, and a handle of the node's life: when either ends, everything below the reaper is killed

It takes in the orphans among its descendants (Linux: PR_SET_CHILD_SUBREAPER), so that a daemon which has left its
parent, its group and its session is still found below it. PR_SET_PDEATHSIG would be a trap: it fires when the
*thread* ends that has started the child. Elsewhere than on Linux only the command's own group is reached.

    python -I -S reaper.py SOCKET NODE_PID KEEP COMMAND ARGUMENT...

SOCKET is a descriptor; KEEP another one that the command inherits, or -1. Nothing but the quick modules of the
standard library: each command waits for this program's start.

    from the node   T  ask all to end (SIGTERM)     K  kill all     S  kill all but the command itself
    to the node     pid N · error ERRNO · exit CODE (negative: the signal) · swept N · gone N
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys

PR_SET_CHILD_SUBREAPER = 36
RESTORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""Signals whose handling the command must not inherit from here."""

PAUSE = 0.002
LONGEST_PAUSE = 0.5
"""Seconds between two rounds of killing: the first pause, and the longest."""


class Reaper:
    def __init__(self, control: socket.socket, node: int) -> None:
        self._control = control
        self._node = node
        self._main = 0
        self._main_ended = False
        self._ending = False
        self._signalled: set[int] = set()
        self._poll = select.poll()
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self, argv: list[str], keep: int = -1) -> None:
        """Start the command; return when it has ended, with all that it has started."""
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(self._control, select.POLLIN)
        node_life = self._watch_node()
        try:
            self._main = os.posix_spawnp(argv[0], argv, os.environ, setsid=True, setsigmask=[], setsigdef=RESTORED)
        except (OSError, ValueError) as error:
            self._tell(f"error {getattr(error, 'errno', None) or 0}")
            return None
        let_go_of_streams()
        if keep >= 0:
            os.close(keep)
        self._tell(f"pid {self._main}")
        while self._reap():
            if self._main_ended and not self._ending:
                break
            for ready, _ in self._poll.poll():
                if ready == node_life or (ready == self._control.fileno() and not self._obey()):
                    return self._kill_all()
                if ready == self._wake:
                    drain(self._wake)
        return self._kill_all()

    def _watch_node(self) -> int:
        """A handle that is readable when the node has ended: its socket's other end may have been inherited."""
        try:
            node_life = os.pidfd_open(self._node)
        except (AttributeError, OSError):
            node_life = -1
        if os.getppid() != self._node:
            sys.exit()
        if node_life >= 0:
            self._poll.register(node_life, select.POLLIN)
        return node_life

    def _obey(self) -> bool:
        """Do what the node says; False when all is to be killed."""
        orders = self._control.recv(64)
        if not orders or b"K" in orders:
            return False
        if b"T" in orders:
            self._ending = True
            self._signal_all(signal.SIGTERM)
        if b"S" in orders:
            self._tell(f"swept {self._sweep()}")
        return True

    def _signal_all(self, number: int) -> None:
        found = self._descendants()  # first of all: they are to be counted
        if not self._main_ended:
            with contextlib.suppress(OSError):
                os.killpg(self._main, number)
        for pid, group in found:
            self._signalled.add(pid)
            if group != self._main or self._main_ended:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)

    def _sweep(self) -> int:
        """Kill what the command has started, and not the command; how many that were."""
        swept: set[int] = set()
        pause = PAUSE
        while found := [pid for pid, _ in self._descendants() if pid != self._main]:
            swept.update(found)
            for pid in found:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            pause = self._rest(pause)
        return len(swept)

    def _kill_all(self) -> None:
        pause = PAUSE
        while self._reap():
            self._signal_all(signal.SIGKILL)
            pause = self._rest(pause)
        self._tell(f"gone {len(self._signalled)}")

    def _rest(self, pause: float) -> float:
        select.select([self._wake], [], [], pause)
        drain(self._wake)
        self._reap()
        return min(2 * pause, LONGEST_PAUSE)

    def _reap(self) -> bool:
        """Take leave of children that have ended; whether there are others."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self._main:
                self._main_ended = True
                self._tell(f"exit {os.waitstatus_to_exitcode(status)}")

    def _descendants(self) -> list[tuple[int, int]]:
        """(pid, group) of all processes below this one that live."""
        families = list(processes())
        below = {os.getpid()}
        found: list[tuple[int, int]] = []
        grown = True
        while grown:
            grown = False
            for pid, state, parent, group in families:
                if parent in below and pid not in below:
                    below.add(pid)
                    grown = True
                    if state not in "ZX":
                        found.append((pid, group))
        return found

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the node has died
            self._control.sendall(line.encode() + b"\n")


def processes() -> list[tuple[int, str, int, int]]:
    """(pid, state, parent, group) of each process; none where there is no /proc."""
    found: list[tuple[int, str, int, int]] = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb", buffering=0) as stat:
                # The name, in brackets, may hold anything.
                state, parent, group = stat.read(1024).rpartition(b")")[2].split()[:3]
                found.append((int(name), state.decode(), int(parent), int(group)))
    return found


def drain(pipe: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(pipe, 4096):
            pass


def let_go_of_streams() -> None:
    """The command's streams end with it, not with this process."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def take_in_orphans() -> None:
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main(control: str, node: str, keep: str, *argv: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(int(control), False)
    take_in_orphans()
    Reaper(socket.socket(fileno=int(control)), int(node)).run(list(argv), int(keep))


if __name__ == "__main__":
    main(*sys.argv[1:])
