"""What is judged of a cluster beside checker.py: whom a task may be taken from, and what is then not held against
a run."""

from __future__ import annotations

import json

from . import cluster
from .evidence import LogRow, RunLines, Stored, read_tables
from .seat import SeatLife

MS = 1_000_000


def recovered(at_ms: int, message: str = "Recovered: its worker was lost") -> dict[str, list[LogRow]]:
    """The log of a task that was claimed at 100 ms and taken from its worker."""
    return {
        "t": [
            LogRow("STATE_CHANGE", None, "PENDING", "Task created", None, 50),
            LogRow("STATE_CHANGE", "PENDING", "PROCESSING", "Task assigned to worker", 1, 100),
            LogRow("STATE_CHANGE", "PROCESSING", "PENDING", message, 1, at_ms),
        ]
    }


def runs(start_ms: int, end_ms: int | None) -> dict[tuple[str, int], RunLines]:
    return {("t", 1): RunLines(1, start_ms * MS, None if end_ms is None else end_ms * MS)}


def ends(life: SeatLife, logs: dict[str, list[LogRow]], end_ms: int | None) -> list[int | None]:
    """The ends, in milliseconds, of the runs that are left to be judged."""
    left = runs(110, end_ms)
    cluster._end_with_recovery(logs, left, [life])
    return [None if run.end_ns is None else run.end_ns // MS for run in left.values()]


def test_a_paused_run_is_judged_up_to_its_recovery() -> None:
    paused = SeatLife(1, paused=True)
    assert ends(paused, recovered(900), 2000) == [900]
    assert ends(paused, recovered(900), None) == [900]
    assert ends(paused, recovered(900), 500) == [500]


def test_a_run_that_began_after_its_recovery_is_not_judged() -> None:
    assert ends(SeatLife(1, paused=True), recovered(105), 2000) == []


def test_a_run_that_was_not_paused_is_judged_to_its_end() -> None:
    assert ends(SeatLife(1), recovered(900), 2000) == [2000]


def test_a_run_that_was_not_recovered_is_judged_to_its_end() -> None:
    released = recovered(900, "Released by its worker: its lease was lost")
    assert ends(SeatLife(1, paused=True), released, 2000) == [2000]


def test_a_task_may_be_taken_from_the_dead_and_the_paused_only() -> None:
    def robbed(life: SeatLife) -> list[str]:
        return [v.law for v in cluster._healthy_are_not_robbed(recovered(900), runs(110, 2000), [life])]

    assert robbed(SeatLife(1)) == ["W"]
    assert robbed(SeatLife(1, died_ns=901 * MS)) == ["W"]
    assert robbed(SeatLife(1, died_ns=899 * MS)) == []
    assert robbed(SeatLife(1, paused=True)) == []


def test_rows_of_the_tables_are_read_as_they_are() -> None:
    payload, result = {"text": "a\tb\n\\ 任务"}, ["NULL", None]

    def sql(statement: str) -> str:
        if "task_logs" in statement:
            return "t\tSTATE_CHANGE\tNULL\tPENDING\t610962\tNULL\t5\nt\tINFO\tNULL\tNULL\t\t1\t6\n"
        cells = [json.dumps(value, ensure_ascii=False).encode().hex() for value in (payload, result)]
        return "\t".join(["t", "quick", "SUCCESS", *cells, "1", "2", "3", "4", "5"]) + "\n"

    tasks, logs = read_tables(sql)
    assert tasks == {"t": Stored("t", "quick", "SUCCESS", payload, result, 1, 2, 3, 4, 5)}
    assert logs == {
        "t": [
            LogRow("STATE_CHANGE", None, "PENDING", "a\tb", None, 5),
            LogRow("INFO", None, None, "", 1, 6),
        ]
    }
