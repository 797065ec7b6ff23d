"""/api/v1/task-types: the settings of each task type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Request

from atm.api import body, operations, query, type_fields, views
from atm.api.answer import Reply, invalid, success
from atm.api.operations import serve
from atm.api.web import App
from atm.task import TaskType

if TYPE_CHECKING:
    from atm.api.app import Services


def add_routes(app: App, services: Services) -> None:
    store, coordinator = services.store, services.coordinator

    async def all_types(request: Request) -> Reply:
        """The configured types, and with their defaults those that a worker supports."""
        query.arguments(request)
        found = dict(await store.task_types())
        overview = await coordinator.overview()
        for info in overview.workers if overview else ():
            for name in info.task_types:
                found.setdefault(name, TaskType(task_type=name))
        return success([views.task_type(found[name]) for name in sorted(found)])

    async def put(request: Request, task_type: str) -> Reply:
        """Change what the body names; the rest of the type's settings stays as it is."""
        query.arguments(request)
        if reason := body.task_type_reason(task_type):
            raise invalid(("task_type", reason))
        _, fields = await body.read_json(request, type_fields.MAX_BODY)
        problems = [
            (name, reason)
            for name, value in fields.items()
            if (
                reason := type_fields.FIELDS[name].reason(value) if name in type_fields.FIELDS else "unknown field"
            )
        ]
        if problems:
            raise invalid(*problems)
        settings = await store.change_task_type(task_type, fields)
        await coordinator.unblock(task_type, None)
        return success(views.task_type(settings))

    serve(app, operations.LIST_TASK_TYPES, all_types)
    serve(app, operations.PUT_TASK_TYPE, put)
