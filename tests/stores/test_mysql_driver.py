"""The connection to MySQL and MariaDB: ways in, values there and back, deadlines, what is thrown away."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from atm.errors import StoreUnavailable
from atm.stores.mysql_connection import Connection, Lost, Rejected
from atm.stores.mysql_driver import Address, Unreachable, connect
from atm.stores.mysql_pool import Dialer, Pool
from atm.stores.mysql_values import bind
from mysql_site import real_mysql, say, server_address, wired
from servers import MariaDb

needs_mysql = pytest.mark.skipif(real_mysql() is None, reason="asked for by ATM_TEST_MYSQL")


@pytest.fixture
def own_server() -> Iterator[MariaDb]:
    """One to be stopped and paused."""
    with MariaDb() as server:
        yield server


@pytest.fixture
async def connection(address: Address) -> AsyncIterator[Connection]:
    opened = await connect(address)
    yield opened
    opened.close()


async def _number(connection: Connection) -> int:
    [answer] = await connection.run(b"SELECT 42")
    return answer.number


# ways in


async def test_password_over_tcp(connection: Connection) -> None:
    assert await _number(connection) == 42


@pytest.mark.parametrize(
    "password", ["plain", "with 'quotes\" and \\", "密码 é"], ids=["plain", "quotes", "chinese"]
)
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
@needs_mysql
async def test_mysqls_default_login_asks_for_the_password_once_and_knows_it_then(password: str, tls: bool) -> None:
    server = real_mysql()
    assert server is not None
    name = f"atm_{secrets.token_hex(4)}"
    [plugin] = await say(server, "SELECT @@authentication_policy")
    assert plugin.column[0].startswith((b"*", b"caching_sha2_password"))
    admin = await connect(server)
    await admin.run(f"CREATE USER {name} IDENTIFIED WITH caching_sha2_password BY 'x'".encode())
    await admin.run(bind(f"ALTER USER {name} IDENTIFIED BY %s", password))
    try:
        for _ in range(3):  # the first one is asked in full, the others are known by what the server remembers
            connection = await connect(
                replace(server, user=name, password=password, database="information_schema", tls=tls)
            )
            assert await _number(connection) == 42
            connection.close()
        with pytest.raises(Unreachable, match="denies access"):
            await connect(replace(server, user=name, password="wrong", tls=tls))
    finally:
        await admin.run(f"DROP USER {name}".encode())
        admin.close()


async def test_an_empty_password(address: Address) -> None:
    name = f"atm_{secrets.token_hex(4)}"
    await say(address, f"CREATE USER {name} IDENTIFIED BY ''")
    try:
        connection = await connect(replace(address, user=name, password="", database="information_schema"))
        assert await _number(connection) == 42
        connection.close()
    finally:
        await say(address, f"DROP USER {name}")


async def test_a_unix_socket_replaces_host_and_port(maria: MariaDb) -> None:
    address = replace(server_address(maria), host="nowhere.invalid", port=1, socket=str(maria.socket))
    connection = await connect(address)
    assert await _number(connection) == 42
    connection.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of a server at 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test server")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()) + made.public_bytes(encoding))
    return path


@pytest.fixture(scope="module")
def tls_server(certificate: Path) -> Iterator[MariaDb]:
    with MariaDb(f"--ssl-cert={certificate}", f"--ssl-key={certificate}") as server:
        yield server


async def _cipher(address: Address) -> bytes | None:
    [answer] = await say(address, "SHOW STATUS LIKE 'Ssl_cipher'")
    return answer.rows[0][1]


async def test_tls_when_asked_for(tls_server: MariaDb, certificate: Path) -> None:
    address = server_address(tls_server)
    assert not await _cipher(address)
    assert await _cipher(replace(address, tls=True))
    assert await _cipher(replace(address, tls_ca=str(certificate)))


async def test_with_a_ca_the_name_of_the_server_counts(tls_server: MariaDb, certificate: Path) -> None:
    address = replace(server_address(tls_server), host="localhost", tls_ca=str(certificate))
    with pytest.raises(Unreachable) as caught:
        await connect(address)
    assert caught.value.key == "database.tls"


async def test_a_server_without_tls_is_not_talked_to_in_the_clear(maria: MariaDb) -> None:
    with pytest.raises(Unreachable) as caught:
        await connect(replace(server_address(maria), tls=True))
    assert caught.value.key == "database.tls"


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("database.user", {"password": "secret-but-wrong"}),
        ("database.user", {"user": "nobody", "password": "secret-but-wrong"}),
        ("database.database", {"database": "no_such_database"}),
        ("database.host", {"port": 1}),
        ("database.host", {"host": "nowhere.invalid"}),
        ("database.host", {"socket": "/nowhere/mysql.sock"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_way_in_that_is_closed_names_the_setting_in_one_line(
    address: Address, key: str, change: dict[str, object]
) -> None:
    asked = replace(address, **change)  # type: ignore[arg-type]
    with pytest.raises(Unreachable) as caught:
        await connect(asked)
    text = str(caught.value)
    assert caught.value.key == key
    assert "\n" not in text
    assert str(asked) in text
    assert asked.password not in text
    assert asked.password not in repr(asked)


async def test_a_server_that_takes_no_more_says_so() -> None:
    with MariaDb("--max-connections=10") as server:
        address = server_address(server)
        opened: list[Connection] = []
        with pytest.raises(Unreachable, match="too many connections"):  # noqa: PT012
            for _ in range(20):
                opened.append(await connect(address))
        for connection in opened:
            connection.close()


async def test_a_port_where_something_else_listens(autojump_clock: trio.testing.MockClock) -> None:
    async def hear(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), hear, 0)
        port = listener.socket.getsockname()[1]
        with pytest.raises(Unreachable, match="does not answer"):
            await connect(Address("127.0.0.1", port, "u", "p", "d"))
        nursery.cancel_scope.cancel()


# values there and back

TEXTS = ["", "'", "\\", "\\'", "a\0b", '\n\r\x1a\t"%_`', "%s", "é 中文 😀 \u2028", "x" * 70_000]


async def test_texts_come_back_as_they_were(connection: Connection) -> None:
    for text in TEXTS:
        [answer] = await connection.run(bind("SELECT %s", text))
        assert answer.rows == [(text.encode(),)]


async def test_numbers_and_nulls(connection: Connection) -> None:
    [answer] = await connection.run(bind("SELECT %s, %s, %s, %s, %s", -(2**63), 0.1, None, True, 2**63 - 1))
    low, tenth, nothing, truth, high = answer.rows[0]
    assert (low, nothing, truth, high) == (b"-9223372036854775808", None, b"1", b"9223372036854775807")
    assert float(tenth or b"") == 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()], ids=["nan", "infinite", "no value"])
def test_what_no_column_can_hold_is_the_callers_error(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        bind("%s", value)


async def test_several_statements_are_answered_in_order(connection: Connection) -> None:
    many, none, change, one = await connection.run(
        b"SELECT 1 UNION SELECT 2 ORDER BY 1", b"SELECT 1 FROM DUAL WHERE FALSE", b"SET @a = 7", b"SELECT @a"
    )
    assert (many.column, none.rows, change.rows, one.number) == ([b"1", b"2"], [], [], 7)


async def test_a_statement_that_is_refused_ends_the_text_and_not_the_connection(connection: Connection) -> None:
    with pytest.raises(Rejected) as caught:
        await connection.run(b"SET @a = 1", b"SELEKT", b"SET @a = 2")
    assert caught.value.code == 1064
    assert (await connection.run(b"SELECT @a"))[0].number == 1


async def test_answers_and_questions_of_any_size(connection: Connection) -> None:
    for size in (250, 251, 65_535, 65_536, 3_000_000):
        [answer] = await connection.run(b"SELECT REPEAT('x', %d)" % size)
        assert answer.rows == [(b"x" * size,)]
    parts = [bind("SELECT LENGTH(%s)", "x" * 3_000_000)] * 4  # more than one packet may hold
    assert [answer.number for answer in await connection.run(*parts)] == [3_000_000] * 4


async def test_an_answer_of_more_than_one_packet(address: Address) -> None:
    connection = await connect(address)
    size = (1 << 24) + 5
    [limit] = await connection.run(b"SELECT @@max_allowed_packet")
    if limit.number > size:
        [answer] = await connection.run(b"SELECT REPEAT('x', %d), 'end'" % size)
        assert [len(value or b"") for value in answer.rows[0]] == [size, 3]
    else:
        [answer] = await connection.run(b"SELECT REPEAT('x', %d), 'end'" % (limit.number - 1))
        assert [len(value or b"") for value in answer.rows[0]] == [limit.number - 1, 3]
    connection.close()


async def test_rows_met_are_counted_though_they_do_not_change(connection: Connection) -> None:
    [*_, same] = await connection.run(
        b"CREATE TEMPORARY TABLE atm_t (n INT)", b"INSERT INTO atm_t VALUES (1), (1)", b"UPDATE atm_t SET n = 1"
    )
    assert same.met == 2


# what is thrown away


async def _slots(pool: Pool) -> int:
    """The number of the server's connection that the pool gives."""
    async with pool.connection() as connection:
        return (await connection.run(b"SELECT CONNECTION_ID()"))[0].number


