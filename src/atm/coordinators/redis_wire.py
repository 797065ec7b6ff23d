"""Connections to Redis, and the scripts that run there. Nothing is sent twice: driver retries are off."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import trio
from redis._parsers.base import BaseParser
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from atm.errors import ConfigError, StartError

DEFAULT_PORT = 6379
OLDEST = (6, 0)


class Away(Exception):
    """A message did not get through, or its answer did not."""


Refused = redis.ResponseError
"""What Redis answers instead of carrying a command out."""


def is_full(refusal: Refused) -> bool:
    """Whether a command was refused for want of memory."""
    # Out of a script the code of the error may stand in the middle of its text.
    return isinstance(refusal, redis.exceptions.OutOfMemoryError) or "OOM " in str(refusal)


@dataclass(frozen=True)
class RedisSettings:
    """Where Redis is.

    Args:
        addr: ``host:port``; ignored when there is a ``url``.
        password, db: where the url does not say them.
        url: ``redis://``, ``rediss://`` (TLS), ``unix://``, or
            ``sentinel://[[user]:password@]host:port[,host:port ...]/service[/db][?sentinel_password=...]``.
        prefix: stands before all names of keys and channels. A ``{tag}`` in it brings them all to one node of a
            Redis Cluster; what is missing for that is a connection which follows MOVED.
    """

    addr: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    url: str | None = field(default=None, repr=False)
    prefix: str = ""


class Script:
    """A Lua script of this package, by its file's name."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _read_scripts() -> dict[str, Script]:
    texts = {
        file.name.removesuffix(".lua"): file.read_text(encoding="utf-8")
        for file in (resources.files(__package__) / "lua").iterdir()
    }
    common = texts.pop("common")
    return {name: Script(name, f"{common}\n{text}") for name, text in texts.items()}


SCRIPTS = _read_scripts()


def pool_of(settings: RedisSettings, timeout: float) -> redis.ConnectionPool:
    """Makes connections to where the settings say. Raises ConfigError."""
    try:
        return _pool(settings, timeout)
    # Their words might quote a password that makes the url unreadable.
    except (ValueError, TypeError):
        key = "redis.addr" if settings.url is None else "redis.url"
        expected = "host:port" if settings.url is None else "redis://, rediss://, unix:// or sentinel://"
        raise ConfigError(key, f"cannot be read; expected {expected}") from None


def _pool(settings: RedisSettings, timeout: float) -> redis.ConnectionPool:
    options: dict[str, Any] = {
        "password": settings.password,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
        # By default it would run a slow script eleven times.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if settings.url is None:
        host, port = _host_and_port(settings.addr or "127.0.0.1")
        return redis.ConnectionPool(host=host, port=port, db=settings.db, **options)
    if settings.url.startswith("sentinel://"):
        return _sentinel_pool(settings, options)
    return redis.ConnectionPool.from_url(settings.url, db=settings.db, **options)


def _sentinel_pool(settings: RedisSettings, options: dict[str, Any]) -> redis.ConnectionPool:
    assert settings.url is not None
    parts = urlsplit(settings.url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    if not hosts or not service:
        raise ValueError("expected sentinel://host:port,host:port/service")
    options |= {"db": int(db or settings.db), "username": unquote(user) or None}
    options["password"] = unquote(password) or settings.password
    own = {"socket_timeout": options["socket_timeout"], "socket_connect_timeout": options["socket_timeout"]}
    own |= {"password": next(iter(parse_qs(parts.query).get("sentinel_password", ())), None), "protocol": 2}
    own |= {"retry": Retry(NoBackoff(), 0)}
    places = [_host_and_port(place, 26379) for place in hosts.split(",")]
    sentinel: Any = cast("Any", Sentinel)(places, sentinel_kwargs=own, **options)
    pool: redis.ConnectionPool = sentinel.master_for(service).connection_pool
    return pool


def _host_and_port(text: str, default: int = DEFAULT_PORT) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("expected host:port")
    return parts.hostname, parts.port or default


class Wire:
    """A connection, for one task at a time each way.

    The driver connects, in a thread; what comes after goes over its socket in the loop: to hand a request to a
    thread and back costs several times what Redis needs for it.

    Args:
        patience: seconds that it may take to connect, and a request to be sent or answered.
    """

    def __init__(self, settings: RedisSettings, patience: float) -> None:
        self._connection: Any = pool_of(settings, patience).make_connection()
        self._patience = patience
        self._connecting = trio.CapacityLimiter(1)
        self._socket: Any = None
        self._buffer = b""

    def close(self) -> None:
        self._socket = None
        self._buffer = b""
        self._connection.disconnect()

    async def _connect(self) -> None:
        # Not left alone: the driver has deadlines of its own.
        await trio.to_thread.run_sync(self._connection.connect, limiter=self._connecting)
        self._socket = self._connection._sock
        self._socket.setblocking(False)

    async def _send(self, commands: Iterable[Sequence[str | bytes]]) -> None:
        rest = memoryview(b"".join(self._connection.pack_commands(commands)))
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await trio.lowlevel.wait_writable(self._socket)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._socket)

    async def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                await trio.lowlevel.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._socket)
            else:
                if not data:
                    raise OSError("Connection closed by server.")
                self._buffer += data
                return

    async def _answer(self) -> Any:
        """The next answer, or what it says was refused. Raises redis.RedisError where that speaks of an outage."""
        while True:
            try:
                answer, end = _read(self._buffer, 0)
                break
            except _Incomplete:
                await self._receive()
        self._buffer = self._buffer[end:]
        if isinstance(answer, redis.RedisError) and not isinstance(answer, Refused):
            raise answer
        return answer


