"""/openapi.json and /docs: what is served, for programs and for people. Made once, at the first request.

Neither tells anything of the node but its version and whether it has keys, so that neither needs one.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import msgspec
from quart import Request

from atm.api import openapi, operations, page
from atm.api.answer import Reply
from atm.api.operations import serve
from atm.api.web import App

if TYPE_CHECKING:
    from atm.api.app import Services


def add_routes(app: App, services: Services) -> None:
    has_keys = services.has_keys

    async def machine(request: Request) -> Reply:
        return Reply(200, openapi_bytes(has_keys), {}, operations.JSON)

    async def people(request: Request) -> Reply:
        return Reply(200, page_bytes(has_keys), page.HEADERS, f"{operations.HTML}; charset=utf-8")

    serve(app, operations.OPENAPI, machine)
    serve(app, operations.DOCS, people)


@cache
def openapi_bytes(has_keys: bool) -> bytes:
    return msgspec.json.encode(openapi.document(has_keys)) + b"\n"


@cache
def page_bytes(has_keys: bool) -> bytes:
    return page.render(msgspec.json.decode(openapi_bytes(has_keys)))
