"""Cursors: opaque to callers, and only those that an answer gave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atm.api.answer import ApiError
from atm.api.query import after_cursor, cursor_of, is_task_id, page_size, wait_seconds
from atm.task import new_task_id

IDS = st.uuids().map(str)


@given(IDS)
def test_a_cursor_stands_for_its_task(task_id: str) -> None:
    cursor = cursor_of(task_id)
    assert task_id not in cursor
    assert cursor.isalnum()
    assert after_cursor(cursor) == task_id


@given(st.text(max_size=60))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        after_cursor(text)
    assert (caught.value.code, caught.value.errors[0][0]) == (42201, "cursor")


def test_the_case_of_a_cursor_counts() -> None:
    with pytest.raises(ApiError):
        after_cursor(cursor_of("abcdefab-cdef-7bcd-8fab-cdefabcdefab").upper())


def test_without_a_text_there_is_nothing_to_check() -> None:
    assert after_cursor(None) is None
    assert wait_seconds(None) is None
    assert page_size(None) == 50


def test_own_ids_are_ids() -> None:
    assert is_task_id(new_task_id())
    assert not is_task_id(new_task_id().upper())
    assert not is_task_id(new_task_id() + "\n")
