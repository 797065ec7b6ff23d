"""One task after another: created, looked at, waited for, listed, cancelled, run again, read about."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.site import BATCH, TASKS, Site, assert_problem, assert_success, in_thread, post, until
from atm.task import legal_path

NO_TASK = "01890000-0000-7000-8000-000000000000"

MakeSite = Callable[..., Site]

FIELDS = {
    "task_id", "task_type", "status", "priority", "payload", "result", "error", "attempt", "retry_count",
    "max_retry", "timeout", "worker_id", "recoveries", "releases", "cancel_requested_at", "scheduled_at",
    "created_at", "started_at", "completed_at", "progress", "parent_id",
}  # fmt: skip


def until_next_millisecond() -> None:
    now = time.time_ns() // 1_000_000
    until(lambda: time.time_ns() // 1_000_000 > now)


def remove(path: Path, task_id: str) -> None:
    """As the purge does when a task is older than the retention."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        assert database.execute("DELETE FROM task WHERE task_id = ?", (task_id,)).rowcount == 1


# create


def test_a_new_task_is_a_201_with_its_place(site: Site) -> None:
    answer = site.http.post(TASKS, json={"task_type": "nobody"})
    task_id = assert_success(answer, 201)["task_id"]
    assert answer.headers["location"] == f"{TASKS}/{task_id}"
    assert assert_success(site.http.get(answer.headers["location"]))["task_id"] == task_id


def test_creates_are_counted(site: Site) -> None:
    def count() -> float:
        return site.metrics.registry.get_sample_value("task_created_total", {"task_type": "counted"}) or 0

    site.create("counted", idempotency_key="counted")
    site.create("counted", idempotency_key="counted")
    site.http.post(BATCH, json={"tasks": [{"task_type": "counted"}] * 3})
    assert count() == 4


@pytest.mark.parametrize("path", [TASKS, BATCH])
def test_creates_take_no_query_parameters(site: Site, path: str) -> None:
    assert_problem(site.http.post(f"{path}?delay=5", json={"task_type": "nobody"}), 42201, "delay")


def test_a_create_whose_client_leaves_is_all_or_nothing_and_what_was_written_runs(site: Site) -> None:
    bodies = [post(json.dumps({"task_type": "echo", "payload": {"left": n}}).encode()) for n in range(50)]
    for body in bodies:
        with socket.create_connection(("127.0.0.1", site.port)) as sock:
            sock.sendall(body)
    # What comes last is answered; the others were asked for before.
    site.end_of(site.create("echo", payload={"left": "not"}))

    def left() -> list[dict[str, Any]]:
        found = site.http.get(TASKS, params={"task_type": "echo", "limit": 500}).json()["data"]["tasks"]
        return [task for task in found if isinstance(task["payload"].get("left"), int)]

    until(lambda: all(task["status"] == "SUCCESS" for task in left()))
    assert len({task["payload"]["left"] for task in left()}) == len(left()) <= len(bodies)


# get


def test_a_task_shows_all_its_fields(site: Site) -> None:
    task = site.end_of(site.create("echo", payload={"a": 1}))
    assert set(task) == FIELDS
    assert (task["status"], task["result"], task["error"]) == ("SUCCESS", {"a": 1}, None)
    assert (task["attempt"], task["retry_count"], task["recoveries"], task["releases"]) == (1, 0, 0, 0)
    assert task["worker_id"] == "worker-1"
    assert task["created_at"] <= task["started_at"] <= task["completed_at"]
    assert all(task[name].endswith("Z") for name in ("created_at", "started_at", "completed_at"))
    assert task["cancel_requested_at"] is task["scheduled_at"] is task["progress"] is None


def test_a_failed_task_shows_its_error(site: Site) -> None:
    task = site.end_of(site.create("fails", max_retry=0))
    assert (task["status"], task["result"]) == ("FAILED", None)
    assert task["error"] == {"type": "ValueError", "message": "as ever", "retryable": True}


def test_progress_shows_while_a_task_runs(site: Site) -> None:
    task_id = site.running("progress", "reports")
    task = site.get(task_id)
    assert task["status"] == "PROCESSING"
    assert task["progress"] == {"fraction": 0.25, "message": "a quarter"}
    assert "pending_reason" not in task
    site.gates.open("progress")
    assert site.end_of(task_id)["status"] == "SUCCESS"


