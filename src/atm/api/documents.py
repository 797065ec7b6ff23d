"""/openapi.json and /docs: what is served, for programs and for people. Made once, at the first request.

Neither tells anything of the node but its version and whether it has keys, so that neither needs one.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import msgspec
from quart import Request, Response

from atm.api import openapi, operations, page
from atm.api.operations import serve
from atm.api.web import App

if TYPE_CHECKING:
    from atm.api.app import Services


def add_routes(app: App, services: Services) -> None:
    has_keys = services.has_keys

    async def machine(request: Request) -> Response:
        return Response(openapi_bytes(has_keys), content_type=operations.JSON)

    async def people(request: Request) -> Response:
        return Response(
            page_bytes(has_keys), headers=page.HEADERS, content_type=f"{operations.HTML}; charset=utf-8"
        )

    serve(app, operations.OPENAPI, machine)
    serve(app, operations.DOCS, people)


@cache
def openapi_bytes(has_keys: bool) -> bytes:
    return msgspec.json.encode(openapi.document(has_keys)) + b"\n"


@cache
def page_bytes(has_keys: bool) -> bytes:
    return page.render(msgspec.json.decode(openapi_bytes(has_keys)))
