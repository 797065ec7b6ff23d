"""Connections to MySQL and MariaDB: login, deadlines, a pool; a text of several statements is one round trip.

trio-mysql logs in, with its repair for caching_sha2_password; what comes after is read here: a packet a row
costs a task switch there. A connection on which anything went wrong, a cancellation included, is never used
again, except that a statement which the server refused leaves it sound: then its transaction is rolled back.
"""

from __future__ import annotations

import math
import random
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import trio
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from trio_mysql import _auth, connections, err  # type: ignore[import-untyped]
from trio_mysql.constants import CLIENT  # type: ignore[import-untyped]

from atm.errors import StoreUnavailable, leaf_of

CONNECT_PATIENCE = 3.0
READ_PATIENCE = 10.0
FIRST_BACKOFF, MAX_BACKOFF = 0.05, 1.0

MAX_IDLE = 10
"""Seconds after which the server ends a silent connection, and with it the transaction and the locks of a
node that was stopped in the middle of one."""

KEEP_ALIVE = 3.0
TOO_OLD = MAX_IDLE - 2.0

MAX_TRIP = 8 << 20
"""Bytes sent in one go where several statements are to be sent; servers take 16 MiB at least."""

MAX_PACKET = (1 << 24) - 1

RETRY = frozenset({1205, 1213, 1020})
"""Lock wait timeout, deadlock, record changed: to be rolled back and run again."""

OUTAGE = frozenset(
    {1021, 1030, 1037, 1038, 1040, 1041, 1044, 1045, 1049, 1053, 1114, 1129, 1135, 1158, 1159, 1160}
)
OUTAGE |= {1161, 1180, 1181, 1203, 1226, 1290, 1836, 3032, 3168, 4025}
"""Full, read only, too many connections, denied, tables gone: nothing that the caller is to blame for."""

NOT_NULL, DUPLICATE = 1048, 1062

READ_ONLY = frozenset({1290, 1836})

GONE = frozenset({1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1317, 1927, 2006, 2013, 4031})
"""The connection is ended or the statement was: whether it counted is unknown."""

_SESSION = (
    b"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    b"SET SESSION autocommit = 1, innodb_lock_wait_timeout = 2, wait_timeout = %d, time_zone = '+00:00', "
    b"sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'" % MAX_IDLE,
)
_IN_TRANSACTION, _MORE_RESULTS = 1, 8


@dataclass(frozen=True)
class Address:
    """Where the database is, and who asks. ``socket`` is a path and replaces host and port.

    ``tls`` encrypts; ``tls_ca``, a PEM file, makes sure of the server too: of its certificate and its name.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    socket: str | None = None
    tls: bool = False
    tls_ca: str | None = None

    def __str__(self) -> str:
        return self.socket or f"{self.host}:{self.port}"


class Unreachable(StoreUnavailable):
    """No connection can be had.

    Args:
        key: the setting that is likely at fault, such as ``database.host``.
        reason: what went wrong, in one line.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


class Rejected(Exception):
    """The server refused a statement. The connection is sound; the transaction is rolled back."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.text = text


class Lost(Exception):
    """The connection was lost on the way: whether the statements were carried out is unknown."""


class Result(NamedTuple):
    """What one statement answered. ``met``: rows that an UPDATE, INSERT or DELETE has met."""

    rows: list[tuple[bytes | None, ...]]
    met: int

    @property
    def column(self) -> list[bytes]:
        """The first column, which has no NULLs."""
        return [row[0] for row in self.rows]  # type: ignore[misc]

    @property
    def number(self) -> int:
        """The one number that was asked for."""
        value = self.rows[0][0]
        assert value is not None
        return int(value)


# texts of statements


def literal(value: object) -> bytes:
    """The value as it stands in a statement."""
    if value is None:
        return b"NULL"
    if isinstance(value, str):
        return quote(value.encode())
    if isinstance(value, bytes):
        return quote(value)
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be stored")
        return repr(value).encode()
    raise TypeError(f"{type(value).__name__} cannot be stored")


def quote(text: bytes) -> bytes:
    text = text.replace(b"\\", b"\\\\").replace(b"'", b"\\'").replace(b"\0", b"\\0")
    return b"'" + text + b"'"


def bind(sql: str, *values: object) -> bytes:
    """The statement with the values at its ``%s``."""
    return sql.encode() % tuple(map(literal, values))


def listing(values: Iterable[object]) -> bytes:
    """The values in brackets, for IN."""
    return b"(" + b",".join(map(literal, values)) + b")"


# login


class _CachingSha2:
    """MySQL's default way to log in. trio-mysql's own lacks an ``await`` in two places."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def authenticate(self, packet: Any) -> Any:
        connection = self._connection
        password: bytes = connection.password
        nonce: bytes = packet.read_all()[: _auth.SCRAMBLE_LENGTH]
        packet = await self._say(_auth.scramble_caching_sha2(password, nonce))
        if not packet.is_extra_auth_data():
            return packet  # it is satisfied: an empty password
        packet.advance(1)
        verdict = packet.read_uint8()
        if verdict == 3:
            return await connection._read_packet()
        if verdict != 4:
            raise err.OperationalError(2012, f"the server asks for an unknown kind of login ({verdict})")
        if connection._secure:
            return await self._say(password + b"\0")
        key = await self._say(b"\x02")
        return await self._say(_encrypt(password, nonce, key._data[1:]))

    async def _say(self, data: bytes) -> Any:
        await self._connection.write_packet(data)
        return await self._connection._read_packet()