@pytest.mark.parametrize(
    "task_id",
    [NO_TASK, NO_TASK.upper().replace("0", "A"), "x", "1", "batch2", "%00", "%C3%A9", "a" * 5_000, "None"],
)
@pytest.mark.parametrize(
    ("method", "rest"),
    [("GET", ""), ("GET", "?wait=5"), ("GET", "/logs"), ("POST", "/cancel"), ("POST", "/retry")],
)
def test_an_unknown_task_is_a_404(site: Site, method: str, rest: str, task_id: str) -> None:
    told = assert_problem(site.http.request(method, f"{TASKS}/{task_id}{rest}"), 40401)
    assert len(told["message"]) < 100


@pytest.mark.parametrize("rest", ["", "/logs", "/cancel", "/retry"])
def test_an_unknown_query_parameter_is_a_422(site: Site, rest: str) -> None:
    method = "POST" if rest in ("/cancel", "/retry") else "GET"
    assert_problem(site.http.request(method, f"{TASKS}/{NO_TASK}{rest}?verbose=1"), 42201, "verbose")


# wait


def test_a_wait_answers_when_the_task_ends(site: Site) -> None:
    task_id = site.running("waited")
    with in_thread(lambda: site.get(task_id, wait=20)) as answer:
        assert site.get(task_id, wait="0.05")["status"] == "PROCESSING"
        site.gates.open("waited")
        assert answer()["status"] == "SUCCESS"


def test_a_wait_that_is_over_shows_the_task_as_it_is(site: Site) -> None:
    task_id = site.create("nobody")
    for wait in ("0", "0.05", "5e-2", "1.4e-45"):
        task = site.get(task_id, wait=wait)
        assert (task["status"], task["pending_reason"]) == ("PENDING", "no_worker")


def test_many_wait_for_one_task(site: Site) -> None:
    task_id = site.running("many")
    with contextlib.ExitStack() as stack:
        answers = [stack.enter_context(in_thread(lambda: site.get(task_id, wait=20))) for _ in range(8)]
        site.gates.open("many")
        assert {answer()["status"] for answer in answers} == {"SUCCESS"}


@pytest.mark.parametrize(
    "wait", ["", "-1", "301", "300.5", "1e3", "1e999", "nan", "inf", "1,5", "+1", " 1", "0x1", "٣"]
)
def test_a_wait_is_a_number_of_seconds_up_to_300(site: Site, wait: str) -> None:
    assert_problem(site.http.get(f"{TASKS}/{NO_TASK}", params={"wait": wait}), 42201, "wait")


def test_a_wait_given_twice_is_refused(site: Site) -> None:
    assert_problem(site.http.get(f"{TASKS}/{NO_TASK}?wait=1&wait=1"), 42201, "wait")


def test_a_task_removed_under_a_wait_is_a_404(make_site: MakeSite) -> None:
    site = make_site()
    task_id = site.create("nobody")
    with in_thread(lambda: site.http.get(f"{TASKS}/{task_id}", params={"wait": 300})) as answer:
        until(lambda: site.is_waited_for(task_id))
        remove(site.path, task_id)
        assert_problem(answer(), 40401)


def test_a_wait_does_not_hold_up_the_end_of_the_node(make_site: MakeSite) -> None:
    site = make_site()
    task_id = site.create("nobody")
    with in_thread(lambda: site.get(task_id, wait=300)) as answer:
        until(lambda: site.is_waited_for(task_id))
        site.stop()
        assert answer()["status"] == "PENDING"


# why it waits


def test_a_task_waits_for_its_time(site: Site) -> None:
    assert site.get(site.create("echo", delay=1_000))["pending_reason"] == "scheduled"
    assert site.get(site.create("nobody", scheduled_at="2999-01-01T00:00:00Z"))["pending_reason"] == "scheduled"


def test_a_task_waits_to_be_tried_again(make_site: MakeSite) -> None:
    site = make_site()
    site.configure("fails", retry_strategy="FIXED", retry_delay=1_000)
    task_id = site.create("fails")
    until(lambda: site.get(task_id)["retry_count"] == 1)
    task = site.get(task_id)
    assert (task["status"], task["pending_reason"]) == ("PENDING", "retry_delay")
    assert task["error"]["message"] == "as ever"


def test_a_task_waits_for_a_worker_that_knows_its_type(site: Site) -> None:
    assert site.get(site.create("nobody"))["pending_reason"] == "no_worker"


