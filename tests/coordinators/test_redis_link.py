"""The way to Redis: what it takes to start, and what an outage does."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from atm.coordinators import redis_link
from atm.coordinators.redis import RedisCoordinator, RedisSettings
from atm.errors import ConfigError, StartError
from atm.nursery.balance import LeastTask
from contracts.hall import PATIENCE, PATIENT_TTL, hint, leading, serving, worker
from coordinators.conftest import OpenNode, eventually, settings_of, standing
from running import free_ports
from servers import RedisServer

SECRET = "s3cr3t-p4ssword"


async def works(settings: RedisSettings) -> None:
    """A task is handed over, over messages and all."""
    node = RedisCoordinator(settings, leader_ttl=PATIENT_TTL)
    async with serving(node), leading(node):
        await node.register(worker("w"))
        await node.push([hint("a1")])
        assert await node.dispatch(LeastTask(), 10) == 1
        with trio.fail_after(PATIENCE):
            assert [item.task_id for item in await node.take("w")] == ["a1"]


async def refusal(settings: RedisSettings) -> str:
    with pytest.raises(StartError) as caught:
        await RedisCoordinator(settings).run()
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


# settings


async def test_a_password_is_enough() -> None:
    with RedisServer(password=SECRET) as server:
        await works(settings_of(server, db=3))
        assert server.call("HGET", "worker:w", "capacity", db=3) == "10"


async def test_a_wrong_password_or_none_is_told_in_one_line() -> None:
    with RedisServer(password="another") as server:
        address = f"{server.host}:{server.port}"
        assert address in await refusal(RedisSettings(addr=address, password=SECRET))
        assert "uthentication" in await refusal(RedisSettings(addr=address))
        assert address in await refusal(RedisSettings(url=f"redis://:{SECRET}@{address}/0"))


async def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    [port] = free_ports(1)
    assert f"127.0.0.1:{port}" in await refusal(RedisSettings(addr=f"127.0.0.1:{port}", password=SECRET))


async def test_a_server_that_throws_keys_away_is_refused() -> None:
    with RedisServer("maxmemory 100mb", "maxmemory-policy allkeys-lru") as server:
        assert "maxmemory-policy allkeys-lru" in await refusal(settings_of(server))


async def test_a_replica_is_refused() -> None:
    with RedisServer() as server:
        server.call("REPLICAOF", "127.0.0.1", 1)
        assert "replica" in await refusal(settings_of(server))


async def test_a_user_may_have_a_name_and_rights() -> None:
    lines = [
        f"user atm on >{SECRET} ~* &* +@all",
        f"user reader on >{SECRET} ~* &* +@read +info +script|load +select",
    ]
    with RedisServer(*lines) as server:
        await works(RedisSettings(url=f"redis://atm:{SECRET}@{server.host}:{server.port}/1"))
        assert "permission" in await refusal(RedisSettings(url=f"redis://reader:{SECRET}@127.0.0.1:{server.port}"))


async def test_a_socket_may_be_a_file(tmp_path: Path) -> None:
    with RedisServer(f"unixsocket {tmp_path}/redis.sock"):
        await works(RedisSettings(url=f"unix://{tmp_path}/redis.sock?db=2"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "redis.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(path),
        "-out",
        str(path.with_suffix(".crt")),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


async def test_tls_with_a_certificate_that_is_trusted(certificate: Path) -> None:
    with RedisServer(password=SECRET, certificate=certificate) as server:
        url = f"rediss://:{SECRET}@127.0.0.1:{server.port}/0"
        await works(RedisSettings(url=f"{url}?ssl_ca_certs={certificate.with_suffix('.crt')}"))
        assert "certificate" in (await refusal(RedisSettings(url=url))).lower()


@pytest.mark.parametrize(
    "settings",
    [
        RedisSettings(url=f"http://:{SECRET}@127.0.0.1"),
        RedisSettings(url=f"redis://:{SECRET}/x@127.0.0.1"),
        RedisSettings(url=f"sentinel://:{SECRET}@127.0.0.1"),
        RedisSettings(addr=f"127.0.0.1:{SECRET}"),
        RedisSettings(addr=":6379"),
    ],
)
async def test_what_cannot_be_read_is_told_without_a_secret(settings: RedisSettings) -> None:
    with pytest.raises(ConfigError, match=r"^redis\.(url|addr): cannot be read") as caught:
        RedisCoordinator(settings)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(settings) or settings.url is None


# Sentinel


class SentinelServer(RedisServer):
    name = "Sentinel"

    def command(self) -> list[str | Path]:
        words = super().command()
        return [*words, "--sentinel"]


@pytest.fixture
def guarded() -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A master, its replica, and who watches them."""
    with ExitStack() as stack:
        master = stack.enter_context(RedisServer(password=SECRET))
        follow = [f"replicaof 127.0.0.1 {master.port}", f"masterauth {SECRET}"]
        replica = stack.enter_context(RedisServer(*follow, password=SECRET))
        watch = [
            f"sentinel monitor main 127.0.0.1 {master.port} 1",
            f"sentinel auth-pass main {SECRET}",
            "sentinel down-after-milliseconds main 500",
            "sentinel failover-timeout main 2000",
        ]
        yield master, replica, stack.enter_context(SentinelServer(*watch))


