"""/api/v1/task-types: the settings of each task type."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quart import Response
from quart_trio import QuartTrio

from atm.api import body, query, views
from atm.api.answer import invalid, success
from atm.task import RetryStrategy, TaskType

if TYPE_CHECKING:
    from atm.api.app import Services

PREFIX = "/api/v1/task-types"
MAX_BODY = 64 * 1024
MAX_CONCURRENT = 1_000_000


def _strategy_reason(value: Any) -> str | None:
    return None if value in list(RetryStrategy) else f"must be one of {', '.join(RetryStrategy)}"


def _cap_reason(value: Any) -> str | None:
    return None if value is None else body.integer(1, MAX_CONCURRENT)(value)


def _enabled_reason(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _rate_reason(value: Any) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if is_number and 1 <= value <= 100 else "must be a number from 1 to 100"


_FIELDS: dict[str, Callable[[Any], str | None]] = {
    "default_timeout": body.seconds(0, body.MAX_TIMEOUT, above=True),
    "default_max_retry": body.integer(0, body.MAX_RETRY),
    "retry_strategy": _strategy_reason,
    "retry_delay": body.seconds(0, body.MAX_TIMEOUT),
    "backoff_rate": _rate_reason,
    "max_concurrent": _cap_reason,
    "enabled": _enabled_reason,
}


def add_routes(app: QuartTrio, services: Services) -> None:
    store, coordinator = services.store, services.coordinator

    async def all_types() -> Response:
        """The configured types, and with their defaults those that a worker supports."""
        query.arguments()
        found = dict(await store.task_types())
        overview = await coordinator.overview()
        for info in overview.workers if overview else ():
            for name in info.task_types:
                found.setdefault(name, TaskType(task_type=name))
        return success([views.task_type(found[name]) for name in sorted(found)])

    async def put(task_type: str) -> Response:
        """Change what the body names; the rest of the type's settings stays as it is."""
        query.arguments()
        if reason := body.task_type_reason(task_type):
            raise invalid(("task_type", reason))
        _, fields = await body.read_json(MAX_BODY)
        problems = [
            (name, reason)
            for name, value in fields.items()
            if (reason := _FIELDS[name](value) if name in _FIELDS else "unknown field")
        ]
        if problems:
            raise invalid(*problems)
        settings = await store.change_task_type(task_type, fields)
        await coordinator.unblock(task_type, None)
        return success(views.task_type(settings))

    app.add_url_rule(PREFIX, "task_types", all_types, methods=["GET"])
    app.add_url_rule(f"{PREFIX}/<task_type>", "put_task_type", put, methods=["PUT"])
