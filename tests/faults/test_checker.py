"""The checker finds nothing where nothing is wrong, and every wrong that is done to what a run has left."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from . import kill9
from .checker import check
from .evidence import Evidence, read_file, read_runs
from .ledger import Create
from .node import Life

CHOSEN = """
CREATE TEMP TABLE succeeded AS
SELECT seq, payload FROM task WHERE status = 'SUCCESS' AND task_type = 'quick' AND attempt = 1 LIMIT 1;
CREATE TEMP TABLE retried AS SELECT seq FROM task WHERE retry_count > 0 LIMIT 1;
"""
"""The rows that are tampered with."""

HOUR_NS = 3_600_000_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed-once")


@pytest.fixture(scope="module")
def left(folder: Path) -> Evidence:
    """What one short run with a kill has left: real rows, logs, runs and answers."""
    return trio.run(partial(kill9.run, folder, kills=1, rate=200, seed=5)).evidence


@pytest.fixture
def laws_broken(folder: Path, left: Evidence, tmp_path: Path) -> Callable[[str], set[str]]:
    """Does something to a copy of the file; the laws that the checker then finds broken."""

    def tamper(sql: str) -> set[str]:
        shutil.copy(folder / "atm.db", tmp_path / "copy.db")
        database = sqlite3.connect(tmp_path / "copy.db")
        database.executescript(CHOSEN)
        assert database.execute(sql).rowcount > 0
        database.commit()
        database.close()
        tasks, logs = read_file(tmp_path / "copy.db")
        return laws(replace(left, tasks=tasks, logs=logs))

    return tamper


def laws(evidence: Evidence) -> set[str]:
    return {violation.law for violation in check(evidence)}


def some(left: Evidence, status: str, task_type: str | None = None) -> tuple[str, int]:
    """The id and last attempt of a task that came to this end; that run is recorded to its end."""
    for task_id, task in left.tasks.items():
        run = left.runs.get((task_id, task.attempt))
        # To stretch a run of the capped type would break its cap as well.
        fits = task.status == status and task_type in (None, task.task_type) and task.task_type != "narrow"
        if fits and run is not None and run.end_ns is not None and task_id not in left.ledger.retries:
            return task_id, task.attempt
    raise AssertionError(f"the run left no {status} task")


def test_a_kept_promise_is_no_violation(left: Evidence) -> None:
    assert [str(violation) for violation in check(left)] == []


def test_the_run_left_something_of_everything(left: Evidence) -> None:
    assert {task.status for task in left.tasks.values()} == {"SUCCESS", "FAILED", "TIMEOUT", "CANCELLED"}
    assert left.ledger.cancels
    assert left.ledger.retries
    assert any(life.died_ns is not None for life in left.lives)


def test_a_deleted_task_is_a_lost_create(laws_broken: Callable[[str], set[str]]) -> None:
    assert "A" in laws_broken("DELETE FROM task WHERE seq = (SELECT seq FROM succeeded)")


def test_a_create_that_never_reached_the_store_is_lost(left: Evidence) -> None:
    ledger = deepcopy(left.ledger)
    ledger.creates.append(Create("r-none", {}, ["00000000-0000-7000-8000-000000000000"]))
    assert laws(replace(left, ledger=ledger)) == {"A"}


def test_an_id_that_belongs_to_another_create_is_seen(left: Evidence) -> None:
    ledger = deepcopy(left.ledger)
    first, second = ledger.acknowledged()[:2]
    first.answers = second.answers
    assert "A" in laws(replace(left, ledger=ledger))


def test_one_key_for_two_tasks_is_seen(left: Evidence) -> None:
    ledger = deepcopy(left.ledger)
    first, second = ledger.acknowledged()[:2]
    first.answers = [*first.answers, *second.answers]
    assert "A" in laws(replace(left, ledger=ledger))


def test_a_create_that_became_two_tasks_is_seen(laws_broken: Callable[[str], set[str]]) -> None:
    assert "A" in laws_broken(
        "UPDATE task SET payload = (SELECT payload FROM succeeded) WHERE seq = (SELECT max(seq) FROM task)"
    )


def test_a_refusal_of_a_good_request_is_seen(left: Evidence) -> None:
    ledger = deepcopy(left.ledger)
    ledger.surprises.append("create: 500 None")
    assert laws(replace(left, ledger=ledger)) == {"A"}


def test_a_task_that_did_not_end_is_seen(laws_broken: Callable[[str], set[str]]) -> None:
    assert {"A", "L"} <= laws_broken(
        "UPDATE task SET status = 'PROCESSING' WHERE seq = (SELECT seq FROM succeeded)"
    )


def test_a_missing_log_row_is_an_illegal_path(laws_broken: Callable[[str], set[str]]) -> None:
    assert "L" in laws_broken(
        "DELETE FROM task_logs WHERE seq = (SELECT seq FROM succeeded) AND to_status = 'PROCESSING'"
    )


def test_an_altered_log_row_is_an_illegal_path(laws_broken: Callable[[str], set[str]]) -> None:
    assert "L" in laws_broken(
        "UPDATE task_logs SET to_status = 'FAILED' "
        "WHERE seq = (SELECT seq FROM succeeded) AND to_status = 'SUCCESS'"
    )


def test_a_log_in_the_wrong_order_is_seen(laws_broken: Callable[[str], set[str]]) -> None:
    assert "L" in laws_broken(
        "UPDATE task_logs SET created_at = created_at - 60000 "
        "WHERE seq = (SELECT seq FROM succeeded) AND to_status = 'SUCCESS'"
    )


def test_a_second_success_is_seen(laws_broken: Callable[[str], set[str]]) -> None:
    assert {"L", "F"} <= laws_broken(
        "INSERT INTO task_logs (seq, log_id, log_type, from_status, to_status, message, attempt, created_at) "
        "SELECT seq, log_id + 1000000, log_type, from_status, to_status, message, attempt, created_at "
        "FROM task_logs WHERE seq = (SELECT seq FROM succeeded) AND to_status = 'SUCCESS'"
    )


def test_a_result_of_an_older_attempt_is_seen(laws_broken: Callable[[str], set[str]]) -> None:
    assert "F" in laws_broken(
        """UPDATE task SET result = '{"attempt": 0}' WHERE seq = (SELECT seq FROM succeeded)"""
    )


def test_an_attempt_that_no_claim_explains_is_seen(laws_broken: Callable[[str], set[str]]) -> None:
    assert "N" in laws_broken("UPDATE task SET attempt = attempt + 1 WHERE seq = (SELECT seq FROM succeeded)")


def test_attempts_beyond_what_the_counters_allow_are_seen(laws_broken: Callable[[str], set[str]]) -> None:
    assert "N" in laws_broken("UPDATE task SET retry_count = 0 WHERE seq = (SELECT seq FROM retried)")


def test_more_retries_than_the_task_allows_are_seen(laws_broken: Callable[[str], set[str]]) -> None:
    assert "N" in laws_broken("UPDATE task SET max_retry = 0 WHERE seq = (SELECT seq FROM retried)")


def test_a_poisonous_task_that_is_run_for_ever_is_seen(laws_broken: Callable[[str], set[str]]) -> None:
    assert "N" in laws_broken("UPDATE task SET recoveries = 4 WHERE seq = (SELECT seq FROM succeeded)")


@pytest.mark.parametrize("status", ["CANCELLED", "TIMEOUT"])
def test_an_end_written_before_the_executor_ended_is_seen(left: Evidence, status: str) -> None:
    runs = deepcopy(left.runs)
    run = runs[some(left, status)]
    assert run.end_ns is not None
    run.end_ns += HOUR_NS
    assert laws(replace(left, runs=runs)) == {"E"}


def test_an_executor_that_never_ended_is_seen(left: Evidence) -> None:
    runs = deepcopy(left.runs)
    runs[some(left, "TIMEOUT")].end_ns = None
    lives = [Life(life.number) for life in left.lives]
    assert "E" in laws(replace(left, runs=runs, lives=lives))


def test_two_runs_of_a_task_at_a_time_are_seen(left: Evidence) -> None:
    runs = deepcopy(left.runs)
    task_id = next(task_id for task_id, attempt in runs if attempt == 1 and (task_id, 2) in runs)
    runs[task_id, 1].end_ns = runs[task_id, 2].start_ns + 1
    assert "E" in laws(replace(left, runs=runs))


def test_an_attempt_that_ran_twice_is_seen(folder: Path, left: Evidence, tmp_path: Path) -> None:
    text = (folder / "runs.jsonl").read_text()
    again = next(line for line in text.splitlines() if '"start"' in line)
    copy = tmp_path / "runs.jsonl"
    copy.write_text(f"{text}\n{again}\n")
    runs, twice = read_runs(copy)
    assert twice == [(json.loads(again)["task"], json.loads(again)["attempt"])]
    assert "E" in laws(replace(left, runs=runs, twice_started=twice))


def test_a_run_that_began_before_its_claim_is_seen(left: Evidence) -> None:
    runs = deepcopy(left.runs)
    runs[some(left, "SUCCESS")].start_ns -= HOUR_NS
    assert "E" in laws(replace(left, runs=runs))


def test_more_runs_at_a_time_than_the_cap_are_seen(left: Evidence) -> None:
    runs = deepcopy(left.runs)
    narrow = [run for (task_id, _), run in runs.items() if left.tasks[task_id].task_type == "narrow"]
    for run in narrow:
        run.start_ns = narrow[0].start_ns
    assert "C" in laws(replace(left, runs=runs))


def test_a_cancel_that_was_promised_and_forgotten_is_seen(left: Evidence) -> None:
    ledger = deepcopy(left.ledger)
    task_id, _ = some(left, "SUCCESS", "quick")
    ledger.cancels[task_id] = [200]
    ledger.retries.pop(task_id, None)
    assert laws(replace(left, ledger=ledger)) == {"K"}


def test_a_cancel_that_was_refused_and_done_is_seen(left: Evidence) -> None:
    ledger = deepcopy(left.ledger)
    kept = (task_id for task_id in ledger.cancels if task_id not in ledger.retries)
    cancelled = next(task_id for task_id in kept if left.tasks[task_id].status == "CANCELLED")
    ledger.cancels[cancelled] = [409]
    assert laws(replace(left, ledger=ledger)) == {"K"}


def test_a_retry_that_was_promised_and_forgotten_is_seen(left: Evidence) -> None:
    ledger = deepcopy(left.ledger)
    ledger.retries[some(left, "SUCCESS")[0]] = [200]
    assert laws(replace(left, ledger=ledger)) == {"K"}


def test_an_api_that_shows_something_else_than_the_store_is_seen(left: Evidence) -> None:
    served = deepcopy(left.served)
    served[some(left, "SUCCESS")[0]]["status"] = "FAILED"
    assert laws(replace(left, served=served)) == {"V"}


def test_a_task_that_only_the_api_knows_is_seen(left: Evidence) -> None:
    assert laws(replace(left, served={**left.served, "nowhere": {}})) == {"V"}


def test_a_log_that_the_api_shows_otherwise_is_seen(left: Evidence) -> None:
    served_logs = deepcopy(left.served_logs)
    next(iter(served_logs.values())).pop()
    assert laws(replace(left, served_logs=served_logs)) == {"V"}
