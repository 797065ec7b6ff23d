"""The contract of executors: the base class and the result."""

from __future__ import annotations

import pytest

from atm.executor import Executor, TaskResult


async def test_an_executor_needs_no_opening_and_closing() -> None:
    executor = Executor()
    async with executor as opened:
        assert opened is executor


async def test_an_executor_without_execute_does_not_run() -> None:
    with pytest.raises(NotImplementedError):
        await Executor().execute(None, None)  # type: ignore[arg-type]


def test_a_result_is_data_or_an_error() -> None:
    result = TaskResult(success=True)
    assert (result.data, result.error) == (None, None)
    with pytest.raises(AttributeError):
        result.success = False  # type: ignore[misc]