def test_a_task_waits_for_its_type_to_be_enabled(make_site: MakeSite) -> None:
    site = make_site()
    site.configure("echo", enabled=False)
    ids = [site.create("echo") for _ in range(3)]
    assert {site.get(task_id)["pending_reason"] for task_id in ids} == {"type_disabled"}
    # It holds up nothing behind it.
    assert site.end_of(site.create("sleep", payload={"seconds": 0}))["status"] == "SUCCESS"
    site.configure("echo", enabled=True)
    assert {site.end_of(task_id)["status"] for task_id in ids} == {"SUCCESS"}


def test_a_task_waits_while_its_type_is_at_its_cap(make_site: MakeSite) -> None:
    site = make_site()
    site.configure("gate_capped", max_concurrent=2)
    ids = [site.create("gate_capped", payload={"gate": "capped"}) for _ in range(6)]
    until(lambda: site.gates.inside["capped"] == 2)

    def waiting() -> list[str]:
        return [task["pending_reason"] for task in map(site.get, ids) if task["status"] == "PENDING"]

    assert waiting() == ["type_at_cap"] * 4
    site.gates.open("capped")
    assert {site.end_of(task_id)["status"] for task_id in ids} == {"SUCCESS"}
    assert site.gates.most["capped"] == 2


def test_a_task_waits_for_a_free_slot(make_site: MakeSite) -> None:
    site = make_site(capacity=1)
    site.running("slot")
    task_id = site.create("echo")
    assert site.get(task_id)["pending_reason"] == "no_free_slot"
    site.gates.open("slot")
    assert site.end_of(task_id)["status"] == "SUCCESS"


def test_a_task_waits_in_its_queue(make_site: MakeSite) -> None:
    site = make_site(schedule=False)
    site.configure("echo", max_concurrent=5)
    assert site.get(site.create("echo"))["pending_reason"] == "queued"


def test_a_task_of_a_node_that_drains_waits_for_another(make_site: MakeSite) -> None:
    site = make_site(grace=20)
    site.running("draining")
    site.stop()
    until(lambda: site.http.get("/readyz").status_code == 503)
    assert site.get(site.create("echo"))["pending_reason"] == "no_free_slot"
    site.gates.open("draining")


# list


def pages(site: Site, limit: int, **query: Any) -> list[list[dict[str, Any]]]:
    found = []
    cursor: dict[str, str] = {}
    while True:
        data = assert_success(site.http.get(TASKS, params={"limit": limit} | query | cursor))
        assert set(data) == {"tasks", "next_cursor"}
        found.append(data["tasks"])
        if data["next_cursor"] is None:
            return found
        cursor = {"cursor": data["next_cursor"]}


def make_batch(site: Site, task_type: str, count: int, **fields: Any) -> list[str]:
    tasks = [{"task_type": task_type, **fields}] * count
    ids: list[str] = site.http.post(BATCH, json={"tasks": tasks}).json()["data"]["task_ids"]
    return ids


def test_the_list_is_newest_first_and_pages_leave_nothing_out(site: Site) -> None:
    ids = make_batch(site, "paged", 25)
    found = pages(site, 10, task_type="paged")
    assert [len(page) for page in found] == [10, 10, 5]
    assert [task["task_id"] for page in found for task in page] == ids[::-1]
    assert set(found[0][0]) == FIELDS


