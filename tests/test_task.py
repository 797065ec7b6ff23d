"""Words and rules of a task: retry delays, legal paths, ids."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atm import task as task_module
from atm.task import (
    LEGAL,
    QUEUES,
    REOPENABLE,
    RETRY_DELAY_CAP,
    RETRY_JITTER,
    TERMINAL,
    RetryStrategy,
    Status,
    Task,
    TaskType,
    legal_path,
    new_task_id,
)

# retry delays


def _delays(retries: int, **settings: Any) -> list[float]:
    """The delays asked for, jitter put aside."""
    kind = TaskType(task_type="echo", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "random", lambda: 0.0)
        return [kind.delay(number) for number in range(retries)]


def test_an_unconfigured_type_waits_twice_as_long_each_time_up_to_the_cap() -> None:
    delays = _delays(12)
    assert delays[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert delays[9:] == [RETRY_DELAY_CAP] * 3


def test_a_fixed_delay_does_not_grow() -> None:
    delays = _delays(4, retry_strategy=RetryStrategy.FIXED, retry_delay=7.5, backoff_rate=100)
    assert delays == [7.5] * 4


def test_an_exponential_delay_grows_by_its_rate() -> None:
    assert _delays(4, retry_delay=2.0, backoff_rate=3.0) == [2, 6, 18, 54]


def test_a_rate_of_one_does_not_grow() -> None:
    assert _delays(100, retry_delay=2.0, backoff_rate=1.0) == [2.0] * 100


def test_a_delay_beyond_the_cap_is_kept_as_asked() -> None:
    assert _delays(3, retry_delay=1000.0) == [1000.0] * 3
    assert _delays(3, retry_delay=1000.0, retry_strategy=RetryStrategy.FIXED) == [1000.0] * 3


def test_no_delay_stays_no_delay() -> None:
    assert _delays(100, retry_delay=0.0) == [0.0] * 100


@given(
    retry_count=st.integers(0, 10**9),
    retry_delay=st.floats(0, 604_800),
    backoff_rate=st.floats(1, 100),
    strategy=st.sampled_from(RetryStrategy),
)
def test_jitter_only_makes_it_later_and_no_number_overflows(
    retry_count: int, retry_delay: float, backoff_rate: float, strategy: RetryStrategy
) -> None:
    kind = TaskType(task_type="echo", retry_strategy=strategy, retry_delay=retry_delay, backoff_rate=backoff_rate)
    delay = kind.delay(retry_count)
    assert retry_delay <= delay <= max(RETRY_DELAY_CAP, retry_delay) * (1 + RETRY_JITTER)


def test_jitter_spreads_the_retries() -> None:
    kind = TaskType(task_type="echo", retry_delay=10.0)
    assert len({kind.delay(0) for _ in range(20)}) > 1


# legal paths

STEPS = [
    (None, "PENDING"),
    ("PENDING", "PROCESSING"),
    ("PROCESSING", "FAILED"),
    ("FAILED", "PENDING"),
    ("PENDING", "PROCESSING"),
    ("PROCESSING", "PENDING"),
    ("PENDING", "CANCELLED"),
    ("CANCELLED", "PENDING"),
    ("PENDING", "PROCESSING"),
    ("PROCESSING", "SUCCESS"),
]


def test_a_long_life_is_a_legal_path() -> None:
    assert legal_path(STEPS) is Status.SUCCESS


def test_every_beginning_of_a_legal_path_is_one() -> None:
    for end in range(1, len(STEPS) + 1):
        assert legal_path(STEPS[:end]) == STEPS[end - 1][1]


def test_no_steps_end_nowhere() -> None:
    assert legal_path([]) is None
    assert legal_path([(None, None)]) is None


def test_rows_without_states_are_passed_over() -> None:
    steps = [row for step in STEPS for row in ((None, None), step, (None, None))]
    assert legal_path(steps) is Status.SUCCESS


def test_a_path_with_any_step_left_out_is_not_legal() -> None:
    for gap in range(len(STEPS) - 1):
        with pytest.raises(ValueError, match="illegal step"):
            legal_path(STEPS[:gap] + STEPS[gap + 1 :])


ILLEGAL = [(one, other) for one, other in itertools.product([None, *Status], Status) if other not in LEGAL[one]]


@pytest.mark.parametrize(("source", "target"), ILLEGAL)
def test_a_step_that_is_not_drawn_is_not_legal(source: Status | None, target: Status) -> None:
    way = {None: [], Status.PENDING: STEPS[:1], Status.PROCESSING: STEPS[:2]}
    steps = way.get(source) or [*STEPS[:2], ("PROCESSING", source)]
    if source is not None:
        assert legal_path(steps) is source
    else:
        steps = []
    with pytest.raises(ValueError, match="illegal step"):
        legal_path([*steps, (source, target)])


@pytest.mark.parametrize("step", [(None, "UNKNOWN"), ("PENDING", None), ("UNKNOWN", "PENDING")])
def test_a_step_of_no_meaning_is_not_legal(step: tuple[str | None, str | None]) -> None:
    with pytest.raises(ValueError, match=r"UNKNOWN|illegal step"):
        legal_path([step])
    with pytest.raises(ValueError, match=r"UNKNOWN|illegal step"):
        legal_path([(None, "PENDING"), step])


def test_the_ends_are_those_from_which_only_a_user_leads_back() -> None:
    assert {status for status in Status if LEGAL[status] <= {Status.PENDING}} == TERMINAL
    assert {status for status in TERMINAL if LEGAL[status]} == REOPENABLE


def test_queues_are_named_in_the_order_of_service() -> None:
    assert list(QUEUES) == [1, 0, -1]
    assert list(QUEUES.values()) == ["high", "normal", "low"]


# ids


def test_ids_are_uuids_of_version_7() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(new_task_id())
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 >= before
    text = str(made)
    assert text == text.lower()


def test_ids_sort_in_the_order_they_were_made() -> None:
    ids = [new_task_id() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time ids are made at, in milliseconds; to be set by the test. What others made before is forgotten."""
    now = [1_700_000_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: now[0] * 1_000_000 + 999_999)
    monkeypatch.setattr(task_module, "_last_id_ms", 0)
    monkeypatch.setattr(task_module, "_last_id_counter", 0)
    return now


