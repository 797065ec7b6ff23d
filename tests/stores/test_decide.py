"""The judgement of the store as plain tables: a row, what is asked of it, the verdict, the change, the log."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from atm.store import CancelState, CancelVerdict, Finished, Outcome, Recovered
from atm.stores import decide
from atm.stores.decide import Change, End, Log, Row
from atm.task import MAX_RECOVERIES, REOPENABLE, TERMINAL, Status, TaskType
from contracts.bench import new_task

NOW = 1_000_000
BEFORE = 900_000


def row(status: Status = Status.PROCESSING, **fields: Any) -> Row:
    known: dict[str, Any] = {
        "seq": 7,
        "task_id": "a",
        "task_type": "echo",
        "priority": 1,
        "attempt": 2,
        "retry_count": 1,
        "recoveries": 1,
        "releases": 1,
        "cancel_requested_ms": None,
        "worker_id": "w",
        "max_retry": 3,
        "due_ms": BEFORE,
    }
    return Row(status=status, **(known | fields))


def ending(status: Status, **fields: Any) -> Outcome:
    known: dict[str, Any] = {"task_id": "a", "attempt": 2, "message": "m"}
    return Outcome(status=status, **(known | fields))


def change_of(judged: Row, **fields: Any) -> Change:
    """The change of a row whose counters are written as they stand in it."""
    return Change(
        seq=judged.seq,
        status=judged.status,
        retry_count=judged.retry_count,
        recoveries=judged.recoveries,
        releases=judged.releases,
        cancel_requested_ms=judged.cancel_requested_ms,
        worker_id=judged.worker_id,
        **fields,
    )


def steps(logs: list[Log]) -> list[tuple[str, str | None, str | None]]:
    return [(log.log_type, log.from_status, log.to_status) for log in logs]


# finish


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_an_outcome_ends_the_running_attempt(status: Status) -> None:
    judged, logs = row(), list[Log]()
    texts = {"result_json": "1", "error_json": "2", "progress_json": "3"}
    verdict, change = decide.finish(judged, ending(status, **texts), NOW, logs.append)
    assert verdict == Finished(status)
    assert change == End(7, status, None if status is Status.CANCELLED else "1", "2", "3")
    assert logs == [Log(7, "STATE_CHANGE", "PROCESSING", status.value, "m", "w", 2)]
    assert judged.status is status


@pytest.mark.parametrize("status", [*sorted(TERMINAL), Status.PENDING])
@pytest.mark.parametrize("retry_in", [None, 5.0])
def test_a_requested_cancel_wins_over_every_outcome(status: Status, retry_in: float | None) -> None:
    judged, logs = row(cancel_requested_ms=BEFORE), list[Log]()
    outcome = ending(status, retry_in=retry_in, result_json="1", error_json="2")
    verdict, change = decide.finish(judged, outcome, NOW, logs.append)
    assert verdict == Finished(Status.CANCELLED)
    assert change == End(7, Status.CANCELLED, None, "2", None)
    assert steps(logs) == [("STATE_CHANGE", "PROCESSING", "CANCELLED")]
    unreached = f"Cancelled; m (asked → ended {(NOW - BEFORE) / 1000:.1f} s, before it had reached the run)"
    assert logs[0].message == ("m" if status is Status.CANCELLED else unreached)


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMEOUT])
def test_a_retry_is_two_steps_and_one_change(status: Status) -> None:
    judged, logs = row(), list[Log]()
    outcome = ending(status, retry_in=2.5, error_json="2", progress_json="3")
    verdict, change = decide.finish(judged, outcome, NOW, logs.append)
    assert verdict == Finished(Status.PENDING, 2.5)
    assert steps(logs) == [("STATE_CHANGE", "PROCESSING", status.value), ("RETRY", status.value, "PENDING")]
    assert [log.worker_id for log in logs] == ["w", "w"]
    assert logs[1].message == "Retry 2 of 3 in 2.50 s"
    assert (judged.status, judged.retry_count, judged.worker_id) == (Status.PENDING, 2, None)
    assert (judged.recoveries, judged.releases) == (1, 1)
    times = {"due_ms": NOW + 2500, "sweep_ms": NOW + 4500}
    assert change == change_of(judged, **times, error_json="2", progress_json="3")


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.CANCELLED])
def test_only_failures_and_timeouts_are_retried(status: Status) -> None:
    verdict, change = decide.finish(row(), ending(status, retry_in=2.5), NOW, lambda log: None)
    assert verdict == Finished(status)
    assert isinstance(change, End)


def test_a_release_is_free() -> None:
    judged, logs = row(), list[Log]()
    verdict, change = decide.finish(judged, ending(Status.PENDING, error_json="2"), NOW, logs.append)
    assert verdict == Finished(Status.PENDING)
    assert steps(logs) == [("STATE_CHANGE", "PROCESSING", "PENDING")]
    assert (judged.releases, judged.retry_count, judged.recoveries) == (2, 1, 1)
    assert change == change_of(judged, due_ms=NOW, sweep_ms=NOW + decide.SWEEP_FIRST, keep_body=True)


def test_details_stand_before_the_step_they_explain() -> None:
    logs: list[Log] = []
    decide.finish(row(), ending(Status.FAILED, details="d"), NOW, logs.append)
    assert logs[0] == Log(7, "ERROR", None, None, "d", "w", 2)
    assert steps(logs[1:]) == [("STATE_CHANGE", "PROCESSING", "FAILED")]


STALE: dict[str, tuple[Row | None, Outcome]] = {
    "unknown": (None, ending(Status.SUCCESS)),
    "earlier attempt": (row(), ending(Status.SUCCESS, attempt=1)),
    "later attempt": (row(), ending(Status.SUCCESS, attempt=3)),
    "never claimed": (row(Status.PENDING, attempt=0, worker_id=None), ending(Status.SUCCESS, attempt=0)),
    "released": (row(Status.PENDING), ending(Status.SUCCESS)),
    "released, now failing": (row(Status.PENDING), ending(Status.FAILED)),
    "succeeded, now failing": (row(Status.SUCCESS), ending(Status.FAILED)),
    "failed, now succeeding": (row(Status.FAILED), ending(Status.SUCCESS)),
    "failed, now to be retried": (row(Status.FAILED), ending(Status.FAILED, retry_in=1.0)),
    "timed out, now failing": (row(Status.TIMEOUT), ending(Status.FAILED)),
    "ended, now released": (row(Status.FAILED), ending(Status.PENDING)),
}


@pytest.mark.parametrize(("judged", "outcome"), STALE.values(), ids=STALE)
def test_what_comes_too_late_changes_nothing(judged: Row | None, outcome: Outcome) -> None:
    logs: list[Log] = []
    before = None if judged is None else replace(judged)
    outcome = replace(outcome, details="d")
    assert decide.finish(judged, outcome, NOW, logs.append) == (Finished(None), None)
    assert logs == []
    assert judged == before


REPLAYS: dict[str, tuple[Row, Outcome, Finished]] = {
    **{
        f"{status}": (row(status), ending(status), Finished(status))
        for status in (Status.SUCCESS, Status.FAILED, Status.TIMEOUT, Status.CANCELLED)
    },
    **{
        f"{status} that became cancelled": (row(Status.CANCELLED), ending(status), Finished(Status.CANCELLED))
        for status in (Status.SUCCESS, Status.FAILED, Status.TIMEOUT, Status.PENDING)
    },
    "released": (row(Status.PENDING), ending(Status.PENDING), Finished(Status.PENDING)),
    "retried": (
        row(Status.PENDING, due_ms=NOW + 1500),
        ending(Status.FAILED, retry_in=2.0),
        Finished(Status.PENDING, 1.5),
    ),
    "retried, due by now": (
        row(Status.PENDING),
        ending(Status.TIMEOUT, retry_in=2.0),
        Finished(Status.PENDING),
    ),
}


@pytest.mark.parametrize(("judged", "outcome", "verdict"), REPLAYS.values(), ids=REPLAYS)
def test_a_repetition_is_answered_and_changes_nothing(judged: Row, outcome: Outcome, verdict: Finished) -> None:
    logs: list[Log] = []
    assert decide.finish(judged, outcome, NOW, logs.append) == (verdict, None)
    assert logs == []


# cancel


def test_a_waiting_row_is_cancelled() -> None:
    judged, logs = row(Status.PENDING), list[Log]()
    verdict, change = decide.cancel(judged, NOW, logs.append)
    told = {"task_type": "echo", "priority": 1}
    assert verdict == CancelVerdict(CancelState.CANCELLED, Status.CANCELLED, changed=True, **told)
    assert judged.cancel_requested_ms == NOW
    assert change == change_of(judged, completed_ms=NOW, keep_body=True)
    assert logs == [Log(7, "STATE_CHANGE", "PENDING", "CANCELLED", "Task cancelled", "w", 2)]


def test_a_row_that_never_ran_is_cancelled_without_an_attempt_in_its_log() -> None:
    logs: list[Log] = []
    decide.cancel(row(Status.PENDING, attempt=0, worker_id=None), NOW, logs.append)
    assert (logs[0].worker_id, logs[0].attempt) == (None, None)


def test_a_running_row_is_marked_once() -> None:
    judged, logs = row(), list[Log]()
    first, second = [decide.cancel(judged, at, logs.append) for at in (NOW, NOW + 1)]
    assert first == (CancelVerdict(CancelState.REQUESTED, Status.PROCESSING, "w", 2, changed=True), None)
    assert second == (CancelVerdict(CancelState.REQUESTED, Status.PROCESSING, "w", 2, changed=False), None)
    assert judged.cancel_requested_ms == NOW
    assert logs == [Log(7, "INFO", None, None, "Cancellation requested", "w", 2)]


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_an_ended_row_is_not_cancelled(status: Status) -> None:
    logs: list[Log] = []
    state = CancelState.CANCELLED if status is Status.CANCELLED else CancelState.TERMINAL
    assert decide.cancel(row(status), NOW, logs.append) == (CancelVerdict(state, status), None)
    assert logs == []


def test_no_row_is_unknown() -> None:
    assert decide.cancel(None, NOW, [].append) == (CancelVerdict(CancelState.UNKNOWN), None)


# reopen


@pytest.mark.parametrize("status", sorted(REOPENABLE))
def test_a_reopened_row_begins_anew(status: Status) -> None:
    judged, logs = row(status, cancel_requested_ms=BEFORE), list[Log]()
    change = decide.reopen(judged, NOW, logs.append)
    assert logs == [Log(7, "RETRY", status.value, "PENDING", "Retry requested", "w", 2)]
    assert (judged.retry_count, judged.recoveries, judged.releases, judged.attempt) == (0, 0, 0, 2)
    assert judged.cancel_requested_ms is judged.worker_id is None
    assert change == change_of(judged, due_ms=NOW, sweep_ms=NOW + decide.SWEEP_FIRST, opened=True)


@pytest.mark.parametrize("status", sorted(set(Status) - REOPENABLE))
def test_other_rows_are_not_reopened(status: Status) -> None:
    judged, logs = row(status), list[Log]()
    assert decide.reopen(judged, NOW, logs.append) is None
    assert (logs, judged) == ([], row(status))


# recover


def test_a_lost_row_waits_again() -> None:
    judged, logs = row(), list[Log]()
    recovered, change = decide.recover(judged, NOW, 250, logs.append)
    assert recovered == Recovered("a", "echo", 1, Status.PENDING)
    assert (judged.recoveries, judged.retry_count, judged.releases) == (2, 1, 1)
    times = {"due_ms": NOW + 250, "sweep_ms": NOW + 250 + decide.SWEEP_FIRST}
    assert change == change_of(judged, **times, keep_body=True)
    assert logs == [Log(7, "STATE_CHANGE", "PROCESSING", "PENDING", "Recovered: its worker was lost", "w", 2)]


@pytest.mark.parametrize("recoveries", [0, 1, MAX_RECOVERIES - 1, MAX_RECOVERIES, MAX_RECOVERIES + 1])
def test_too_many_losses_are_poison(recoveries: int) -> None:
    judged, logs = row(recoveries=recoveries), list[Log]()
    recovered, change = decide.recover(judged, NOW, 0, logs.append)
    assert recovered.status is (Status.PENDING if recoveries < MAX_RECOVERIES else Status.FAILED)
    assert judged.recoveries == recoveries + 1
    if recovered.status is Status.FAILED:
        assert change.error_json is not None
        error = json.loads(change.error_json)
        assert error == {"type": "WorkerLost", "message": logs[0].message, "retryable": False}
        assert change == change_of(judged, completed_ms=NOW, error_json=change.error_json)


@pytest.mark.parametrize("recoveries", [0, MAX_RECOVERIES])
def test_a_lost_row_with_a_cancel_requested_is_cancelled(recoveries: int) -> None:
    judged, logs = row(cancel_requested_ms=BEFORE, recoveries=recoveries), list[Log]()
    recovered, change = decide.recover(judged, NOW, 250, logs.append)
    assert recovered.status is Status.CANCELLED
    assert judged.recoveries == recoveries
    assert change == change_of(judged, completed_ms=NOW, keep_body=True)
    assert steps(logs) == [("STATE_CHANGE", "PROCESSING", "CANCELLED")]


# create and claim


def test_creation_and_claim_have_their_log_rows() -> None:
    assert decide.created(7) == Log(7, "STATE_CHANGE", None, "PENDING", "Task created", None, None)
    claimed = Log(7, "STATE_CHANGE", "PENDING", "PROCESSING", "Task assigned to worker", "w", 3)
    assert decide.claimed(7, 3, "w") == claimed


DUES: dict[str, tuple[dict[str, Any], tuple[int, int | None]]] = {
    "at once": ({}, (NOW, None)),
    "delay of nothing": ({"delay": 0.0}, (NOW, None)),
    "delay": ({"delay": 1.5}, (NOW + 1500, NOW + 1500)),
    "delay to the nearest millisecond": ({"delay": 0.0016}, (NOW + 2, NOW + 2)),
    "scheduled": ({"scheduled_ms": NOW + 3}, (NOW + 3, NOW + 3)),
    "scheduled in the past": ({"scheduled_ms": BEFORE}, (NOW, BEFORE)),
    "scheduled before 1970": ({"scheduled_ms": -5}, (NOW, -5)),
}


@pytest.mark.parametrize(("fields", "due"), DUES.values(), ids=DUES)
def test_when_a_task_is_due(fields: dict[str, Any], due: tuple[int, int | None]) -> None:
    task = new_task(**fields)
    assert decide.due(task, NOW) == due


REQUESTS: list[tuple[str, str, str, bool]] = [
    ("echo", '{"a":1}', '{"a":1}', True),
    ("echo", '{"a":1,"b":[2]}', '{ "b": [2], "a": 1 }', True),
    ("echo", '{"a":"é"}', '{"a":"\\u00e9"}', True),
    ("echo", '{"a":1}', '{"a":2}', False),
    ("echo", '{"a":1}', '{"a":true}', False),
    ("echo", '{"a":1}', '{"a":"1"}', False),
    ("echo", '{"a":[1,2]}', '{"a":[2,1]}', False),
    ("echo", '{"a":null}', "{}", False),
    ("echo", '{"n":123456789012345678901}', '{"n":123456789012345678902}', False),
    ("other", '{"a":1}', '{"a":1}', False),
]


@pytest.mark.parametrize(("task_type", "asked", "stored", "same"), REQUESTS)
def test_what_counts_as_the_same_request(task_type: str, asked: str, stored: str, same: bool) -> None:
    assert decide.same_request(new_task(task_type, asked), "echo", stored) is same


ROOMS: list[tuple[dict[str, Any], int, int | None]] = [
    ({}, 1000, None),
    ({"max_concurrent": 3}, 0, 3),
    ({"max_concurrent": 3}, 2, 1),
    ({"max_concurrent": 3}, 3, 0),
    ({"max_concurrent": 3}, 9, 0),
    ({"enabled": False}, 0, 0),
    ({"enabled": False, "max_concurrent": 3}, 0, 0),
]


@pytest.mark.parametrize(("settings", "running", "room"), ROOMS)
def test_how_many_more_of_a_type_may_run(settings: dict[str, Any], running: int, room: int | None) -> None:
    assert decide.room(TaskType(task_type="echo", **settings), running) == room
