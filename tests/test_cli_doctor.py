"""What the doctor makes of what it sees; and what it sees of a cluster's servers."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from atm.cli import checks, main
from atm.cli.checks import Finding, Level
from atm.client.models import Task, Worker
from atm.stores.survey import LeaseSeen, Survey, TypeSeen
from running import node
from servers import Databases, RedisServer

NOW = datetime(2026, 1, 31, 10, tzinfo=UTC)


def worker(**fields: Any) -> Worker:
    return Worker(**{"id": "w1", "name": "w1", "last_heartbeat": NOW, "capacity": 10, **fields})


def survey(**fields: Any) -> Survey:
    return Survey(**{"server": "MariaDB", "schema": 1, "known": 1, "skew": 0.0, **fields})


def lease(**fields: Any) -> LeaseSeen:
    return LeaseSeen(**{"worker_id": "w1", "epoch": 1, "left": 8.0, "task_types": frozenset({"echo"}), **fields})


def waits(**fields: Any) -> TypeSeen:
    return TypeSeen(**{"task_type": "echo", "waiting": 3, "oldest": 1.0, "enabled": True, **fields})


def levels(findings: Any) -> list[tuple[str, str]]:
    found = list(findings)
    for one in found:
        # Nothing is found without a word on what to do about it.
        assert one.advice or one.level in (Level.OK, Level.INFO), one
    return [(one.check, str(one.level)) for one in found]


def test_what_is_well_is_ok() -> None:
    seen = survey(leases=[lease()], processing=2, waiting=[waits()])
    assert levels(checks.of_store(seen, node_answers=True)) == [
        ("store", "ok"),
        ("clocks", "ok"),
        ("leases", "ok"),
        ("orphans", "ok"),
    ]
    assert levels(checks.of_waiting(seen, frozenset({"echo"}))) == [("waiting", "ok")]
    assert levels(checks.of_workers([worker()], NOW)) == [("workers", "ok")]


@pytest.mark.parametrize(("schema", "level", "advice"), [(0, "warning", "migrate"), (2, "error", "newer")])
def test_another_schema_is_told_with_the_way_to_this_one(schema: int, level: str, advice: str) -> None:
    [finding] = checks.of_store(survey(schema=schema), node_answers=False)
    assert finding.level == level
    assert advice in finding.advice


@pytest.mark.parametrize(("skew", "level"), [(0.9, "ok"), (-0.9, "ok"), (1.1, "warning"), (-3600, "warning")])
def test_clocks_that_differ_are_told(skew: float, level: str) -> None:
    assert levels([checks.of_clock("Redis", skew)]) == [("clocks", level)]


def test_orphans_and_leases_that_are_over_are_told() -> None:
    seen = survey(leases=[lease(left=-7.0), lease(worker_id="w2")], orphans=1, orphan_ids=["t1"], processing=1)
    found = list(checks.of_store(seen, node_answers=True))
    assert levels(found)[2:] == [("leases", "warning"), ("leases", "ok"), ("orphans", "warning")]
    assert "w1" in found[2].message
    assert "t1" in found[4].message
    assert levels(checks.of_store(seen, node_answers=False))[-1] == ("orphans", "info")


def test_what_waits_for_nothing_that_will_come_is_told() -> None:
    seen = survey(
        waiting=[
            waits(),
            waits(task_type="typo"),
            waits(task_type="off", enabled=False),
            waits(task_type="slow", oldest=100.0),
        ]
    )
    told = [finding.message for finding in checks.of_waiting(seen, frozenset({"echo", "slow"}))]
    for name in ("typo", "off", "slow"):
        assert any(name in text for text in told)
    assert not any("echo" in text for text in told)
    assert levels(checks.of_waiting(seen, frozenset())) == [("waiting", "warning")] * 2


def test_that_all_is_well_is_not_said_of_what_was_not_looked_at() -> None:
    echo = frozenset({"echo"})
    assert levels(checks.of_types({"echo": 500}, echo, only_newest=500)) == [("waiting", "info")]
    assert levels(checks.of_types({"typo": 500}, echo, only_newest=500)) == [("waiting", "warning")]
    assert levels(checks.of_types({"echo": 3}, echo)) == [("waiting", "ok")]


def test_workers_that_are_silent_gone_or_leave_are_told() -> None:
    assert levels(checks.of_workers([], NOW)) == [("workers", "error")]
    silent = worker(last_heartbeat=NOW - timedelta(seconds=20))
    assert levels(checks.of_workers([silent], NOW))[1:] == [("workers", "warning")]
    ahead = worker(last_heartbeat=NOW + timedelta(seconds=20))
    assert levels(checks.of_workers([ahead], NOW))[1:] == [("clocks", "warning")]
    assert levels(checks.of_workers([worker(draining=True)], NOW))[1:] == [("workers", "info")]


def test_tasks_at_workers_that_are_not_there_are_orphans() -> None:
    running = [
        Task(task_id=f"t-{name}", task_type="echo", status="PROCESSING", created_at=NOW, worker_id=name)  # type: ignore[arg-type]
        for name in ("w1", "gone")
    ]
    finding = checks.of_running(running, [worker()])
    assert finding.level == "warning"
    assert "t-gone" in finding.message
    assert "t-w1" not in finding.message


def test_nobody_leads_is_an_error_only_beside_a_node() -> None:
    found: list[Finding] = [
        checks.of_leader("n1", None, node_answers=True),
        checks.of_leader(None, "n1", node_answers=True),
        checks.of_leader(None, None, node_answers=True),
        checks.of_leader(None, None, node_answers=False),
    ]
    assert levels(found) == [("leader", level) for level in ("ok", "warning", "error", "info")]


def test_nobody_leads_is_not_said_where_redis_could_not_be_asked() -> None:
    finding = checks.of_leader(None, None, redis_answers=False, node_answers=True)
    assert finding.level == "info"
    assert "nobody" not in finding.message


@pytest.mark.parametrize(("free", "level"), [(10 << 30, "ok"), (500 << 20, "warning"), (1 << 20, "error")])
def test_a_disk_that_fills_up_is_told(free: int, level: str) -> None:
    assert levels([checks.of_disk(free, "/data")]) == [("disk", level)]


# a cluster's servers


@pytest.fixture
def cluster(
    database: str, mariadb: Databases, redis_db: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """An empty folder, and the settings of a cluster in the environment; the database's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    for name in [name for name in os.environ if name.startswith("ATM_")]:
        monkeypatch.delenv(name)
    for name, value in {**mariadb.environ(database), **redis_db.environ()}.items():
        monkeypatch.setenv(name, value)
    return database


