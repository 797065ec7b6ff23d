"""Clients for the tests of those who use one: no network, no waiting, the same verbs and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import anyio.lowlevel

from atm.client.fake_server import FakeServer
from atm.client.fake_tasks import Handler
from atm.client.handles import AsyncTaskHandle, TaskHandle
from atm.client.sides import Later, Now
from atm.client.verbs import Verbs
from atm.client.wire import Answer, Pause, Session, Step

RETRIES = 6
RETRY_FOR = 30.0


class FakeClient(Verbs[TaskHandle], Now):
    """Stands in for ``Client``; ``server`` is where a test says what happens.

    Args:
        handlers: by task type, what runs its tasks; see ``FakeServer``.
        server: one that several clients share, instead of one of its own.
    """

    def __init__(self, handlers: Mapping[str, Handler] | None = None, *, server: FakeServer | None = None) -> None:
        self.server = FakeServer(handlers) if server is None else server
        self._session = Session(RETRIES, RETRY_FOR, self.server.now)

    def _handle(self, task_id: str) -> TaskHandle:
        return TaskHandle(self, self._session, task_id)

    def _do(self, step: Step) -> Answer | None:
        return _done(self.server, step)

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncFakeClient(Verbs[AsyncTaskHandle], Later):
    """Stands in for ``AsyncClient``; else as ``FakeClient``."""

    def __init__(self, handlers: Mapping[str, Handler] | None = None, *, server: FakeServer | None = None) -> None:
        self.server = FakeServer(handlers) if server is None else server
        self._session = Session(RETRIES, RETRY_FOR, self.server.now)

    def _handle(self, task_id: str) -> AsyncTaskHandle:
        return AsyncTaskHandle(self, self._session, task_id)

    async def _do(self, step: Step) -> Answer | None:
        await anyio.lowlevel.checkpoint()
        return _done(self.server, step)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


def _done(server: FakeServer, step: Step) -> Answer | None:
    if isinstance(step, Pause):
        server.advance(step.seconds)
        return None
    return server.answer(step)
