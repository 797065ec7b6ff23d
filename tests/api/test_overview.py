"""Who works, what waits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import trio

from api.site import BATCH, TASKS, Site, assert_problem, assert_success, until

MakeSite = Callable[..., Site]

WORKERS, QUEUES = "/api/v1/workers", "/api/v1/queues"


def test_a_worker_shows_as_registered(make_site: MakeSite) -> None:
    site = make_site(capacity=3)
    (worker,) = assert_success(site.http.get(WORKERS))
    seen = datetime.fromisoformat(worker.pop("last_heartbeat"))
    assert abs(datetime.now(UTC) - seen) < timedelta(minutes=1)
    assert worker == {
        "id": "worker-1",
        "name": "the worker",
        "address": site.url,
        "capacity": 3,
        "current_load": 0,
        "supported_types": [
            "echo", "fails", "gate", "gate_capped", "gate_renamed", "reports", "sleep", "stubborn"
        ],
        "draining": False,
    }  # fmt: skip


def test_load_and_draining_show(make_site: MakeSite) -> None:
    site = make_site(grace=20)

    def worker() -> tuple[int, bool]:
        (found,) = assert_success(site.http.get(WORKERS))
        return found["current_load"], found["draining"]

    site.running("load")
    until(lambda: worker() == (1, False))
    site.stop()
    until(lambda: worker() == (1, True))
    site.gates.open("load")


def test_a_node_without_a_worker_shows_none(make_site: MakeSite) -> None:
    assert assert_success(make_site(capacity=0).http.get(WORKERS)) == []


def test_queues_show_what_waits_by_priority(make_site: MakeSite) -> None:
    site = make_site(capacity=1)
    site.running("queue")
    for priority, count in ((1, 1), (0, 2), (-1, 3)):
        site.http.post(BATCH, json={"tasks": [{"task_type": "echo", "priority": priority}] * count})
    site.http.post(BATCH, json={"tasks": [{"task_type": "nobody", "priority": -1}] * 4})
    site.create("echo", delay=1_000)
    data = assert_success(site.http.get(QUEUES))
    ages = [queue.pop("oldest_age") for queue in data["queues"]]
    assert all(age >= 0 for age in ages)
    assert data == {
        "queues": [
            {"name": "high", "length": 1, "parked": 0},
            {"name": "normal", "length": 2, "parked": 0},
            {"name": "low", "length": 7, "parked": 4},
        ],
        "delayed": 1,
    }
    until(lambda: assert_success(site.http.get(QUEUES))["queues"][0]["oldest_age"] > ages[0])
    site.gates.open("queue")
    until(lambda: [queue["length"] for queue in assert_success(site.http.get(QUEUES))["queues"]] == [0, 0, 4])


def test_what_is_cancelled_waits_in_no_queue(make_site: MakeSite) -> None:
    site = make_site(capacity=1)
    site.running("queue")
    kept = [site.create(name) for name in ("nobody", "echo")]
    gone = [site.create(name, priority=priority) for name in ("nobody", "echo") for priority in (1, 0, -1)]
    gone += [site.create(name, delay=1_000) for name in ("nobody", "echo")]
    for task_id in gone:
        assert_success(site.http.post(f"{TASKS}/{task_id}/cancel"), message="Task cancelled successfully")
    data = assert_success(site.http.get(QUEUES))
    assert [(queue["length"], queue["parked"]) for queue in data["queues"]] == [(0, 0), (2, 1), (0, 0)]
    assert data["delayed"] == 0
    for task_id in kept:
        site.http.post(f"{TASKS}/{task_id}/cancel")
    data = assert_success(site.http.get(QUEUES))
    empty = {"length": 0, "parked": 0, "oldest_age": 0.0}
    assert data["queues"] == [{"name": name, **empty} for name in ("high", "normal", "low")]
    assert_success(site.http.post(f"{TASKS}/{kept[0]}/retry"), message="Task will run again")
    assert assert_success(site.http.get(QUEUES))["queues"][1]["parked"] == 1, "opened again it waits again"
    site.gates.open("queue")


@pytest.mark.parametrize("path", [WORKERS, QUEUES])
def test_query_parameters_are_refused(site: Site, path: str) -> None:
    assert_problem(site.http.get(f"{path}?status=ALIVE"), 42201, "status")


# while no coordinator can be reached


@pytest.fixture
def without_coordinator(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> Site:
    async def nobody_knows() -> None:
        await trio.lowlevel.checkpoint()

    site = make_site()
    monkeypatch.setattr(site.coordinator, "overview", nobody_knows)
    return site


@pytest.mark.parametrize("path", [WORKERS, QUEUES])
def test_what_only_the_coordinator_knows_is_told_later(without_coordinator: Site, path: str) -> None:
    answer = without_coordinator.http.get(path)
    assert_problem(answer, 50303)
    assert int(answer.headers["Retry-After"]) > 0


def test_tasks_and_settings_are_shown_without_the_coordinator(without_coordinator: Site) -> None:
    site = without_coordinator
    site.configure("nobody", max_concurrent=5)
    assert [found["task_type"] for found in assert_success(site.http.get("/api/v1/task-types"))] == ["nobody"]
    assert site.get(site.create("nobody"))["pending_reason"] == "queued"
    site.configure("nobody", enabled=False)
    assert site.get(site.create("nobody"))["pending_reason"] == "type_disabled"