def doctor(*arguments: str) -> dict[str, list[Finding]]:
    told = CliRunner().invoke(main, ["doctor", "--json", *arguments], prog_name="atm")
    [line] = told.stdout.splitlines()
    report = json.loads(line)
    assert told.exit_code == (0 if report["ok"] else 1)
    found: dict[str, list[Finding]] = {}
    for fields in report["findings"]:
        finding = Finding(**fields | {"level": Level(fields["level"])})
        found.setdefault(finding.check, []).append(finding)
    return found


def test_without_a_node_the_doctor_asks_the_clusters_servers(
    cluster: str, mariadb: Databases, redis_db: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = doctor()
    assert found["server"][0].level == "error"
    assert (found["store"][0].level, found["store"][0].advice) == ("warning", "run `atm migrate`, or start a node")
    assert CliRunner().invoke(main, ["migrate"]).exit_code == 0
    mariadb.sql(
        "INSERT INTO task (task_id, task_type, status, priority, payload, timeout, max_retry, worker_id, "
        "worker_epoch, created_at, due_at, sweep_at, slack) VALUES "
        "('lost-1', 'echo', 'PROCESSING', 0, '{}', 1, 1, 'w', 7, 0, 0, 0, ''), "
        "('due-1', 'typo', 'PENDING', 0, '{}', 1, 1, NULL, NULL, 0, 0, 0, '');",
        cluster,
    )
    found = doctor()
    assert found["store"][0].level == "ok"
    assert "lost-1" in found["orphans"][0].message
    assert "typo" in found["waiting"][0].message
    assert [finding.level for finding in found["clocks"]] == ["ok", "ok"]
    assert found["redis"][0].level == "ok"
    assert found["leader"][0].level == "info"

    redis_db.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        [redis] = doctor()["redis"]
    finally:
        redis_db.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert redis.level == "error"
    assert "noeviction" in redis.message

    monkeypatch.setenv("ATM_DATABASE__PASSWORD", "wrong-hunter2")
    monkeypatch.setenv("ATM_REDIS__ADDR", "127.0.0.1:1")
    found = doctor()
    assert re.search(r"denies access .* database\.password", found["store"][0].message)
    assert "database.user" in found["store"][0].advice
    assert found["redis"][0].level == "error"
    assert "hunter2" not in repr(found)


def test_a_node_of_a_cluster_is_found_well(cluster: str) -> None:
    with node() as running:
        running.wait_for("Ctrl-C")
        found = doctor("--url", running.url)
        assert running.end() == 0
    flat = [finding for group in found.values() for finding in group]
    assert [finding for finding in flat if finding.level != "ok"] == []
    assert set(found) == {
        "config",
        "server",
        "workers",
        "queues",
        "store",
        "clocks",
        "leases",
        "orphans",
        "redis",
        "leader",
        "waiting",
    }
