"""Quart as the API uses it: views are given their request, and what nobody here needs is left out.

Quart reads a request in one task while another answers it, and surrounds the view with contexts, a session,
signals and routing. That is most of what a small request costs. So a body that has come whole is read at once,
and a view at a fixed path is called at once. Everything else goes Quart's own way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from quart import Request, Response, request
from quart.utils import encode_headers
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

from atm.api.answer import Reply
from atm.api.guard import AT_ONCE
from atm.api.inbox import Inbox

View = Callable[..., Awaitable[Reply]]
"""Called with the request, and the names in its path."""


class _Exchange(TrioASGIHTTPConnection):
    """One request and its answer. Its server cancels what it has asked for when the client leaves."""

    async def __call__(self, receive: Any, send: Any) -> None:
        body = receive.whole_body() if isinstance(receive, Inbox) else None
        if body is None:
            await super().__call__(receive, send)
            return
        request_ = self._create_request_from_scope(send)
        request_.body.set_result(body)
        await self._send_response(send, await self.app.handle_request(request_))

    async def _send_response(self, send: Any, response: Any) -> None:
        """In one piece: no answer of ours is a stream."""
        if isinstance(response, Reply):
            status, content, headers = response.status, response.content, response.all_headers()
        else:
            status, content = response.status_code, await response.get_data(as_text=False)
            headers = encode_headers(response.headers)
        extensions: dict[str, Any] = self.scope.get("extensions", {})
        at_once = extensions.get(AT_ONCE)
        if at_once is not None and self.scope["method"] != "HEAD":
            await at_once(status, headers, content)
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


async def _as_response(reply: Awaitable[Reply]) -> Response:
    """What Quart takes."""
    status, content, headers, content_type = await reply
    return Response(content, status, dict(headers), content_type=content_type)


class App(QuartTrio):
    """An application of views.

    Args:
        failure: makes the answer to what a view raises, or Quart itself.
    """

    asgi_http_class = _Exchange

    def __init__(self, name: str, failure: Callable[[Exception], Awaitable[Reply]]) -> None:
        super().__init__(name, static_folder=None)
        self._failure = failure
        self._fixed: dict[tuple[str, str], View] = {}
        self.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # its answer is not ours
        self.url_map.strict_slashes = False
        self.url_map.merge_slashes = False
        self.register_error_handler(Exception, self._failure_of_quart)

    async def _failure_of_quart(self, error: Exception) -> Response:
        return await _as_response(self._failure(error))

    def add(self, method: str, path: str, name: str, view: View) -> None:
        """Have the view answer at this path, in which ``{name}`` stands for what the view is given as ``name``."""

        async def answer(**names: str) -> Response:
            return await _as_response(view(request, **names))

        self.add_url_rule(path.replace("{", "<").replace("}", ">"), name, answer, methods=[method])
        if "{" not in path:
            self._fixed[method, path] = view

    async def handle_request(self, request: Request) -> Any:
        view = self._fixed.get((request.method, request.path))
        if view is None:
            return await super().handle_request(request)
        try:
            return await view(request)
        except Exception as error:  # noqa: BLE001 - every error is answered
            return await self._failure(error)