@pytest.mark.parametrize("limit", [1, 5, 6, 499, 500])
def test_the_last_page_says_so(site: Site, limit: int) -> None:
    kind = f"last_{limit}"
    ids = make_batch(site, kind, 6)
    found = pages(site, limit, task_type=kind)
    assert [task["task_id"] for page in found for task in page] == ids[::-1]
    assert len(found) == -(-6 // limit)


def test_new_tasks_do_not_shift_the_pages(site: Site) -> None:
    ids = make_batch(site, "shifted", 4)
    first = site.http.get(TASKS, params={"task_type": "shifted", "limit": 2}).json()["data"]
    make_batch(site, "shifted", 3)
    query = {"task_type": "shifted", "limit": 2, "cursor": first["next_cursor"]}
    rest = site.http.get(TASKS, params=query).json()["data"]
    assert [task["task_id"] for task in first["tasks"] + rest["tasks"]] == ids[::-1]
    assert rest["next_cursor"] is None


def test_without_a_limit_a_page_has_50(site: Site) -> None:
    make_batch(site, "fifty", 51)
    data = site.http.get(TASKS, params={"task_type": "fifty"}).json()["data"]
    assert len(data["tasks"]) == 50
    assert data["next_cursor"]


def test_a_full_page_of_500_is_complete(site: Site) -> None:
    ids = make_batch(site, "full", 501)
    found = pages(site, 500, task_type="full")
    assert [len(page) for page in found] == [500, 1]
    assert [task["task_id"] for page in found for task in page] == ids[::-1]


def test_large_tasks_make_short_pages_that_leave_nothing_out(site: Site) -> None:
    ids = []
    for _ in range(13):
        ids += make_batch(site, "large", 15, payload={"a": "x" * 60_000})
    found = pages(site, 500, task_type="large")
    assert [task["task_id"] for page in found for task in page] == ids[::-1]
    assert max(map(len, found)) < len(ids)


def test_an_empty_list_is_empty(site: Site) -> None:
    assert pages(site, 5, task_type="never_made") == [[]]


def test_filters_take_what_fits_all_of_them(site: Site) -> None:
    site.gates.open("filter")
    done = site.end_of(site.create("gate_renamed", payload={"gate": "filter"}))
    waiting = site.create("gate_renamed", payload={"gate": "filter"}, delay=1_000)
    gone = site.create("gate_renamed", payload={"gate": "filter"}, delay=1_000)
    site.http.post(f"{TASKS}/{gone}/cancel")

    def ids(**query: str) -> list[str]:
        data = site.http.get(TASKS, params={"task_type": "gate_renamed"} | query).json()["data"]
        return [task["task_id"] for task in data["tasks"]]

    assert ids() == [gone, waiting, done["task_id"]]
    assert ids(status="PENDING") == [waiting]
    assert ids(status="SUCCESS") == [done["task_id"]]
    assert ids(status="CANCELLED") == [gone]
    assert ids(status="FAILED") == ids(status="TIMEOUT") == ids(status="PROCESSING") == []
    assert ids(worker_id="worker-1") == [done["task_id"]]
    assert ids(worker_id="worker-2") == []
    assert ids(status="PENDING", worker_id="worker-1") == []


def test_created_after_takes_its_own_moment_and_created_before_does_not(make_site: MakeSite) -> None:
    site = make_site(capacity=0)
    ids = []
    for _ in range(3):
        ids.append(site.create("nobody"))
        until_next_millisecond()
    middle = site.get(ids[1])["created_at"]

    def found(**query: str) -> list[str]:
        return [task["task_id"] for task in site.http.get(TASKS, params=query).json()["data"]["tasks"]]

    assert found(created_after=middle) == [ids[2], ids[1]]
    assert found(created_before=middle) == [ids[0]]
    assert found(created_after=middle, created_before=middle) == []
    assert found(created_after="2000-01-01T00:00:00Z", created_before="2999-01-01T00:00:00Z") == ids[::-1]
    shifted = middle.replace("Z", "+00:00")
    assert found(created_after=shifted) == [ids[2], ids[1]]
    # A plus that nobody escaped is a blank.
    bare = site.http.get(f"{TASKS}?created_after={shifted}").json()["data"]["tasks"]
    assert [task["task_id"] for task in bare] == [ids[2], ids[1]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "501"),
        ("limit", "-1"),
        ("limit", "1.0"),
        ("limit", "ten"),
        ("limit", ""),
        ("limit", "9" * 5_000),
        ("limit", "٣"),
        ("status", "pending"),
        ("status", "DONE"),
        ("status", ""),
        ("task_type", ""),
        ("task_type", "a b"),
        ("task_type", "x" * 129),
        ("worker_id", ""),
        ("worker_id", "a:b"),
        ("worker_id", "x" * 65),
        ("parent_id", ""),
        ("parent_id", "x"),
        ("created_after", "yesterday"),
        ("created_after", "2026-01-01"),
        ("created_before", "2026-01-01T00:00:00"),
        ("created_before", ""),
        ("cursor", ""),
        ("cursor", "x"),
        ("cursor", "AAAA"),
        ("cursor", "é"),
        ("cursor", "_-_-"),
        ("cursor", "=" * 10),
        ("cursor", "MDE4OTAwMDA"),
        ("cursor", NO_TASK),
        ("offset", "5"),
        ("Status", "PENDING"),
        ("page", "2"),
        ("", ""),
    ],
)
def test_a_list_refuses_what_it_does_not_know(site: Site, name: str, value: str) -> None:
    assert_problem(site.http.get(TASKS, params={name: value}), 42201, name)


