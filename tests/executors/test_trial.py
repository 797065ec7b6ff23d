"""``echo`` and ``sleep``."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from atm.executor import FunctionExecutor
from atm.executors import trial
from atm.task import Status
from nursery.bench import AttemptKit

echo = FunctionExecutor(trial.echo, ("echo",))
sleep = FunctionExecutor(trial.sleep, ("sleep",))


@pytest.mark.parametrize("payload", [{}, {"hello": "world"}, {"deep": [1, {"a": None}], "ü": "字"}])
async def test_echo_gives_the_payload_back(attempts: AttemptKit, payload: dict[str, Any]) -> None:
    outcome = await attempts.outcome(echo, payload=payload)
    assert outcome.status is Status.SUCCESS
    assert json.loads(outcome.result_json or "") == payload


@pytest.mark.parametrize("seconds", [0, 0.25, 3, 100_000])
async def test_sleep_takes_as_long_as_asked(
    attempts: AttemptKit, autojump_clock: MockClock, seconds: float
) -> None:
    outcome = await attempts.outcome(sleep, payload={"seconds": seconds}, timeout=604_800.0)
    assert outcome.status is Status.SUCCESS
    assert trio.current_time() == pytest.approx(seconds)
    assert json.loads(outcome.result_json or "") == {"slept": pytest.approx(seconds)}


@pytest.mark.parametrize(
    "seconds",
    ["1", None, True, -1, [], {}, float("inf"), float("nan"), pytest.param(10**400, id="huge")],
)
async def test_sleep_refuses_what_is_no_number_of_seconds_for_good(attempts: AttemptKit, seconds: Any) -> None:
    outcome = await attempts.outcome(sleep, payload={"seconds": seconds})
    assert outcome.status is Status.FAILED
    assert outcome.retry_in is None
    assert "payload.seconds must be a number" in outcome.message


async def test_sleep_needs_to_know_how_long(attempts: AttemptKit) -> None:
    assert (await attempts.outcome(sleep, payload={})).retry_in is None


async def test_sleep_can_be_cancelled(attempts: AttemptKit, autojump_clock: MockClock) -> None:
    outcome = await attempts.outcome_when_cancelled(sleep, after=2, payload={"seconds": 100})
    assert outcome.status is Status.CANCELLED
    assert trio.current_time() == pytest.approx(2)
