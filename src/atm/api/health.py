"""/livez and /readyz: alive is who answers; ready is who should get requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Request

from atm.api import operations
from atm.api.answer import NOT_READY, ApiError, Reply, success
from atm.api.operations import serve
from atm.api.web import App
from atm.errors import StoreUnavailable

if TYPE_CHECKING:
    from atm.api.app import Services


def add_routes(app: App, services: Services) -> None:
    health, store = services.health, services.store

    async def livez(request: Request) -> Reply:
        return success({"status": "alive"})

    async def readyz(request: Request) -> Reply:
        if health.draining or not health.started:
            raise ApiError(NOT_READY, "draining" if health.draining else "starting")
        try:
            await store.ping()
        except StoreUnavailable as error:
            raise ApiError(NOT_READY, str(error)) from None
        return success({"status": "ready"})

    serve(app, operations.LIVEZ, livez)
    serve(app, operations.READYZ, readyz)
