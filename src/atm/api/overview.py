"""/api/v1/workers and /api/v1/queues: who works, what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Request

from atm.api import operations, query, views
from atm.api.answer import COORDINATOR_AWAY, ApiError, Reply, success
from atm.api.operations import serve
from atm.api.web import App
from atm.coordinator import Overview

if TYPE_CHECKING:
    from atm.api.app import Services


RETRY_LATER = {"Retry-After": "1"}


def add_routes(app: App, services: Services) -> None:
    coordinator = services.coordinator

    async def _look() -> Overview:
        overview = await coordinator.overview()
        if overview is None:
            raise ApiError(COORDINATOR_AWAY, "the coordinator is unavailable; try again", headers=RETRY_LATER)
        return overview

    async def workers(request: Request) -> Reply:
        query.arguments(request)
        return success([views.worker(info) for info in (await _look()).workers])

    async def queues(request: Request) -> Reply:
        query.arguments(request)
        return success(views.queues(await _look()))

    serve(app, operations.LIST_WORKERS, workers)
    serve(app, operations.LIST_QUEUES, queues)