def _encrypt(password: bytes, nonce: bytes, key: bytes) -> bytes:
    public = serialization.load_pem_public_key(key)
    assert isinstance(public, rsa.RSAPublicKey)
    secret = password + b"\0"
    mixed = bytes(byte ^ nonce[at % len(nonce)] for at, byte in enumerate(secret))
    oaep = padding.OAEP(mgf=padding.MGF1(algorithm=hashes.SHA1()), algorithm=hashes.SHA1(), label=None)  # noqa: S303
    return public.encrypt(mixed, oaep)


class _Login(connections.Connection):  # type: ignore[misc]
    """Logs in, no more."""

    _auth_plugin_name: str

    async def _get_server_information(self) -> None:
        await super()._get_server_information()
        if self._auth_plugin_name == "caching_sha2_password":
            self._auth_plugin_name = ""  # unnamed, the server asks for it, and our own handler answers


def _trust(address: Address) -> ssl.SSLContext | None:
    if not (address.tls or address.tls_ca):
        return None
    trust = ssl.create_default_context(cafile=address.tls_ca)
    if address.tls_ca is None:
        trust.check_hostname = False
        trust.verify_mode = ssl.CERT_NONE
    return trust


def _close(stream: Any) -> None:
    """Close the socket below, without a word to the other side."""
    while not isinstance(stream, trio.SocketStream):
        stream = stream.transport_stream
    stream.socket.close()


async def connect(address: Address, patience: float = READ_PATIENCE) -> Connection:
    """Log in. Raises Unreachable."""
    with _explained(address):
        with trio.fail_after(CONNECT_PATIENCE):
            if address.socket is not None:
                stream: trio.abc.Stream = await trio.open_unix_socket(address.socket)
            else:
                stream = await trio.open_tcp_stream(address.host, address.port)
            login: Any = None
            sound = False
            try:
                login = _Login(
                    host=address.host,
                    user=address.user,
                    password=address.password.encode(),
                    database=address.database,
                    charset="utf8mb4",
                    client_flag=CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS,
                    auth_plugin_map={b"caching_sha2_password": _CachingSha2},
                    autocommit=None,
                    ssl=_trust(address),
                )
                login._secure = address.socket is not None
                await login.connect(sock=stream)
                if login.ssl and not isinstance(login._sock, trio.SSLStream):
                    raise Unreachable("database.tls", f"the server at {address} does not speak TLS")
                connection = Connection(login._sock, str(address), patience)
                await connection.run(*_SESSION)
                sound = True
            finally:
                if login is not None:
                    stream = login._sock or stream
                    login._sock = None  # from now on the connection's own
                if not sound:
                    _close(stream)
    return connection


@contextmanager
def _explained(address: Address) -> Iterator[None]:
    """Turn every failure to connect into Unreachable."""
    at = f"MySQL at {address}"
    try:
        yield
    except trio.TooSlowError:
        raise Unreachable("database.host", f"{at} does not answer") from None
    except socket.gaierror as error:
        raise Unreachable("database.host", f"{at}: {(error.strerror or 'unknown host').lower()}") from None
    except ssl.SSLError as error:
        raise Unreachable("database.tls", f"{at}: {_line(error.reason or error)}") from None
    except trio.BrokenResourceError as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise Unreachable("database.tls", f"{at}: {_line(error.__cause__)}") from None
        raise Unreachable("database.host", f"{at} hung up") from None
    except OSError as error:
        # Of a host whose addresses all fail trio tells the reasons in a group, as the cause.
        cause = error if error.__cause__ is None else leaf_of(error.__cause__, OSError) or error
        raise Unreachable("database.host", f"{at}: {_line(cause.strerror or cause).lower()}") from None
    except err.MySQLError as error:
        raise _login_failure(error, address) from None
    except Rejected as error:
        raise Unreachable("database", f"{at}: {_line(error)}") from None
    except Lost:
        raise Unreachable("database.host", f"{at} hung up") from None