def test_a_list_names_all_filters_that_are_wrong(site: Site) -> None:
    query = {"status": "x", "task_type": "", "worker_id": "", "created_after": "", "created_before": ""}
    assert_problem(site.http.get(TASKS, params=query), 42201, *query)


def test_a_filter_given_twice_is_refused(site: Site) -> None:
    assert_problem(site.http.get(f"{TASKS}?status=PENDING&status=FAILED"), 42201, "status")


# cancel

DONE = "Task cancelled successfully"
ASKED = "Cancellation requested"


def cancel(site: Site, task_id: str) -> Any:
    return site.http.post(f"{TASKS}/{task_id}/cancel")


def test_a_waiting_task_is_cancelled_at_once_and_the_answer_stays_the_same(site: Site) -> None:
    task_id = site.create("nobody")
    for _ in range(3):
        answer = cancel(site, task_id)
        assert_success(answer, message=DONE)
        assert answer.json() == {"code": 0, "message": DONE}
    task = site.get(task_id)
    assert task["status"] == "CANCELLED"
    assert task["cancel_requested_at"] == task["completed_at"]
    assert [row["to_status"] for row in logs(site, task_id)] == ["PENDING", "CANCELLED"]


def test_a_running_task_is_cancelled_once_its_executor_has_ended(site: Site) -> None:
    task_id = site.running("cancelled")
    assert_success(cancel(site, task_id), message=DONE)
    assert site.gates.inside["cancelled"] == 0
    task = site.get(task_id)
    assert (task["status"], task["result"]) == ("CANCELLED", None)
    assert task["cancel_requested_at"] <= task["completed_at"]
    assert_success(cancel(site, task_id), message=DONE)


def test_an_executor_that_does_not_end_makes_it_a_202(make_site: MakeSite) -> None:
    site = make_site(cancel_patience=0.1)
    task_id = site.running("never mind", "stubborn")
    for _ in range(2):
        answer = cancel(site, task_id)
        assert_success(answer, 202, ASKED)
        assert answer.json() == {"code": 0, "message": ASKED}
    task = site.get(task_id)
    assert task["status"] == "PROCESSING"
    assert task["cancel_requested_at"] is not None
    site.gates.open("never mind")
    assert site.end_of(task_id)["status"] == "CANCELLED"
    assert_success(cancel(site, task_id), message=DONE)
    messages = [row["message"] for row in logs(site, task_id) if row["log_type"] == "INFO"]
    assert messages == ["Cancellation requested"]


def test_cancels_of_one_task_at_a_time_get_one_answer(site: Site) -> None:
    task_id = site.running("crowd")
    with contextlib.ExitStack() as stack:
        answers = [stack.enter_context(in_thread(lambda: cancel(site, task_id))) for _ in range(8)]
        assert [answer().json() for answer in answers] == [{"code": 0, "message": DONE}] * 8


@pytest.mark.parametrize(
    ("task_type", "fields", "status"),
    [
        ("echo", {}, "SUCCESS"),
        ("fails", {"max_retry": 0}, "FAILED"),
        ("sleep", {"max_retry": 0, "timeout": 0.01, "payload": {"seconds": 60}}, "TIMEOUT"),
    ],
)
def test_what_has_ended_cannot_be_cancelled(
    site: Site, task_type: str, fields: dict[str, Any], status: str
) -> None:
    task_id = site.create(task_type, **fields)
    assert site.end_of(task_id)["status"] == status
    for _ in range(2):
        assert status in assert_problem(cancel(site, task_id), 40901)["message"]
    assert site.get(task_id)["status"] == status


def test_a_task_removed_under_its_cancel_is_a_404(make_site: MakeSite) -> None:
    site = make_site()
    task_id = site.running("removed", "stubborn")
    with in_thread(lambda: cancel(site, task_id)) as answer:
        until(lambda: site.is_waited_for(task_id))
        remove(site.path, task_id)
        assert_problem(answer(), 40401)
    site.gates.open("removed")


