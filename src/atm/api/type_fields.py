"""The fields of a task type's settings: what is checked, and told by the OpenAPI document."""

from __future__ import annotations

from typing import Any

from atm.api import body
from atm.api.body import Rule
from atm.task import RETRY_DELAY_CAP, RetryStrategy

MAX_BODY = 64 * 1024
"""Bytes."""

MAX_CONCURRENT = 1_000_000
MAX_RATE = 100


def _strategy_reason(value: Any) -> str | None:
    return None if value in list(RetryStrategy) else f"must be one of {', '.join(RetryStrategy)}"


def _cap_reason(value: Any) -> str | None:
    return None if value is None else _CAP.reason(value)


def _enabled_reason(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


_CAP = body.integer(1, MAX_CONCURRENT)

FIELDS: dict[str, Rule] = {
    "default_timeout": body.number(0, body.MAX_TIMEOUT, above=True).told(
        "Seconds that one attempt may take, of tasks that are created without a timeout.", examples=[300]
    ),
    "default_max_retry": body.integer(0, body.MAX_RETRY).told(
        "Retries of tasks that are created without max_retry.", examples=[3]
    ),
    "retry_strategy": Rule(_strategy_reason, {"type": "string", "enum": [*map(str, RetryStrategy)]}).told(
        "FIXED: each retry after retry_delay; EXPONENTIAL: retry_delay × backoff_rateⁿ, "
        f"{RETRY_DELAY_CAP:g} s at the most.",
        examples=["FIXED"],
    ),
    "retry_delay": body.number(0, body.MAX_TIMEOUT).told("Seconds.", examples=[5]),
    "backoff_rate": body.number(1, MAX_RATE).told("By how much each delay grows.", examples=[2]),
    "max_concurrent": Rule(_cap_reason, {**_CAP.schema, "type": ["integer", "null"]}).told(
        "How many may run at a time, in the whole cluster; null for no cap.", examples=[2, None]
    ),
    "enabled": Rule(_enabled_reason, {"type": "boolean"}).told(
        "false: tasks are accepted and wait; what runs goes on.", examples=[True]
    ),
}
"""The fields of a type's settings."""
