"""The Quart application: routes, and one place where every error becomes the envelope."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import HTTPException

from atm.api import answer, documents, health, operations, overview, task_types, tasks
from atm.api.answer import ApiError, Reply
from atm.api.body import MAX_BATCH, MAX_TASK
from atm.api.waiters import Waiters
from atm.api.web import App
from atm.coordinator import Coordinator
from atm.errors import StoreError
from atm.health import Health
from atm.logs import Seldom
from atm.metrics import Metrics
from atm.store import Store

BODY_PATIENCE = 10
"""Seconds within which a body has to arrive."""

RETRY_AFTER = "1"
"""Seconds after which a client should try again when the store is away."""

logger = logging.getLogger("atm.api")
seldom = Seldom(logger)


@dataclass(frozen=True)
class Services:
    """What the routes work with.

    ``cancel_patience``: seconds that a cancel waits for the executor to end; ``has_keys``: whether requests need
    an API key, for the documents to say so.
    """

    store: Store
    coordinator: Coordinator
    metrics: Metrics
    health: Health
    waiters: Waiters
    cancel_patience: float
    has_keys: bool = False


class _Request(TrioRequest):
    """Keeps no more of a body than its route may want; those that want none are sent bodies as well."""

    def __init__(self, method: str, scheme: str, path: str, *rest: Any, **options: Any) -> None:
        options["max_content_length"] = MAX_BATCH if path.rstrip("/") == operations.CREATE_TASKS.path else MAX_TASK
        super().__init__(method, scheme, path, *rest, **options)


def build_app(services: Services) -> App:
    """The application, to be served by ``atm.api.server``."""
    app = App("atm", _failure)
    app.request_class = _Request
    app.config["BODY_TIMEOUT"] = BODY_PATIENCE
    for resource in (tasks, overview, task_types, health, documents):
        resource.add_routes(app, services)
    return app


async def _failure(error: Exception) -> Reply:
    if isinstance(error, ApiError):
        return answer.failure(error)
    if isinstance(error, StoreError):
        return _store_away(error)
    if isinstance(error, HTTPException):
        return _http_error(error)
    return _bug(error)


def _store_away(error: StoreError) -> Reply:
    seldom.error(f"request refused: {error}")
    headers = {"Retry-After": RETRY_AFTER}
    return answer.failure(ApiError(answer.STORE_AWAY, "the store is unavailable; try again", headers=headers))


_HTTP_CODES = {
    400: answer.BAD_REQUEST,
    404: answer.NO_ROUTE,
    405: answer.BAD_METHOD,
    408: answer.BODY_TIMEOUT,
    413: answer.TOO_LARGE,
}


def _http_error(error: HTTPException) -> Reply:
    status = error.code or 500
    headers = {name: value for name, value in error.get_headers() if name == "Allow"}
    code = _HTTP_CODES.get(status, status * 100)
    return answer.failure(ApiError(code, HTTPStatus(status).phrase.lower(), headers=headers))


def _bug(error: Exception) -> Reply:
    incident = uuid.uuid4().hex
    logger.exception("request failed", exc_info=error, extra={"incident": incident})
    return answer.failure(ApiError(answer.INTERNAL, f"internal error {incident}; the log has more"))