def test_how_long_cancels_take_is_measured(site: Site) -> None:
    def count() -> float:
        return site.metrics.registry.get_sample_value("atm_cancel_seconds_count") or 0

    task_id = site.running("measured")
    before = count()
    cancel(site, task_id)
    assert count() > before


def test_a_waiter_hears_of_a_cancel(site: Site) -> None:
    task_id = site.create("nobody")
    with in_thread(lambda: site.get(task_id, wait=20)) as answer:
        cancel(site, task_id)
        assert answer()["status"] == "CANCELLED"


# retry


def retry(site: Site, task_id: str) -> Any:
    return site.http.post(f"{TASKS}/{task_id}/retry")


@pytest.mark.parametrize(
    ("task_type", "fields", "status"),
    [
        ("fails", {"max_retry": 0}, "FAILED"),
        ("sleep", {"max_retry": 0, "timeout": 0.01, "payload": {"seconds": 60}}, "TIMEOUT"),
    ],
)
def test_what_has_failed_runs_again(site: Site, task_type: str, fields: dict[str, Any], status: str) -> None:
    task_id = site.create(task_type, **fields)
    assert site.end_of(task_id)["attempt"] == 1
    opened = assert_success(retry(site, task_id), message="Task will run again")
    assert (opened["status"], opened["retry_count"], opened["error"]) == ("PENDING", 0, None)
    task = site.end_of(task_id)
    assert (task["status"], task["attempt"]) == (status, 2)


def test_a_cancelled_task_runs_again(site: Site) -> None:
    task_id = site.create("echo", payload={"a": 1}, delay=1_000)
    cancel(site, task_id)
    opened = assert_success(retry(site, task_id), message="Task will run again")
    assert opened["cancel_requested_at"] is opened["completed_at"] is None
    task = site.end_of(task_id)
    assert (task["status"], task["result"]) == ("SUCCESS", {"a": 1})
    steps = [(row["from_status"], row["to_status"]) for row in logs(site, task_id)]
    assert legal_path(steps) == "SUCCESS"


def test_what_succeeded_runs_or_waits_is_not_tried_again(site: Site) -> None:
    done = site.create("echo")
    site.end_of(done)
    for task_id in (done, site.create("nobody"), site.running("unfinished")):
        before = site.get(task_id)
        assert before["status"] in assert_problem(retry(site, task_id), 40901)["message"]
        assert site.get(task_id) == before
    site.gates.open("unfinished")


# logs


def logs(site: Site, task_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = assert_success(site.http.get(f"{TASKS}/{task_id}/logs"))
    return rows


def test_the_log_tells_a_tasks_life_as_the_quick_start_does(site: Site) -> None:
    task_id = site.create("echo")
    site.end_of(task_id)
    rows = logs(site, task_id)
    times = [row.pop("created_at") for row in rows]
    assert times == sorted(times)
    assert all(moment.endswith("Z") for moment in times)
    worker = {"worker_id": "worker-1", "attempt": 1}
    change = {"log_type": "STATE_CHANGE"}
    assert rows == [
        change | {"from_status": None, "to_status": "PENDING", "message": "Task created"},
        change
        | worker
        | {"from_status": "PENDING", "to_status": "PROCESSING", "message": "Task assigned to worker"},
        change | worker | {"from_status": "PROCESSING", "to_status": "SUCCESS", "message": "Task succeeded"},
    ]


def test_the_log_tells_of_failures_retries_and_what_executors_say(make_site: MakeSite) -> None:
    site = make_site()
    site.configure("fails", retry_strategy="FIXED", retry_delay=0)
    task_id = site.create("fails", max_retry=1)
    site.end_of(task_id)
    rows = [(row["log_type"], row["from_status"], row["to_status"]) for row in logs(site, task_id)]
    assert rows == [
        ("STATE_CHANGE", None, "PENDING"),
        ("STATE_CHANGE", "PENDING", "PROCESSING"),
        ("ERROR", None, None),
        ("STATE_CHANGE", "PROCESSING", "FAILED"),
        ("RETRY", "FAILED", "PENDING"),
        ("STATE_CHANGE", "PENDING", "PROCESSING"),
        ("ERROR", None, None),
        ("STATE_CHANGE", "PROCESSING", "FAILED"),
    ]
    site.gates.open("said")
    said = site.create("reports", payload={"gate": "said"})
    site.end_of(said)
    assert "half past" in [row["message"] for row in logs(site, said) if row["log_type"] == "INFO"]
