"""What a type checker makes of the SDK: checked by `nox -s types`, never run. What has to be an error is ignored,
and an ignored line without an error is one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from async_task_manager import (
    AsyncClient,
    AsyncTaskHandle,
    Client,
    Page,
    Queues,
    Task,
    TaskHandle,
    TaskLog,
    TaskTypeSettings,
)
from async_task_manager.testing import AsyncFakeClient, FakeClient


def now(client: Client, fake: FakeClient) -> None:
    handle = client.create_task("echo", {"n": 1}, priority=1, delay=0.5)
    assert_type(handle, TaskHandle)
    assert_type(handle.wait(timeout=1), Task)
    assert_type(handle.logs(), list[TaskLog])
    assert_type(handle.cancel(), bool)
    assert_type(client.create_tasks([{"task_type": "echo"}]), list[TaskHandle])
    assert_type(client.get_task("x"), Task)
    assert_type(client.list_tasks(status="FAILED"), Page)
    assert_type(client.iter_tasks(page_size=10), Iterator[Task])
    assert_type(client.list_queues(), Queues)
    assert_type(client.put_task_type("echo", max_concurrent=None), TaskTypeSettings)
    assert_type(fake.create_task("echo"), TaskHandle)
    client.create_task(priority=1)  # type: ignore[call-arg]
    client.create_task("echo", prio=1)  # type: ignore[call-arg]
    client.get_task(7)  # type: ignore[arg-type]


async def later(client: AsyncClient, fake: AsyncFakeClient) -> None:
    handle = await client.create_task("echo")
    assert_type(handle, AsyncTaskHandle)
    assert_type(await handle.wait(), Task)
    assert_type(await client.get_task("x"), Task)
    assert_type(client.iter_tasks(), AsyncIterator[Task])
    assert_type(await fake.list_tasks(), Page)
    client.get_task("x").status  # type: ignore[attr-defined]  # noqa: B018