def _login_failure(error: Exception, address: Address) -> Unreachable:
    code, text = error.args if len(error.args) == 2 else (0, error)
    at = f"MySQL at {address}"
    match code:
        case 1045 | 1698:
            return Unreachable(
                "database.user", f"{at} denies access to user {address.user}: check database.password"
            )
        case 1044:
            return Unreachable("database.database", f"{at}: user {address.user} may not use {address.database}")
        case 1049:
            return Unreachable("database.database", f"{at} has no database {address.database}")
        case 1040 | 1203 | 1226:
            return Unreachable("database", f"{at} has too many connections")
        case 2006 | 2013:
            return Unreachable("database.host", f"{at} hung up")
    original = getattr(error, "original_exception", None)
    key = "database.tls" if isinstance(original, ssl.SSLError) else "database.host"
    return Unreachable(key, f"{at}: {_line(original or text)}")


def _line(value: object) -> str:
    return " ".join(str(value).split())


# what comes after


class Connection:
    """A session. ``run`` is for one task at a time."""

    def __init__(self, stream: trio.abc.Stream, name: str, patience: float) -> None:
        self._stream = stream
        self._name = name
        self._patience = patience
        self._buffer = bytearray()
        self.broken = False
        self.in_transaction = False
        self.used_at = trio.current_time()

    async def run(self, *statements: bytes) -> list[Result]:
        """Carry the statements out, in as few round trips as their size allows; the result of each.

        Raises: Rejected at the first one that is refused, those behind it are not carried out; Lost.
        """
        results: list[Result] = []
        for trip in _trips(statements):
            results += await self._ask(trip)
        return results

    def close(self) -> None:
        self.broken = True
        _close(self._stream)

    async def _ask(self, text: bytes) -> list[Result]:
        if len(text) >= MAX_PACKET:
            raise ValueError("a statement is too long")
        assert not self.broken
        self.broken = True
        try:
            with trio.fail_after(self._patience):
                await self._stream.send_all((len(text) + 1).to_bytes(3, "little") + b"\0\x03" + text)
                reply = await self._receive()
        except trio.TooSlowError:
            raise Lost(f"MySQL at {self._name} does not answer") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            raise Lost(f"MySQL at {self._name} hung up") from None
        self.used_at = trio.current_time()
        self.in_transaction = bool(reply.status & _IN_TRANSACTION)
        if reply.error is not None:
            code, message = reply.error
            if code in GONE:
                raise Lost(f"MySQL at {self._name}: {message}")
            # Of a server that became read only: the next connection may lead to the new primary.
            self.broken = code in READ_ONLY
            self.in_transaction = True  # perhaps: an error does not say
            raise Rejected(code, message)
        self.broken = False
        return reply.results

    async def _receive(self) -> _Reply:
        reply, buffer, at, large = _Reply(), self._buffer, 0, b""
        while True:
            while len(buffer) - at >= 4:
                end = at + 4 + int.from_bytes(buffer[at : at + 3], "little")
                if len(buffer) < end:
                    break
                packet = bytes(buffer[at + 4 : end])
                at = end
                if len(packet) == MAX_PACKET:
                    large += packet
                elif reply.take(large + packet if large else packet):
                    del buffer[:at]
                    return reply
                else:
                    large = b""
            data = await self._stream.receive_some(65536)
            if not data:
                raise trio.BrokenResourceError
            del buffer[:at]
            at = 0
            buffer += data


def _trips(statements: Iterable[bytes]) -> Iterator[bytes]:
    some: list[bytes] = []
    size = 0
    for statement in statements:
        if some and size + len(statement) > MAX_TRIP:
            yield b";".join(some)
            some, size = [], 0
        some.append(statement)
        size += len(statement) + 1
    if some:
        yield b";".join(some)


