"""The way in to MySQL and MariaDB. trio-mysql logs in, with its repair for caching_sha2_password, and no more."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from trio_mysql import _auth, connections, err  # type: ignore[import-untyped]
from trio_mysql.constants import CLIENT  # type: ignore[import-untyped]

from atm.errors import StoreUnavailable, leaf_of
from atm.stores.mysql_connection import Connection, Lost, Rejected, hang_up

CONNECT_PATIENCE = 3.0
READ_PATIENCE = 10.0

MAX_IDLE = 10
"""Seconds after which the server ends a silent connection, and with it the transaction and the locks of a
node that was stopped in the middle of one."""

_SESSION = (
    b"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    b"SET SESSION autocommit = 1, innodb_lock_wait_timeout = 2, wait_timeout = %d, time_zone = '+00:00', "
    b"sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'" % MAX_IDLE,
)


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
                    hang_up(stream)
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
