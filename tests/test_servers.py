"""The tests' own servers: they keep what they should, and outlive nobody."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from servers import PATIENCE, Databases, MariaDb, Missing, RedisServer

CERTIFICATE = Path(__file__).parent / "executors" / "localhost.pem"

RUN = """
import json, signal
from servers import MariaDb, RedisServer

mariadb, redis = MariaDb().start(), RedisServer().start()
redis.pause()
print(json.dumps([[server.pid, str(server.folder)] for server in (mariadb, redis)]), flush=True)
signal.pause()
"""


def test_a_killed_database_keeps_what_was_committed() -> None:
    with MariaDb() as server:
        name = server.create_database()
        server.sql("CREATE TABLE kept (a INT); INSERT INTO kept VALUES (1)", name)
        server.kill()
        assert not server.running
        assert server.start().sql("SELECT a FROM kept", name) == "1\n"
        assert server.restart().sql("SELECT a FROM kept", name) == "1\n"


def test_a_database_is_of_one_test_alone(mariadb: Databases, database: str) -> None:
    assert mariadb.sql("SHOW TABLES", database) == ""
    mariadb.sql("CREATE TABLE ours (a INT)", database)
    other = mariadb.create_database()
    assert mariadb.sql("SHOW TABLES", other) == ""
    mariadb.drop_database(other)
    assert other not in mariadb.sql("SHOW DATABASES").split()


@pytest.mark.parametrize("certificate", [None, CERTIFICATE], ids=["plain", "tls"])
def test_a_redis_speaks(certificate: Path | None) -> None:
    with RedisServer("maxmemory-policy volatile-lru", password="secret", certificate=certificate) as server:
        assert server.call("CONFIG", "GET", "maxmemory-policy") == ["maxmemory-policy", "volatile-lru"]
        assert server.call("SET", "a", "é", db=1) == "OK"
        assert (server.call("GET", "a", db=1), server.call("GET", "a")) == ("é", None)
        server.flushall()
        assert server.call("KEYS", "*", db=1) == []
        assert "secret" in json.dumps(server.environ())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_servers_end_with_the_run(number: signal.Signals) -> None:
    """Paused ones too, and even if the run is killed."""
    environ = {"PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, env=environ)
    assert run.stdout is not None
    with run, run.stdout:
        try:
            started = json.loads(run.stdout.readline())
        finally:
            run.send_signal(number)
    deadline = time.monotonic() + PATIENCE
    while left := [pid for pid, folder in started if lives(pid) or Path(folder).exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def lives(pid: int) -> bool:
    """Whether the process still is one; what nobody has waited for yet is none."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_missing_server_is_named_with_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(Missing, match=r"redis-server or redis-check-rdb is not installed.* redis-tools"):
        RedisServer()
