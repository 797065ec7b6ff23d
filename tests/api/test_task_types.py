"""The settings of each task type: shown, changed bit by bit, and obeyed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from api.site import JSON, TASKS, Site, assert_problem, assert_success, in_thread, until

MakeSite = Callable[..., Site]

TYPES = "/api/v1/task-types"
DEFAULTS = {
    "default_timeout": 300,
    "default_max_retry": 3,
    "retry_strategy": "EXPONENTIAL",
    "retry_delay": 1,
    "backoff_rate": 2,
    "max_concurrent": None,
    "enabled": True,
}


def put(site: Site, task_type: str, body: object) -> Any:
    return site.http.put(f"{TYPES}/{task_type}", json=body)


def test_types_are_those_configured_and_those_that_a_worker_knows(make_site: MakeSite) -> None:
    site = make_site()
    assert_success(put(site, "another", {"max_concurrent": 5}))
    found = assert_success(site.http.get(TYPES))
    names = [settings["task_type"] for settings in found]
    assert names == sorted(names)
    assert {"another", "echo", "sleep"} < set(names)
    by_name = {settings["task_type"]: settings for settings in found}
    assert by_name["echo"] == {"task_type": "echo"} | DEFAULTS
    assert by_name["another"] == {"task_type": "another"} | DEFAULTS | {"max_concurrent": 5}


def test_a_change_leaves_the_other_settings_as_they_are(make_site: MakeSite) -> None:
    site = make_site()
    wanted: dict[str, Any] = {"task_type": "bit:by.bit-1"} | DEFAULTS
    assert assert_success(put(site, "bit:by.bit-1", {})) == wanted
    for change in (
        {"default_timeout": 12.5, "default_max_retry": 0},
        {"retry_strategy": "FIXED"},
        {"retry_delay": 0, "backoff_rate": 1.5},
        {"max_concurrent": 7, "enabled": False},
        {"max_concurrent": None},
    ):
        wanted |= change
        assert assert_success(put(site, "bit:by.bit-1", change)) == wanted
    assert wanted in assert_success(site.http.get(TYPES))


def test_changes_at_a_time_do_not_undo_each_other(make_site: MakeSite) -> None:
    site = make_site()
    changes: list[dict[str, object]] = [
        {"default_timeout": 5},
        {"default_max_retry": 5},
        {"retry_delay": 5},
        {"backoff_rate": 5},
        {"max_concurrent": 5},
        {"enabled": False},
    ]
    with contextlib.ExitStack() as stack:
        answers = [stack.enter_context(in_thread(lambda c=c: put(site, "crowded", c))) for c in changes]
        for answer in answers:
            assert_success(answer())
    expected: dict[str, object] = {"task_type": "crowded"} | DEFAULTS
    for change in changes:
        expected |= change
    assert assert_success(put(site, "crowded", {})) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"default_timeout": 604_800},
        {"default_timeout": 0.001},
        {"default_max_retry": 0},
        {"default_max_retry": 100},
        {"retry_strategy": "EXPONENTIAL"},
        {"retry_delay": 0},
        {"retry_delay": 604_800},
        {"backoff_rate": 1},
        {"backoff_rate": 100},
        {"max_concurrent": 1},
        {"max_concurrent": 1_000_000},
    ],
)
def test_limits_are_inclusive(site: Site, fields: dict[str, object]) -> None:
    shown = assert_success(put(site, "limits", fields))
    assert {name: shown[name] for name in fields} == fields


@pytest.mark.parametrize(
    "fields",
    [
        {"default_timeout": 0},
        {"default_timeout": 604_801},
        {"default_timeout": "5m"},
        {"default_timeout": None},
        {"default_max_retry": -1},
        {"default_max_retry": 101},
        {"default_max_retry": 1.5},
        {"retry_strategy": "fixed"},
        {"retry_strategy": None},
        {"retry_strategy": ["FIXED"]},
        {"retry_strategy": {}},
        {"retry_delay": -0.1},
        {"retry_delay": 604_800.5},
        {"retry_delay": True},
        {"backoff_rate": 0.99},
        {"backoff_rate": 100.01},
        {"backoff_rate": 10**400},
        {"backoff_rate": True},
        {"backoff_rate": "2"},
        {"max_concurrent": 0},
        {"max_concurrent": 1_000_001},
        {"max_concurrent": 1.5},
        {"max_concurrent": False},
        {"enabled": 0},
        {"enabled": None},
        {"enabled": "no"},
        {"task_type": "limits"},
        {"timeout": 5},
        {"enabled": "no", "colour": 1, "retry_delay": []},
    ],
)
def test_what_is_out_of_bounds_is_named_and_nothing_changed(site: Site, fields: dict[str, object]) -> None:
    assert_success(put(site, "bounds", {"enabled": True}))
    assert_problem(
        put(site, "bounds", fields | {"default_max_retry": fields.get("default_max_retry", 7)}), 42201, *fields
    )
    assert assert_success(put(site, "bounds", {}))["default_max_retry"] == 3


@pytest.mark.parametrize("name", ["a b", "x" * 129, "ü", "a%00b", "%22", "a%0a"])
def test_a_name_that_is_none_is_refused(site: Site, name: str) -> None:
    assert_problem(put(site, name, {}), 42201, "task_type")


def test_bodies_are_as_strict_as_those_of_tasks(site: Site) -> None:
    url = f"{TYPES}/strict"
    assert_problem(site.http.put(url, content=b"{}"), 41501)
    assert_problem(site.http.put(url, content=b"[]", headers=JSON), 40001)
    assert_problem(site.http.put(url, content=b'{"enabled":true,"enabled":true}', headers=JSON), 40001)
    assert_problem(site.http.put(url, content=b" " * 65_537, headers=JSON), 41301)
    assert_problem(site.http.put(f"{url}?dry_run=1", json={}), 42201, "dry_run")
    assert_problem(site.http.get(f"{TYPES}?limit=1"), 42201, "limit")


def test_defaults_of_a_type_go_to_tasks_that_say_nothing(make_site: MakeSite) -> None:
    site = make_site()
    assert_success(put(site, "nobody", {"default_timeout": 42, "default_max_retry": 9}))
    task = site.get(site.create("nobody"))
    assert (task["timeout"], task["max_retry"]) == (42, 9)
    task = site.get(site.create("nobody", timeout=1, max_retry=0))
    assert (task["timeout"], task["max_retry"]) == (1, 0)


def test_the_retry_policy_of_a_type_is_obeyed(make_site: MakeSite) -> None:
    site = make_site()
    assert_success(put(site, "fails", {"retry_strategy": "FIXED", "retry_delay": 0, "default_max_retry": 4}))
    task = site.end_of(site.create("fails"))
    assert (task["status"], task["attempt"], task["retry_count"]) == ("FAILED", 5, 4)


def test_a_cap_that_is_raised_lets_more_run_at_once(make_site: MakeSite) -> None:
    site = make_site()
    assert_success(put(site, "gate_capped", {"max_concurrent": 1}))
    ids = [site.create("gate_capped", payload={"gate": "raised"}) for _ in range(5)]
    until(lambda: site.gates.inside["raised"] == 1)
    assert_success(put(site, "gate_capped", {"max_concurrent": 3}))
    until(lambda: site.gates.inside["raised"] == 3)
    assert_success(put(site, "gate_capped", {"max_concurrent": None}))
    until(lambda: site.gates.inside["raised"] == 5)
    site.gates.open("raised")
    assert {site.end_of(task_id)["status"] for task_id in ids} == {"SUCCESS"}


def test_a_type_disabled_in_between_finishes_what_runs_and_starts_nothing(make_site: MakeSite) -> None:
    site = make_site()
    running = site.running("paused")
    assert_success(put(site, "gate", {"enabled": False}))
    waiting = site.create("gate", payload={"gate": "paused"})
    site.gates.open("paused")
    assert site.end_of(running)["status"] == "SUCCESS"
    assert site.get(waiting)["pending_reason"] == "type_disabled"
    assert site.http.post(f"{TASKS}/{waiting}/cancel").status_code == 200


def test_settings_outlive_the_node(make_site: MakeSite, tmp_path: Any) -> None:
    with Site(tmp_path) as first:
        shown = assert_success(put(first, "kept", {"backoff_rate": 3, "max_concurrent": 2}))
    with Site(tmp_path) as second:
        assert shown in assert_success(second.http.get(TYPES))
