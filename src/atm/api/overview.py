"""/api/v1/workers and /api/v1/queues: who works, what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Response
from quart_trio import QuartTrio

from atm.api import query, views
from atm.api.answer import success

if TYPE_CHECKING:
    from atm.api.app import Services


def add_routes(app: QuartTrio, services: Services) -> None:
    coordinator = services.coordinator

    async def workers() -> Response:
        query.arguments()
        return success([views.worker(info) for info in coordinator.workers()])

    async def queues() -> Response:
        query.arguments()
        data = [
            {
                "name": queue.name,
                "length": queue.length,
                "parked": queue.parked,
                "oldest_age": round(queue.oldest_age, 3),
            }
            for queue in coordinator.queues()
        ]
        return success({"queues": data, "delayed": coordinator.delayed()})

    app.add_url_rule("/api/v1/workers", "workers", workers, methods=["GET"])
    app.add_url_rule("/api/v1/queues", "queues", queues, methods=["GET"])
