"""Servers of the tests' own: real ones, as processes, on free ports of 127.0.0.1, in folders that vanish.

    with MariaDb() as server, RedisServer() as redis:
        server.create_database("atm_1")
        environ = {**server.environ("atm_1"), **redis.environ()}

Both can be stopped, killed, paused, and started again on the same port with the data that they had.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from keeper import keeper
from running import free_ports

PATIENCE = 30.0
"""Seconds that a server gets to come up, to go down, or to answer."""

ROOMY = 2 << 30
"""Bytes that have to be free in memory before data folders are put there."""

PACKAGES = "mariadb-server-core, mariadb-client-core and redis-tools, or run nox, which does it"


class Missing(Exception):
    """A program that the tests need is not installed."""


def program(*names: str) -> Path:
    """The first of these programs that is installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"])
    for name in names:
        if found := shutil.which(name, path=path):
            return Path(found)
    raise Missing(f"{' or '.join(names)} is not installed; on Debian and Ubuntu install {PACKAGES}")


def place(*, on_disk: bool = False) -> Path:
    """Where data folders are made: in memory when there is room, for speed."""
    memory = Path("/dev/shm")
    if not on_disk and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOMY:
        return memory
    return Path(tempfile.gettempdir())


class Server(ABC):
    """A process that listens on a port. Ended with the block that holds it, or with the test run."""

    name: str
    host: str = "127.0.0.1"
    port: int

    def __init__(self, *, on_disk: bool = False) -> None:
        [self.port] = free_ports(1)
        self.folder = keeper.folder(place(on_disk=on_disk))
        self.log = self.folder / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The name that it shall run by, and its arguments."""

    @abstractmethod
    def executable(self) -> Path: ...

    @abstractmethod
    def answers(self) -> bool:
        """Whether it takes commands. Raises OSError while it does not listen."""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def start(self) -> Self:
        """Returns when it takes commands."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = keeper.start(
                self.command(),
                executable=self.executable(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self.name} did not come up:\n{self.log.read_text(errors='replace')}")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """SIGTERM: it goes in order, with its data on the disk. Nothing happens if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL. Nothing happens if it does not run."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay, and nothing answers once this returns."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not has_stopped(self.pid):
            assert time.monotonic() < deadline, "the server does not stop"
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> Self:
        self.stop()
        return self.start()

    def close(self) -> None:
        """The end: process and data are gone."""
        self.kill()
        keeper.remove(self.folder)

    def _ready(self) -> bool:
        try:
            return self.answers()
        except OSError:
            return False

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            keeper.ended(process)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Databases:
    """A server's databases, and how to get at them over TCP: ``host``, ``port``, ``user``, ``password``."""

    host: str
    port: int
    user: str
    password: str

    def login(self) -> list[str]:
        """The client's options, for a user who may do everything."""
        return [f"--host={self.host}", f"--port={self.port}", f"--user={self.user}", f"--password={self.password}"]

    def sql(self, statements: str, database: str | None = None) -> str:
        """What the statements answer: a line for a row, a tab between columns, no heads."""
        command = [str(program("mariadb", "mysql")), "--no-defaults", *self.login()]
        command += ["--batch", "--skip-column-names", *([database] if database else [])]
        done = subprocess.run(
            command, input=statements, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create_database(self, name: str | None = None) -> str:
        """The name of a new, empty database."""
        name = name or f"atm_{secrets.token_hex(6)}"
        self.sql(f"CREATE DATABASE `{name}`")
        return name

    def drop_database(self, name: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS `{name}`")

    def environ(self, database: str) -> dict[str, str]:
        """A node's settings."""
        return {
            "ATM_DATABASE__HOST": self.host,
            "ATM_DATABASE__PORT": str(self.port),
            "ATM_DATABASE__USER": self.user,
            "ATM_DATABASE__PASSWORD": self.password,
            "ATM_DATABASE__DATABASE": database,
        }


class GivenMySql(Databases):
    """A server that somebody else runs.

    Args:
        said: ``host=127.0.0.1 port=3306 user=root password=secret``; other words are passed over.
    """

    def __init__(self, said: str) -> None:
        words = dict(word.split("=", 1) for word in said.split())
        self.host = words.get("host", "127.0.0.1")
        self.port = int(words.get("port", "3306"))
        self.user = words["user"]
        self.password = words.get("password", "")


class MariaDb(Databases, Server):
    """MariaDB, or MySQL where only that is installed; as durable as by default.

    Args:
        options: command line options, such as ``--max-connections=20``; they win over those given here.
        on_disk: keep the data on a disk, not in memory.
    """

    name = "MariaDB"
    user = "atm"
    password = "atm-secret"

    def __init__(self, *options: str, on_disk: bool = False) -> None:
        first_data = template()
        super().__init__(on_disk=on_disk)
        self.options = options
        self.socket = self.folder / "mysqld.sock"
        self.data = self.folder / "data"
        shutil.copytree(first_data, self.data)
        self._first = self.folder / "first.sql"
        self._first.write_text(
            "DROP USER IF EXISTS ''@'localhost';\n"
            f"CREATE USER IF NOT EXISTS '{self.user}'@'%' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO '{self.user}'@'%';\n"
        )

    def command(self) -> Sequence[str | Path]:
        return [
            daemon(),
            *shape(),
            f"--datadir={self.data}",
            f"--socket={self.socket}",
            f"--pid-file={self.folder / 'pid'}",
            f"--tmpdir={self.folder}",
            f"--port={self.port}",
            f"--bind-address={self.host}",
            f"--init-file={self._first}",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--innodb-flush-log-at-trx-commit=1",
            *self.options,
        ]

    def executable(self) -> Path:
        return daemon()

    def answers(self) -> bool:
        # The greeting comes once the statements of --init-file are done. Its fifth byte is the protocol's version.
        with socket.create_connection((self.host, self.port), timeout=PATIENCE) as wire:
            return wire.recv(5)[4:] == b"\x0a"

    def login(self) -> list[str]:
        return ["--user=root", f"--socket={self.socket}"]


def redis_server() -> Path:
    # Debian's redis-tools has the server under this name, without the service that redis-server would bring.
    return program("redis-server", "redis-check-rdb")


def daemon() -> Path:
    return program("mariadbd", "mysqld")


@functools.cache
def is_mysql() -> bool:
    version = subprocess.run([daemon(), "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return "MariaDB" not in version.stdout


def shape() -> list[str]:
    """What the data is made with, and has to be served with: small, so that it starts fast."""
    small = ["--no-defaults", "--innodb-buffer-pool-size=64M"]
    user = ["--user=root"] if os.geteuid() == 0 else []
    if is_mysql():
        return [*small, *user, "--innodb-redo-log-capacity=16M", "--mysqlx=OFF", "--secure-file-priv=NULL"]
    return [*small, *user, "--innodb-log-file-size=16M"]


@functools.cache
def template() -> Path:
    """A data folder as it is before the first start, made once in a test run."""
    folder = keeper.folder(place())
    data = folder / "data"
    command: list[str | Path]
    if is_mysql():
        command = [daemon(), *shape(), "--initialize-insecure", f"--datadir={data}"]
    else:
        command = [program("mariadb-install-db"), *shape(), f"--datadir={data}", "--skip-test-db"]
        # In a common one each server deletes at its start what others have there.
        command.append(f"--tmpdir={folder}")
        command += ["--auth-root-authentication-method=normal", "--innodb-flush-log-at-trx-commit=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{command[0]} failed:\n{done.stdout}\n{done.stderr}")
    return data


class RedisServer(Server):
    """Redis. It keeps nothing when it ends, unless the options say so.

    Args:
        options: lines of redis.conf, such as ``maxmemory-policy allkeys-lru``, ``appendonly yes`` or
            ``user atm on >secret ~* &* +@all``; they win over those given here.
        password: the default user's password.
        certificate: a PEM file with key and certificate; the port speaks TLS, and only TLS.
        on_disk: keep the data on a disk, not in memory.
    """

    name = "Redis"

    def __init__(
        self, *options: str, password: str | None = None, certificate: Path | None = None, on_disk: bool = False
    ) -> None:
        redis_server()
        super().__init__(on_disk=on_disk)
        self.options = options
        self.password = password
        self.certificate = certificate

    def command(self) -> Sequence[str | Path]:
        lines = [f"bind {self.host}", f"dir {self.folder}", 'save ""', "appendonly no", "daemonize no"]
        if self.certificate:
            lines += ["port 0", f"tls-port {self.port}", "tls-auth-clients no"]
            lines += [f"tls-{part}-file {self.certificate}" for part in ("cert", "key", "ca-cert")]
        else:
            lines += [f"port {self.port}"]
        if self.password is not None:
            lines += [f"requirepass {self.password}"]
        config = self.folder / "redis.conf"
        config.write_text("\n".join([*lines, *self.options, ""]))
        return ["redis-server", config]

    def executable(self) -> Path:
        return redis_server()

    def answers(self) -> bool:
        return bool(self.call("PING") == "PONG")

    def call(self, *words: str | int, db: int = 0) -> Any:
        """What the command answers, said on a connection of its own: text, number, list or None.

        Raises:
            RedisRefused: Redis answered with an error.
            OSError: it did not answer.
        """
        with contextlib.ExitStack() as stack:
            wire = stack.enter_context(socket.create_connection((self.host, self.port), timeout=PATIENCE))
            if self.certificate:
                trust = ssl.create_default_context()
                trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
                wire = stack.enter_context(trust.wrap_socket(wire))
            answers = stack.enter_context(wire.makefile("rb"))
            before: list[tuple[str | int, ...]] = [("SELECT", db)] if db else []
            if self.password is not None:
                before.insert(0, ("AUTH", self.password))
            for command in [*before, words]:
                wire.sendall(_request(command))
                answer = _answer(answers)
            return answer

    def flushall(self) -> None:
        self.call("FLUSHALL")

    def environ(self, db: int = 0) -> dict[str, str]:
        """A node's settings."""
        if self.certificate:
            login = f":{self.password}@" if self.password is not None else ""
            return {"ATM_REDIS__URL": f"rediss://{login}{self.host}:{self.port}/{db}"}
        environ = {"ATM_REDIS__ADDR": f"{self.host}:{self.port}", "ATM_REDIS__DB": str(db)}
        if self.password is not None:
            environ["ATM_REDIS__PASSWORD"] = self.password
        return environ


class RedisRefused(OSError):
    """Redis answered with an error; its text is the message."""


def _request(words: Sequence[str | int]) -> bytes:
    parts = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def _answer(answers: Any) -> Any:
    line: bytes = answers.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("Redis closed the connection")
    kind, rest = line[:1], line[1:-2].decode()
    match kind:
        case b"+":
            return rest
        case b"-":
            raise RedisRefused(rest)
        case b":":
            return int(rest)
        case b"$" if rest == "-1":
            return None
        case b"$":
            return answers.read(int(rest) + 2)[:-2].decode(errors="replace")
        case b"*" if rest == "-1":
            return None
        case b"*":
            return [_answer(answers) for _ in range(int(rest))]
    raise AssertionError(f"unknown answer of Redis: {line!r}")


def has_stopped(pid: int) -> bool:
    """Whether a signal has stopped all threads of the process: it takes each of them a moment."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # that thread has ended
            if (task / "stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
                return False
    return True