async def test_a_connection_is_used_again(address: Address) -> None:
    pool = Pool(Dialer(address), 1)
    assert await _slots(pool) == await _slots(pool)
    pool.close()


async def test_a_refusal_rolls_back_and_keeps_the_connection(address: Address) -> None:
    pool = Pool(Dialer(address), 1)
    before = await _slots(pool)
    with pytest.raises(Rejected):
        async with pool.connection() as connection:
            await connection.run(b"BEGIN", b"SELEKT")
    async with pool.connection() as connection:
        assert not connection.in_transaction
        assert (await connection.run(b"SELECT CONNECTION_ID()"))[0].number == before
    pool.close()


async def test_a_transaction_left_open_is_rolled_back(address: Address) -> None:
    pool = Pool(Dialer(address), 1)
    async with pool.connection() as connection:
        await connection.run(b"BEGIN", b"SELECT 1")
        assert connection.in_transaction
    async with pool.connection() as connection:
        assert not connection.in_transaction
    pool.close()


@pytest.mark.parametrize("size", [1, 12_000_000], ids=["waiting for the answer", "still sending"])
async def test_a_cancelled_question_throws_its_connection_away(own_server: MariaDb, size: int) -> None:
    pool = Pool(Dialer(server_address(own_server)), 1)
    before = await _slots(pool)
    own_server.pause()
    try:
        with trio.move_on_after(0.1) as scope:
            async with pool.connection() as connection:
                await connection.run(bind("SELECT LENGTH(%s)", "x" * size))
        assert scope.cancelled_caught
        assert connection.broken
    finally:
        own_server.resume()
    assert await _slots(pool) != before
    pool.close()