class Line(Wire):
    """For requests. It comes back by itself with the next one."""

    def __init__(self, settings: RedisSettings, patience: float) -> None:
        super().__init__(settings, patience)
        self._prefix = settings.prefix.encode()

    async def command(self, *words: str | bytes) -> Any:
        """Raises Away; redis.RedisError for a command that is refused."""
        [answer] = await self._exchange([words])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def evaluate(self, requests: Sequence[tuple[Script, tuple[bytes, ...]]]) -> list[Any]:
        """What the scripts answer, in order; an exception where one was refused. Raises Away."""
        commands: list[tuple[str | bytes, ...]]
        commands = [(b"EVALSHA", script.sha, b"1", self._prefix, *rest) for script, rest in requests]
        answers = await self._exchange(commands)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:
            await self.load_scripts()
            for at, answer in zip(unknown, await self._exchange([commands[at] for at in unknown]), strict=True):
                answers[at] = answer
        return answers

    async def load_scripts(self) -> None:
        """Raises Away."""
        await self._exchange([("SCRIPT", "LOAD", script.text) for script in SCRIPTS.values()])

    async def _exchange(self, commands: Sequence[Sequence[str | bytes]]) -> list[Any]:
        try:
            if self._socket is None:
                await self._connect()
            with trio.fail_after(self._patience):
                await self._send(commands)
                answers = [await self._answer() for _ in commands]
        except (redis.RedisError, OSError, trio.TooSlowError) as error:
            self.close()
            raise Away(_in_words(error)) from error
        except BaseException:
            self.close()
            raise
        if any(isinstance(answer, redis.exceptions.ReadOnlyError) for answer in answers):
            # This is the master no more: ask anew where that is.
            self.close()
            raise Away("the server is a read-only replica")
        return answers


class Ear(Wire):
    """For messages that come by channels. All of it raises Away; then it can only be closed."""

    async def connect(self) -> None:
        with _told_as_away():
            await self._connect()

    async def say(self, *words: str) -> None:
        """Send a command; what it answers comes by ``hear``."""
        with _told_as_away(), trio.fail_after(self._patience):
            await self._send([words])

    async def hear(self) -> list[Any]:
        """The next message. A cancel loses nothing."""
        with _told_as_away():
            message = await self._answer()
            if isinstance(message, Exception):
                raise message
            return cast("list[Any]", message)


@contextmanager
def _told_as_away() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError, trio.TooSlowError) as error:
        raise Away(_in_words(error)) from error


class _Incomplete(Exception):
    """More has to come before this answer can be read."""


_error: Callable[[str], Exception] = BaseParser.parse_error


def _read(data: bytes, at: int) -> tuple[Any, int]:
    """The answer that begins there, in RESP2 (https://redis.io/docs/reference/protocol-spec), and where it ends.

    Raises: _Incomplete.
    """
    end = data.find(b"\r\n", at)
    if end < 0:
        raise _Incomplete
    kind, text, at = data[at : at + 1], data[at + 1 : end], end + 2
    if kind == b"+":
        return text, at
    if kind == b"-":
        return _error(text.decode(errors="replace")), at
    number = int(text)
    if kind == b":":
        return number, at
    if number < 0:
        return None, at
    if kind == b"$":
        if len(data) < at + number + 2:
            raise _Incomplete
        return data[at : at + number], at + number + 2
    if kind != b"*":
        raise redis.exceptions.InvalidResponse(f"Protocol Error: {data[:20]!r}")
    parts = []
    for _ in range(number):
        part, at = _read(data, at)
        parts.append(part)
    return parts, at


async def check(settings: RedisSettings, line: Line) -> None:
    """Raises StartError where a node cannot work with this server; one line, without a password."""
    where = _where(settings)
    try:
        facts = _facts(await line.command("INFO", "server")) | _facts(await line.command("INFO", "memory"))
        # Now, for what has to be loaded while it is wanted comes out of its order.
        await line.load_scripts()
        [answer] = await line.evaluate([(SCRIPTS["probe"], (b"{}",))])
        if isinstance(answer, Exception):
            raise answer
    except (Away, redis.RedisError) as error:
        raise StartError(f"Redis at {where} cannot be used: {error}") from error
    version = facts.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise StartError(f"Redis at {where} is {version}; 6.0 or newer is needed")
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        reason = "would throw queues away; set maxmemory-policy to noeviction"
        raise StartError(f"Redis at {where}: maxmemory-policy {policy} {reason}")


def _facts(info: bytes) -> dict[str, str]:
    lines = info.decode(errors="replace").splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _where(settings: RedisSettings) -> str:
    if settings.url is None:
        return settings.addr or f"127.0.0.1:{DEFAULT_PORT}"
    parts = urlsplit(settings.url)
    return (parts.netloc.rpartition("@")[2] or "") + parts.path


def _in_words(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "it does not answer"
    return " ".join(str(error).split()) or type(error).__name__
