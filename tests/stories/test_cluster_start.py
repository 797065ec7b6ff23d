"""A node that cannot have what it needs says so in one line, and ends."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from running import free_ports
from servers import Databases, RedisServer
from stories.cluster import Cluster

UNAVAILABLE = 69
CONFIG = 78


def refusal(cluster: Cluster, environ: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and the only line of a node that does not start."""
    node = cluster.node("refused", environ).start()
    code = node.ended()
    [line] = node.err.read_text().splitlines()
    assert line.startswith("atm: ")
    assert "secret" not in line, "passwords are not told"
    return code, line


def test_a_wrong_password_of_the_database(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        code, line = refusal(cluster, {"ATM_DATABASE__PASSWORD": "not-the-secret"})
        assert code in (UNAVAILABLE, CONFIG)
        assert "database.password" in line


def test_a_database_that_does_not_exist(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        code, line = refusal(cluster, {"ATM_DATABASE__DATABASE": "nowhere"})
        assert code in (UNAVAILABLE, CONFIG)
        assert "nowhere" in line


def test_no_database_server(mariadb: Databases) -> None:
    [port] = free_ports(1)
    with Cluster(mariadb) as cluster:
        code, line = refusal(cluster, {"ATM_DATABASE__PORT": str(port)})
        assert code == UNAVAILABLE
        assert f"127.0.0.1:{port}" in line


def test_no_redis(mariadb: Databases) -> None:
    [port] = free_ports(1)
    with Cluster(mariadb) as cluster:
        code, line = refusal(cluster, {"ATM_REDIS__ADDR": f"127.0.0.1:{port}"})
        assert code == UNAVAILABLE
        assert f"127.0.0.1:{port}" in line


@pytest.mark.parametrize("said", ["none", "a wrong one"])
def test_a_wrong_password_of_redis(mariadb: Databases, said: str) -> None:
    wrong = {"none": "", "a wrong one": "not-the-secret"}[said]
    with Cluster(mariadb, RedisServer(password="secret")) as cluster:
        code, line = refusal(cluster, {"ATM_REDIS__PASSWORD": wrong})
        assert code in (UNAVAILABLE, CONFIG)
        assert "redis" in line.lower()


def test_a_redis_that_would_throw_hints_away(mariadb: Databases) -> None:
    with Cluster(mariadb, RedisServer("maxmemory 100mb", "maxmemory-policy allkeys-lru")) as cluster:
        code, line = refusal(cluster, {})
        assert code in (UNAVAILABLE, CONFIG)
        assert "maxmemory-policy" in line


def test_a_database_without_redis(mariadb: Databases) -> None:
    with Cluster(mariadb) as cluster:
        node = cluster.node("refused")
        for key in [key for key in node.environ if key.startswith("ATM_REDIS")]:
            del node.environ[key]
        assert node.start().ended() == CONFIG
        [line] = node.err.read_text().splitlines()
        assert "redis" in line
