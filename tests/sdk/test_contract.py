"""What every client does, whichever side it is written for, and whether its server is real or not."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from async_task_manager import (
    Conflict,
    InvalidRequest,
    NotFound,
    Progress,
    Status,
    TaskCancelled,
    TaskFailed,
    TaskTimedOut,
    WaitTimeout,
)
from sdk.kinds import is_fake, let_run

NOBODY = "00000000-0000-7000-8000-000000000000"


def fields_of(caught: pytest.ExceptionInfo[Any]) -> list[str]:
    return sorted(wrong.field for wrong in caught.value.errors)


def steps_of(client: Any, task_id: str) -> list[tuple[str, str | None, str | None]]:
    return [(row.log_type, row.from_status, row.to_status) for row in client.get_task_logs(task_id)]


# create, look, wait


def test_a_task_runs_and_its_handle_tells_the_result(client: Any) -> None:
    handle = client.create_task(task_type="echo", priority=1, payload={"text": "你好", "n": 2**70}, timeout=7)
    assert handle.result(timeout=20) == {"text": "你好", "n": 2**70}
    task = client.get_task(handle.task_id)
    assert (task.task_id, task.task_type, task.status) == (handle.task_id, "echo", Status.SUCCESS)
    assert (task.priority, task.timeout, task.max_retry, task.attempt) == (1, 7.0, 3, 1)
    assert task.payload == task.result
    assert task.is_ended
    assert task.created_at.utcoffset() == timedelta(0)
    assert task.created_at <= task.started_at <= task.completed_at
    assert (task.error, task.scheduled_at, task.pending_reason) == (None, None, None)


def test_a_task_waits_for_its_time(client: Any) -> None:
    handle = client.create_task("echo", {"n": 1}, delay=0.3)
    task = handle.get()
    assert (task.status, task.pending_reason) == (Status.PENDING, "scheduled")
    assert task.scheduled_at > task.created_at
    assert handle.wait(timeout=20).status is Status.SUCCESS


def test_a_whole_number_is_an_integer_however_it_is_written(client: Any, kind_of_task: str) -> None:
    task = client.create_task(kind_of_task, priority=1.0, max_retry=2.0).get()
    assert (task.priority, task.max_retry) == (1, 2)
    settings = client.put_task_type(kind_of_task, default_max_retry=2.0, max_concurrent=3.0)
    assert (settings.default_max_retry, settings.max_concurrent) == (2, 3)


def test_a_time_may_be_given_in_any_zone(client: Any) -> None:
    moment = datetime(2040, 1, 31, 18, 0, tzinfo=UTC)
    handle = client.create_task("echo", scheduled_at=moment.astimezone())
    assert handle.get().scheduled_at == moment
    handle = client.create_task("echo", scheduled_at="2040-01-31T20:00:00+02:00")
    assert handle.get().scheduled_at == moment


def test_waiting_ends_when_the_time_is_over_and_the_task_goes_on(client: Any, kind_of_task: str) -> None:
    handle = client.create_task(kind_of_task)
    for wait in (handle.wait, handle.result):
        with pytest.raises(WaitTimeout) as caught:
            wait(timeout=0.1)
        assert (caught.value.task.task_id, caught.value.task.status) == (handle.task_id, Status.PENDING)
    with pytest.raises(WaitTimeout):
        client.wait(handle.task_id, timeout=0)
    assert handle.get().pending_reason == "no_worker"


def test_a_key_makes_one_task_of_many_creates(client: Any, kind_of_task: str) -> None:
    first = client.create_task(kind_of_task, {"a": 1, "b": 2}, idempotency_key=kind_of_task)
    again = client.create_task(kind_of_task, {"b": 2, "a": 1}, idempotency_key=kind_of_task, priority=1)
    assert again.task_id == first.task_id
    with pytest.raises(Conflict) as caught:
        client.create_task(kind_of_task, {"a": 2}, idempotency_key=kind_of_task)
    assert (caught.value.status, caught.value.code, fields_of(caught)) == (409, 40902, ["idempotency_key"])


def test_creates_without_a_key_make_a_task_each(client: Any, kind_of_task: str) -> None:
    made = {client.create_task(kind_of_task).task_id for _ in range(3)}
    assert len(made) == 3
    assert {task.task_id for task in client.list_tasks(task_type=kind_of_task)} == made


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"task_type": "two words"}, ["task_type"]),
    ({"task_type": ""}, ["task_type"]),
    ({"task_type": "echo", "priority": 2}, ["priority"]),
    ({"task_type": "echo", "priority": True}, ["priority"]),
    ({"task_type": "echo", "payload": [1]}, ["payload"]),
    ({"task_type": "echo", "timeout": 0, "max_retry": 101}, ["max_retry", "timeout"]),
    ({"task_type": "echo", "delay": -1}, ["delay"]),
    ({"task_type": "echo", "scheduled_at": "tomorrow"}, ["scheduled_at"]),
    ({"task_type": "echo", "delay": 1, "scheduled_at": "2040-01-01T00:00:00Z"}, ["scheduled_at"]),
    ({"task_type": "echo", "idempotency_key": "a\nb"}, ["idempotency_key"]),
]


def test_a_refused_create_says_which_fields_are_wrong(client: Any) -> None:
    for fields, wrong in REFUSED:
        with pytest.raises(InvalidRequest) as caught:
            client.create_task(**fields)
        assert (caught.value.status, caught.value.code, fields_of(caught)) == (422, 42201, wrong)
        assert caught.value.request_id
        assert any(name in str(caught.value) for name in wrong)
        with pytest.raises(InvalidRequest) as caught:
            client.create_tasks([{"task_type": "echo"}, fields])
        assert fields_of(caught) == [f"tasks[1].{name}" for name in wrong]


def test_a_payload_that_is_too_deep_or_too_large_is_refused(client: Any) -> None:
    deep: Any = {}
    for _ in range(64):
        deep = {"deeper": deep}
    with pytest.raises(InvalidRequest) as caught:
        client.create_task("echo", deep)
    assert fields_of(caught) == ["payload"]
    with pytest.raises(InvalidRequest) as caught:
        client.create_task("echo", {"text": "x" * 1024 * 1024})
    assert (caught.value.status, caught.value.code) == (413, 41301)


@pytest.mark.parametrize("payload", [{"n": float("nan")}, {"of": {1, 2}}, {"lone": "\ud800"}])
def test_what_json_cannot_say_is_not_sent(client: Any, payload: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        client.create_task("echo", payload)
    with pytest.raises((TypeError, ValueError), match=r"tasks\[0\]"):
        client.create_tasks([{"task_type": "echo", "payload": payload}])


def test_a_time_without_zone_is_not_sent(client: Any) -> None:
    with pytest.raises(ValueError, match="scheduled_at: the time needs a zone"):
        client.create_task("echo", scheduled_at=datetime(2040, 1, 1))


def test_an_unknown_task_is_not_found_by_any_verb(client: Any) -> None:
    verbs = (client.get_task, client.wait, client.cancel_task, client.retry_task, client.get_task_logs)
    unknown = (NOBODY, "", "..", "../queues", "a/b", "?", "x" * 100, "no\nbody")
    for verb, task_id in itertools.product(verbs, unknown):
        with pytest.raises(NotFound) as caught:
            verb(task_id)
        assert (caught.value.status, caught.value.code) == (404, 40401)


# many


def test_many_tasks_are_created_in_order_and_told_about(client: Any, kind_of_task: str) -> None:
    told: list[Progress] = []
    tasks = [{"task_type": kind_of_task, "payload": {"n": n}} for n in range(1001)]
    handles = client.create_tasks(tasks, on_progress=told.append)
    assert [(step.done, step.total, len(step.task_ids)) for step in told] == [(1000, 1001, 1000), (1001, 1001, 1)]
    assert [handle.task_id for handle in handles] == [task_id for step in told for task_id in step.task_ids]
    assert handles[1000].get().payload == {"n": 1000}
    found = list(client.iter_tasks(task_type=kind_of_task, page_size=500))
    assert [task.task_id for task in found] == [handle.task_id for handle in reversed(handles)]


def test_many_tasks_may_come_from_a_generator(client: Any, kind_of_task: str) -> None:
    told: list[Progress] = []
    handles = client.create_tasks(({"task_type": kind_of_task} for _ in range(3)), on_progress=told.append)
    assert len(handles) == 3
    assert [(step.done, step.total) for step in told] == [(3, None)]
    assert client.create_tasks([]) == []


def test_a_refused_piece_names_the_place_in_the_whole_call(client: Any, kind_of_task: str) -> None:
    told: list[Progress] = []
    tasks: list[dict[str, Any]] = [{"task_type": kind_of_task} for _ in range(1003)]
    tasks[1002]["timeout"] = -1
    with pytest.raises(InvalidRequest, match=r"^tasks\[1002\]\.timeout") as caught:
        client.create_tasks(tasks, on_progress=told.append)
    assert fields_of(caught) == ["tasks[1002].timeout"]
    assert [step.done for step in told] == [1000]
    assert sum(1 for _ in client.iter_tasks(task_type=kind_of_task, page_size=500)) == 1000


def test_a_conflict_in_a_piece_fails_all_of_it(client: Any, kind_of_task: str) -> None:
    client.create_task(kind_of_task, {"n": 0}, idempotency_key=kind_of_task)
    with pytest.raises(Conflict) as caught:
        client.create_tasks([{"task_type": kind_of_task}, {"task_type": "echo", "idempotency_key": kind_of_task}])
    assert fields_of(caught) == ["tasks[1].idempotency_key"]
    assert len(client.list_tasks(task_type=kind_of_task).tasks) == 1


def test_a_known_key_in_a_piece_gives_its_task(client: Any, kind_of_task: str) -> None:
    first = client.create_task(kind_of_task, idempotency_key=kind_of_task)
    keyed = {"task_type": kind_of_task, "idempotency_key": kind_of_task}
    made = client.create_tasks([{"task_type": kind_of_task}, keyed, keyed])
    assert [handle.task_id for handle in made[1:]] == [first.task_id, first.task_id]


def test_an_unknown_field_of_a_task_is_named(client: Any) -> None:
    with pytest.raises(ValueError, match=r"tasks\[1\]: prio: unknown field"):
        client.create_tasks([{"task_type": "echo"}, {"task_type": "echo", "prio": 1}])


# list


def test_a_list_has_what_was_asked_for(client: Any, kind_of_task: str) -> None:
    before = client.create_task("echo").get().created_at
    made = [client.create_task(kind_of_task).task_id for _ in range(3)]
    client.cancel_task(made[0])
    assert [task.task_id for task in client.list_tasks(task_type=kind_of_task)] == made[::-1]
    assert [task.task_id for task in client.list_tasks(task_type=kind_of_task, status="CANCELLED")] == made[:1]
    assert [t.task_id for t in client.list_tasks(task_type=kind_of_task, status=Status.PENDING)] == made[:0:-1]
    assert len(client.list_tasks(task_type=kind_of_task, created_after=before).tasks) == 3
    assert client.list_tasks(task_type=kind_of_task, created_before=before - timedelta(hours=1)).tasks == []
    assert client.list_tasks(task_type=kind_of_task, worker_id="nobody").tasks == []
    page = client.list_tasks(task_type=kind_of_task, limit=2)
    rest = client.list_tasks(task_type=kind_of_task, limit=2, cursor=page.next_cursor)
    assert [task.task_id for task in [*page, *rest]] == made[::-1]
    assert rest.next_cursor is None
    assert [t.task_id for t in client.iter_tasks(task_type=kind_of_task, page_size=1)] == made[::-1]


def test_a_list_that_cannot_be_is_refused(client: Any) -> None:
    queries: dict[str, list[Any]] = {
        "status": ["DONE"],
        "limit": [501, 0],
        "cursor": ["???", "0199d3f0-5b6e-7000-8a4c-3f1f2a9d7c11"],
        "created_after": ["yesterday"],
        "created_before": [""],
        "worker_id": ["two words"],
    }
    for name, values in queries.items():
        for value in values:
            with pytest.raises(InvalidRequest) as caught:
                client.list_tasks(**{name: value})
            assert (caught.value.code, fields_of(caught)) == (42201, [name])


@pytest.mark.parametrize("name", ["status", "task_type", "worker_id", "parent_id", "created_after", "cursor"])
def test_a_filter_that_is_no_text_is_not_sent(client: Any, name: str) -> None:
    with pytest.raises(TypeError if name != "status" else InvalidRequest):
        client.list_tasks(**{name: 5})
    with pytest.raises(ValueError, match=name):
        client.list_tasks(**{name: "\ud800"})


def test_what_is_no_task_is_told_by_its_place(client: Any) -> None:
    for tasks in (["echo"], [None], {"task_type": "echo"}):
        with pytest.raises(TypeError, match=r"tasks\[0\]: must be a mapping"):
            client.create_tasks(tasks)


@pytest.mark.parametrize("task_type", ["", "..", "a/b"])
def test_a_type_that_would_be_another_path_is_not_sent(client: Any, task_type: str) -> None:
    with pytest.raises(ValueError, match="task_type"):
        client.put_task_type(task_type, enabled=True)


# cancel, fail, retry


def test_a_waiting_task_is_cancelled_and_tried_again(client: Any, kind_of_task: str) -> None:
    handle = client.create_task(kind_of_task)
    assert handle.cancel() is True
    assert handle.cancel() is True
    with pytest.raises(TaskCancelled) as caught:
        handle.result(timeout=20)
    assert caught.value.task.cancel_requested_at is not None
    task = handle.retry()
    assert (task.status, task.cancel_requested_at, task.completed_at) == (Status.PENDING, None, None)
    with pytest.raises(Conflict) as conflict:
        handle.retry()
    assert (conflict.value.status, conflict.value.code) == (409, 40901)
    assert steps_of(client, handle.task_id) == [
        ("STATE_CHANGE", None, "PENDING"),
        ("STATE_CHANGE", "PENDING", "CANCELLED"),
        ("RETRY", "CANCELLED", "PENDING"),
    ]


def test_a_running_task_is_cancelled(client: Any) -> None:
    handle = client.create_task("sleep", {"seconds": 3600})
    let_run(client, handle.task_id)
    assert client.cancel_task(handle.task_id) is True
    task = client.wait(handle.task_id, timeout=20)
    assert (task.status, task.result, task.error) == (Status.CANCELLED, None, None)
    assert steps_of(client, handle.task_id)[1:] == [
        ("STATE_CHANGE", "PENDING", "PROCESSING"),
        ("INFO", None, None),
        ("STATE_CHANGE", "PROCESSING", "CANCELLED"),
    ]


def test_an_ended_task_cannot_be_cancelled(client: Any) -> None:
    handle = client.create_task("echo")
    handle.wait(timeout=20)
    with pytest.raises(Conflict) as caught:
        handle.cancel()
    assert (caught.value.status, caught.value.code) == (409, 40901)
    with pytest.raises(Conflict):
        handle.retry()


def test_a_failed_task_tells_why(client: Any) -> None:
    handle = client.create_task("fails", max_retry=0)
    with pytest.raises(TaskFailed, match="ValueError: no such file") as caught:
        handle.result(timeout=20)
    error = caught.value.task.error
    assert error is not None
    assert (error.type, error.message, error.retryable) == ("ValueError", "no such file", True)
    assert handle.retry().error is None
    assert handle.wait(timeout=20).attempt == 2


def test_what_is_not_to_be_retried_is_not(client: Any) -> None:
    task = client.create_task("refuses").wait(timeout=20)
    assert (task.status, task.attempt, task.retry_count) == (Status.FAILED, 1, 0)
    assert task.error.retryable is False


def test_a_retry_can_be_read_in_the_log(client: Any) -> None:
    client.put_task_type("fails_once", retry_strategy="FIXED", retry_delay=0.05)
    handle = client.create_task("fails_once")
    task = handle.wait(timeout=20)
    assert (task.status, task.result, task.retry_count) == (Status.SUCCESS, {"attempt": 2}, 1)
    assert [(row.log_type, row.from_status, row.to_status, row.attempt) for row in handle.logs()] == [
        ("STATE_CHANGE", None, "PENDING", None),
        ("STATE_CHANGE", "PENDING", "PROCESSING", 1),
        ("ERROR", None, None, 1),
        ("STATE_CHANGE", "PROCESSING", "FAILED", 1),
        ("RETRY", "FAILED", "PENDING", 1),
        ("STATE_CHANGE", "PENDING", "PROCESSING", 2),
        ("STATE_CHANGE", "PROCESSING", "SUCCESS", 2),
    ]


def test_a_task_that_takes_too_long_has_timed_out(client: Any) -> None:
    handle = client.create_task("sleep", {"seconds": 3600}, timeout=0.1, max_retry=0)
    if is_fake(client):
        client.server.time_out(handle.task_id)
    with pytest.raises(TaskTimedOut) as caught:
        handle.result(timeout=20)
    assert (caught.value.task.status, caught.value.task.error.type) == (Status.TIMEOUT, "Timeout")


# the rest


def test_workers_queues_and_health_can_be_seen(client: Any, kind_of_task: str) -> None:
    client.create_task(kind_of_task, priority=-1)
    client.create_task(kind_of_task, delay=3600)
    (worker,) = client.list_workers()
    assert {"echo", "fails"} <= set(worker.supported_types)
    assert worker.last_heartbeat.utcoffset() == timedelta(0)
    found = client.list_queues()
    assert [queue.name for queue in found] == ["high", "normal", "low"]
    assert found.queues[2].length >= 1
    assert found.delayed >= 1
    assert (client.livez().ok, client.readyz().ok) == (True, True)


def test_settings_of_a_type_are_changed_one_by_one(client: Any, kind_of_task: str) -> None:
    with pytest.raises(NotFound):
        client.get_task_type(kind_of_task)
    changed = client.put_task_type(kind_of_task, max_concurrent=2, default_timeout=9)
    assert (changed.max_concurrent, changed.default_timeout, changed.enabled) == (2, 9.0, True)
    client.put_task_type(kind_of_task, enabled=False, max_concurrent=None)
    settings = client.get_task_type(kind_of_task)
    assert (settings.max_concurrent, settings.default_timeout, settings.enabled) == (None, 9.0, False)
    assert settings in client.list_task_types()
    handle = client.create_task(kind_of_task)
    assert (handle.get().timeout, handle.get().pending_reason) == (9.0, "type_disabled")
    with pytest.raises(InvalidRequest) as caught:
        client.put_task_type(kind_of_task, backoff_rate=0, retry_strategy="LINEAR")
    assert fields_of(caught) == ["backoff_rate", "retry_strategy"]


def test_a_handle_can_be_made_of_an_id(client: Any, kind_of_task: str) -> None:
    task_id = client.create_task(kind_of_task).task_id
    assert client.handle(task_id).get().task_type == kind_of_task