async def test_a_server_that_does_not_answer_in_time_is_lost(own_server: MariaDb) -> None:
    pool = Pool(Dialer(server_address(own_server), patience=0.2), 1)
    await _slots(pool)
    own_server.pause()
    with pytest.raises(Lost, match="does not answer"):
        await _slots(pool)
    own_server.resume()
    assert await _slots(pool)
    pool.close()


async def test_a_connection_that_is_cut_is_lost(address: Address) -> None:
    async with wired(address) as wire:
        pool = Pool(Dialer(wire.address), 1)
        wire.cut(lambda data: b"CONNECTION_ID" in data)
        with pytest.raises(Lost, match="hung up"):
            await _slots(pool)
        assert await _slots(pool)
        pool.close()


async def test_after_a_failure_calls_fail_at_once_for_a_while_and_then_it_is_tried_again(
    own_server: MariaDb,
) -> None:
    dialer = Dialer(server_address(own_server))
    pool = Pool(dialer, 4)
    await _slots(pool)
    own_server.kill()
    with pytest.raises(Lost):
        await _slots(pool)
    refused = 0
    with trio.fail_after(30):
        while refused < 5:
            with pytest.raises(StoreUnavailable, match="refused"):
                await _slots(pool)
            refused += 1
        own_server.start()
        while True:
            try:
                assert await _slots(pool)
                break
            except StoreUnavailable:
                await trio.sleep(0.01)
    pool.close()


async def test_waiting_callers_do_not_storm_a_server_that_is_away(own_server: MariaDb) -> None:
    own_server.stop()
    dialer = Dialer(server_address(own_server))
    pool = Pool(dialer, 50)
    asked: list[str] = []

    async def ask() -> None:
        with pytest.raises(StoreUnavailable) as caught:
            await _slots(pool)
        asked.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
    assert len(asked) == 50


async def test_no_more_connections_than_the_pool_has_places(address: Address) -> None:
    pool = Pool(Dialer(address), 2)
    seen: set[int] = set()

    async def ask() -> None:
        seen.add(await _slots(pool))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert 1 <= len(seen) <= 2
    pool.close()
