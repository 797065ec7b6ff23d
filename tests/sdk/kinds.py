"""Every kind of client behind one face, so that each test is written once."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from async_task_manager import AsyncClient, AsyncTaskHandle, Client, Status, Task
from async_task_manager.testing import AsyncFakeClient, FakeClient
from atm import NonRetryable
from running import PATIENCE

REAL = ("sync", "trio", "asyncio")
FAKE = ("fake", "fake-trio")

TASKS = """
from atm import NonRetryable, executes

@executes("fails")
async def fails(ctx, task):
    raise ValueError("no such file")

@executes("refuses")
async def refuses(ctx, task):
    raise NonRetryable("never")

@executes("fails_once")
async def fails_once(ctx, task):
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return {"attempt": ctx.attempt}
"""
"""What the node of the contract runs; below, the same for the fake."""


def _fails(task: Task) -> None:
    raise ValueError("no such file")


def _refuses(task: Task) -> None:
    raise NonRetryable("never")


def _fails_once(task: Task) -> dict[str, int]:
    if task.attempt == 1:
        raise ValueError("not yet")
    return {"attempt": task.attempt}


HANDLERS = {
    "echo": lambda task: task.payload,
    "fails": _fails,
    "refuses": _refuses,
    "fails_once": _fails_once,
}


class Blocking:
    """An asynchronous client, or handle, whose verbs are called in a loop of their own and waited for."""

    def __init__(self, target: Any, portal: BlockingPortal) -> None:
        self._target = target
        self._portal = portal

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name == "iter_tasks":
            return partial(self._all, value)
        if name == "handle":
            return lambda task_id: Blocking(value(task_id), self._portal)
        if inspect.iscoroutinefunction(value):
            return partial(self._call, value)
        return value

    def _call(self, verb: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found = self._portal.call(partial(verb, *args, **kwargs))
        if isinstance(found, AsyncTaskHandle):
            return Blocking(found, self._portal)
        if isinstance(found, list):
            return [Blocking(item, self._portal) if isinstance(item, AsyncTaskHandle) else item for item in found]
        return found

    def _all(self, verb: Callable[..., Any], **kwargs: Any) -> Iterator[Task]:
        async def collect() -> list[Task]:
            return [task async for task in verb(**kwargs)]

        return iter(self._portal.call(collect))


@contextlib.contextmanager
def client_of(kind: str, url: str = "", **options: Any) -> Iterator[Any]:
    """A client of this kind, sync or made so."""
    if kind in ("sync", "fake"):
        with Client(url, **options) if kind == "sync" else FakeClient(HANDLERS) as client:
            yield client
        return
    with start_blocking_portal(kind.removeprefix("fake-")) as portal:
        client = AsyncFakeClient(HANDLERS) if kind.startswith("fake") else AsyncClient(url, **options)
        with portal.wrap_async_context_manager(client):
            yield Blocking(client, portal)


def let_run(client: Any, task_id: str) -> None:
    """Return when the task, a ``sleep``, is running."""
    if is_fake(client):
        client.server.start(task_id)
        return
    deadline = time.monotonic() + PATIENCE
    while client.get_task(task_id).status is not Status.PROCESSING:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_fake(client: Any) -> bool:
    return isinstance(getattr(client, "_target", client), FakeClient | AsyncFakeClient)