def _parts(text: str) -> tuple[int, int]:
    """The time and the counter in an id."""
    number = uuid.UUID(text).int
    return number >> 80, number >> 64 & 0xFFF


def test_an_id_shows_its_time_and_its_place_in_the_millisecond(clock: list[int]) -> None:
    parts = [_parts(new_task_id()) for _ in range(3)]
    clock[0] += 1
    parts.append(_parts(new_task_id()))
    start = clock[0] - 1
    assert parts == [(start, 0), (start, 1), (start, 2), (start + 1, 0)]


def test_more_than_a_millisecond_holds_run_over_into_the_next(clock: list[int]) -> None:
    ids = [new_task_id() for _ in range(4096 + 10)]
    assert ids == sorted(ids)
    assert {uuid.UUID(text).version for text in ids} == {7}
    assert _parts(ids[4095]) == (clock[0], 4095)
    assert _parts(ids[4096]) == (clock[0] + 1, 0)


def test_ids_sort_though_the_clock_goes_back(clock: list[int]) -> None:
    ids = []
    for change in (0, 5, -3000, 1, 0, 2999, 10):
        clock[0] += change
        ids += [new_task_id() for _ in range(3)]
    assert ids == sorted(ids)


def test_ids_made_at_one_moment_by_two_processes_differ(clock: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_task_id()
    monkeypatch.setattr(task_module, "_last_id_ms", 0)
    second = new_task_id()
    assert _parts(first) == _parts(second)
    assert first != second


# the task itself


def _task(**fields: Any) -> Task:
    known: dict[str, Any] = dict.fromkeys(Task.__struct_fields__)
    known |= {"status": Status.PENDING, "payload_json": '{"a":1.50}', "created_ms": 1_500}
    return Task(**(known | fields))


def test_the_payload_is_decoded_anew_each_time() -> None:
    made = _task()
    made.payload["b"] = 2
    assert made.payload == {"a": 1.5} == json.loads(made.payload_json)


def test_times_are_shown_in_utc() -> None:
    made = _task(scheduled_ms=2_001)
    assert made.created_at == datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)
    assert made.scheduled_at == datetime(1970, 1, 1, 0, 0, 2, 1_000, UTC)
    assert _task().scheduled_at is None


@pytest.mark.parametrize("status", list(Status))
def test_a_task_is_over_in_its_terminal_states(status: Status) -> None:
    assert _task(status=status).is_terminal is (status in TERMINAL)


def test_a_delay_that_is_asked_for_is_the_least() -> None:
    kind = TaskType(task_type="x", retry_delay=10.0)
    assert 30.0 <= kind.delay(0, 30.0) <= 33.0
    assert 40.0 <= kind.delay(2, 30.0) <= 44.0
    assert 3600.0 <= kind.delay(0, math.inf) <= 3960.0
