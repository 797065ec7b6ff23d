"""How times look: RFC 3339, UTC, milliseconds, ending in Z; exact in every year."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atm.api.body import milliseconds
from atm.api.views import raw, when

FIRST = -62_135_596_800_000
LAST = 253_402_300_799_999


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_769_853_600_001, "2026-01-31T10:00:00.001Z"),
        (FIRST, "0001-01-01T00:00:00.000Z"),
        (LAST, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_shown_in_utc(ms: int | None, shown: str | None) -> None:
    assert when(ms) == shown


@given(st.integers(FIRST, LAST))
def test_what_is_shown_is_read_as_the_same_moment(ms: int) -> None:
    shown = when(ms)
    assert shown is not None
    assert milliseconds(shown) == ms


@given(st.datetimes(timezones=st.just(UTC)))
def test_parts_of_a_millisecond_are_dropped(moment: datetime) -> None:
    ms = milliseconds(moment.isoformat(timespec="microseconds"))
    assert ms is not None
    assert FIRST <= ms <= LAST
    shown = when(ms)
    assert shown is not None
    assert datetime.fromisoformat(shown) == moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def test_nothing_stored_is_null() -> None:
    assert raw(None) is None
    assert bytes(raw('{"é":1.0}') or b"") == '{"é":1.0}'.encode()
