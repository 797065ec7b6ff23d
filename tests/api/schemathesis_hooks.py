"""What schemathesis has to know beyond the OpenAPI document."""

from __future__ import annotations

from typing import Any

import schemathesis

LONGEST_WAIT = 0.01
"""Seconds: waiting for tasks that nobody runs is not what is to be tried."""


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    wait = (case.query or {}).get("wait")
    if isinstance(wait, int | float) and not isinstance(wait, bool) and LONGEST_WAIT < wait <= 300:
        case.query["wait"] = LONGEST_WAIT
    # That header and field have to be equal where both are given is said in words alone: no schema can.
    if case.headers and isinstance(case.body, dict) and "idempotency_key" in case.body:
        case.headers.pop("Idempotency-Key", None)
    return case