async def test_sentinel_tells_who_the_master_is_also_after_a_failover(
    guarded: tuple[RedisServer, RedisServer, RedisServer],
) -> None:
    master, replica, sentinel = guarded
    settings = RedisSettings(url=f"sentinel://:{SECRET}@127.0.0.1:1,127.0.0.1:{sentinel.port}/main/0")
    node = RedisCoordinator(settings, leader_ttl=PATIENT_TTL)
    async with serving(node), standing(node, "one:boot") as terms:
        await eventually(lambda: terms.begun)
        await node.register(worker("w"))
        await node.overview()
        assert master.call("HGET", "worker:w", "id") == "w"
        await eventually(lambda: "slave0:ip=127.0.0.1" in master.call("INFO", "replication"))
        await eventually(lambda: sentinel.call("SENTINEL", "REPLICAS", "main"))
        master.kill()
        await eventually(lambda: terms.begun == 2)
        assert "role:master" in replica.call("INFO", "replication")
        with trio.fail_after(PATIENCE):
            # Sentinel cuts the connections of a server that it has promoted: more may be lost than once.
            while not await node.dispatch(LeastTask(), 10):
                await node.push([hint("a1")])
                await node.back()
        assert replica.call("HGET", "worker:w", "leader") == "one:boot"


async def test_a_sentinel_that_is_not_there_is_told_in_one_line() -> None:
    assert "127.0.0.1:1" in await refusal(RedisSettings(url=f"sentinel://:{SECRET}@127.0.0.1:1/main"))


# outages


async def test_without_an_outage_nobody_is_away(open_node: OpenNode) -> None:
    node = await open_node()
    await node.back()
    with trio.move_on_after(1.2) as patience:
        await node.away()
    assert patience.cancelled_caught


async def test_an_outage_is_told_and_its_end(open_node: OpenNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with RedisServer() as server:
        node = await open_node(server)
        await node.register(worker("w"))
        server.kill()
        with trio.fail_after(PATIENCE):
            await node.away()
            await node.away()
        assert await node.overview() is None
        await node.push([hint("a1")])
        await node.settle("w", [], 3)
        server.start()
        with trio.fail_after(PATIENCE):
            await node.back()
        await eventually(lambda: server.call("HGET", "worker:w", "current_load") == "3")
        assert server.call("EXISTS", "queue:normal") == 0, "what was said in between is lost"
        await node.push([hint("a2")])
        await node.overview()
        assert server.call("LRANGE", "queue:normal", 0, -1) == ["a2:a"]
    messages = [record.getMessage() for record in caplog.records if record.name == "atm.redis"]
    assert any("Redis is away" in text for text in messages)
    assert any("Redis is back" in text for text in messages)


async def test_a_server_that_hangs_is_an_outage_though_nobody_asked_it_anything(open_node: OpenNode) -> None:
    with RedisServer() as server:
        node = await open_node(server)
        await node.overview()
        server.pause()
        try:
            with trio.fail_after(PATIENCE):
                await node.away()
        finally:
            server.resume()
        with trio.fail_after(PATIENCE):
            await node.back()
        assert await node.overview() is not None


async def test_messages_are_heard_again_after_an_outage(open_node: OpenNode) -> None:
    with RedisServer() as server:
        node = await open_node(server)
        async with leading(node):
            await node.register(worker("w"))
            server.restart()
            with trio.fail_after(PATIENCE):
                await node.back()
            await eventually(lambda: "worker:w:wake" in server.call("PUBSUB", "CHANNELS"))
            await eventually(lambda: server.call("EXISTS", "worker:w"))


async def test_a_full_memory_is_an_outage(open_node: OpenNode) -> None:
    with RedisServer() as server:
        node = await open_node(server)
        server.call("CONFIG", "SET", "maxmemory", "1")
        await node.push([hint("a1")])
        with trio.fail_after(PATIENCE):
            await node.away()
        server.call("CONFIG", "SET", "maxmemory", "0")
        with trio.fail_after(PATIENCE):
            await node.back()


async def test_a_node_ends_while_redis_is_away() -> None:
    with RedisServer() as server:
        node = RedisCoordinator(settings_of(server))
        with trio.fail_after(PATIENCE):
            async with serving(node):
                await node.register(worker("w"))
                server.kill()
                await node.push([hint("a1")])


async def test_a_push_into_a_jam_returns_and_what_is_too_much_is_dropped(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_link, "MAX_WAITING", 100)
    with RedisServer() as server:
        node = await open_node(server)
        await node.overview()
        server.pause()
        try:
            with trio.fail_after(PATIENCE):
                for number in range(5):
                    await node.push([hint(f"a{number}-{part}") for part in range(40)])
        finally:
            server.resume()
        with trio.fail_after(PATIENCE):
            await node.back()
        await node.overview()
        assert server.call("LLEN", "queue:normal") <= 100
        assert "messages dropped" in caplog.text


async def test_a_refused_script_is_told_once_in_a_while(
    open_node: OpenNode, caplog: pytest.LogCaptureFixture, redis_db: RedisServer
) -> None:
    node = await open_node()
    redis_db.call("SET", "queue:normal", "not a list")
    for _ in range(3):
        await node.push([hint("a1")])
        assert await node.overview() is None
    assert caplog.text.count("Redis refused") == 1
    await node.back()