class _Reply:
    """The answer to a text of statements, put together from its packets."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.error: tuple[int, str] | None = None
        self.status = 0
        self._columns = 0
        self._heads = 0
        self._rows: list[tuple[bytes | None, ...]] | None = None

    def take(self, packet: bytes) -> bool:
        """True when this was the last one."""
        first = packet[0]
        if first == 0xFF:
            self.error = int.from_bytes(packet[1:3], "little"), packet[9:].decode(errors="replace")
            return True
        if self._heads:
            self._heads -= 1  # names of columns, and the mark behind them
            return False
        if self._rows is None:
            return self._begin(packet)
        if first == 0xFE and len(packet) < 9:
            self.results.append(Result(self._rows, len(self._rows)))
            self._rows = None
            return self._end(int.from_bytes(packet[3:5], "little"))
        self._rows.append(_fields(packet, self._columns))
        return False

    def _begin(self, packet: bytes) -> bool:
        if packet[0] == 0:
            count, at = _length(packet, 1)
            _, at = _length(packet, at)
            self.results.append(Result([], count))
            return self._end(int.from_bytes(packet[at : at + 2], "little"))
        self._columns, _ = _length(packet, 0)
        self._heads = self._columns + 1
        self._rows = []
        return False

    def _end(self, status: int) -> bool:
        self.status = status
        return not status & _MORE_RESULTS


def _fields(packet: bytes, columns: int) -> tuple[bytes | None, ...]:
    fields: list[bytes | None] = []
    at = 0
    for _ in range(columns):
        if packet[at] == 0xFB:
            fields.append(None)
            at += 1
        else:
            size, at = _length(packet, at)
            fields.append(packet[at : at + size])
            at += size
    return tuple(fields)


def _length(packet: bytes, at: int) -> tuple[int, int]:
    """A number in the protocol's own coding, and where the next thing begins."""
    first = packet[at]
    if first < 0xFB:
        return first, at + 1
    width = {0xFC: 2, 0xFD: 3, 0xFE: 8}[first]
    return int.from_bytes(packet[at + 1 : at + 1 + width], "little"), at + 1 + width


# the pool


class Dialer:
    """Makes connections, one at a time; after a failure none for a while: calls fail at once then."""

    def __init__(self, address: Address, patience: float = READ_PATIENCE) -> None:
        self.address = address
        self._patience = patience
        self._dialing = trio.Lock()
        self._backoff = 0.0
        self._not_before = -math.inf
        self._failure = Unreachable("database.host", f"MySQL at {address} was not asked yet")

    async def dial(self) -> Connection:
        """Raises Unreachable."""
        async with self._dialing:
            if trio.current_time() < self._not_before:
                raise Unreachable(self._failure.key, str(self._failure))
            try:
                connection = await connect(self.address, self._patience)
            except Unreachable as failure:
                self._failure = failure
                self._backoff = min(max(FIRST_BACKOFF, 2 * self._backoff), MAX_BACKOFF)
                self._not_before = trio.current_time() + self._backoff * random.uniform(0.75, 1)
                raise
            self._backoff = 0.0
            return connection


class Pool:
    """Connections that are used again. ``size``: how many there are at most."""

    def __init__(self, dialer: Dialer, size: int) -> None:
        self._dialer = dialer
        self._slots = trio.Semaphore(size)
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of one's own, without a transaction. Raises Unreachable."""
        async with self._slots:
            connection = self._rested() or await self._dialer.dial()
            sound = False
            try:
                try:
                    yield connection
                except Exception:
                    sound = await self._rolled_back(connection)
                    raise
                sound = await self._rolled_back(connection)
            finally:
                if sound:
                    self._idle.append(connection)
                else:
                    connection.close()

    async def keep_alive(self) -> None:
        """Have idle connections say something now and then, until cancelled."""
        while True:
            await trio.sleep(KEEP_ALIVE)
            tired = [c for c in self._idle if trio.current_time() - c.used_at > KEEP_ALIVE / 2]
            for connection in tired:
                if connection in self._idle:
                    self._idle.remove(connection)
                    await self._ping(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _rested(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if trio.current_time() - connection.used_at < TOO_OLD:
                return connection
            connection.close()
        return None

    @staticmethod
    async def _rolled_back(connection: Connection) -> bool:
        """End what transaction there may be; whether the connection is sound."""
        if connection.in_transaction and not connection.broken:
            try:
                await connection.run(b"ROLLBACK")
            except (Rejected, Lost):
                return False
        return not connection.broken

    async def _ping(self, connection: Connection) -> None:
        try:
            await connection.run(b"SELECT 1")
        except (Rejected, Lost):
            connection.broken = True
        finally:
            if connection.broken:
                connection.close()
            else:
                self._idle.append(connection)
