"""What only the fake can do: say what happens, and let time pass."""

from __future__ import annotations

import threading
import time

import pytest

from async_task_manager import (
    ConnectionFailed,
    NotFound,
    ServerUnavailable,
    Status,
    Task,
    TaskFailed,
    TaskTimedOut,
    WaitTimeout,
)
from async_task_manager.testing import AsyncFakeClient, FakeClient, FakeServer
from atm import RetryLater


def test_a_test_says_how_a_task_ends() -> None:
    client = FakeClient()
    good, bad, slow = (client.create_task("work", {"n": n}) for n in range(3))
    client.server.start(good.task_id, "worker-7")
    client.server.progress(good.task_id, 0.5, "half")
    task = good.get()
    assert (task.status, task.worker_id) == (Status.PROCESSING, "worker-7")
    assert task.progress is not None
    assert (task.progress.fraction, task.progress.message) == (0.5, "half")
    client.server.succeed(good.task_id, {"sent": True})
    client.server.fail(bad.task_id, "no such host", "DNSError")
    client.server.time_out(slow.task_id)
    assert good.result() == {"sent": True}
    with pytest.raises(TaskFailed, match="DNSError: no such host"):
        bad.result()
    with pytest.raises(TaskTimedOut):
        slow.result()
    assert [task.payload["n"] for task in client.server.tasks] == [0, 1, 2]


def test_an_hour_passes_at_once() -> None:
    client = FakeClient({"echo": lambda task: task.payload})
    began = time.monotonic()
    handle = client.create_task("echo", delay=3600)
    with pytest.raises(WaitTimeout):
        handle.wait(timeout=3599)
    task = handle.wait(timeout=2)
    assert task.completed_at is not None
    assert (task.completed_at - task.created_at).total_seconds() == pytest.approx(3600, abs=0.01)
    later = client.create_task("echo", delay=86400)
    client.server.advance(86400)
    assert later.get().status is Status.SUCCESS
    assert time.monotonic() - began < 60


def test_retries_of_a_handler_take_their_time() -> None:
    calls: list[int] = []

    def flaky(task: object) -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("busy")
        return "done"

    client = FakeClient({"flaky": flaky})
    task = client.create_task("flaky").wait()
    assert (task.result, task.retry_count, task.attempt) == ("done", 2, 3)
    assert task.completed_at is not None
    assert 3 <= (task.completed_at - task.created_at).total_seconds() <= 3.4


def test_a_handler_may_ask_for_a_later_retry() -> None:
    def busy(task: Task) -> str:
        if task.attempt == 1:
            raise RetryLater("busy", after=600)
        return "done"

    task = FakeClient({"busy": busy}).create_task("busy").wait()
    assert task.completed_at is not None
    assert (task.completed_at - task.created_at).total_seconds() == pytest.approx(600, abs=0.01)


def test_an_outage_is_overcome_or_told() -> None:
    client = FakeClient({"echo": lambda task: task.payload})
    client.server.refuse(ServerUnavailable("away", 503), times=3)
    assert client.create_task("echo", {"n": 1}).result() == {"n": 1}
    client.server.refuse(ConnectionFailed("gone"), times=100)
    with pytest.raises(ConnectionFailed):
        client.create_task("echo")
    assert len(client.server.tasks) == 1


def test_a_wait_for_what_never_comes_ends_with_a_hint() -> None:
    client = FakeClient()
    with pytest.raises(AssertionError, match="give nobody a handler, or end it"):
        client.create_task("nobody").wait()


def test_what_cannot_happen_is_not_pretended() -> None:
    client = FakeClient()
    handle = client.create_task("work")
    client.server.succeed(handle.task_id)
    with pytest.raises(AssertionError, match="SUCCESS"):
        client.server.fail(handle.task_id)
    with pytest.raises(AssertionError, match="there is no task x"):
        client.server.succeed("x")


async def test_both_sides_may_share_a_server() -> None:
    server = FakeServer({"echo": lambda task: task.payload})
    async with AsyncFakeClient(server=server) as client:
        handle = await client.create_task("echo", {"n": 1})
        assert await handle.result() == {"n": 1}
    with FakeClient(server=server) as other:
        assert other.get_task(handle.task_id).result == {"n": 1}
        with pytest.raises(NotFound):
            other.get_task("x")


def test_a_handler_may_create_tasks() -> None:
    client = FakeClient()
    client.server.handlers["child"] = lambda task: task.payload["n"] * 2
    client.server.handlers["parent"] = lambda task: client.create_task("child", {"n": 21}).result()
    assert client.create_task("parent").result() == 42


def test_threads_may_share_a_fake() -> None:
    client = FakeClient({"echo": lambda task: task.payload})
    threads = [threading.Thread(target=lambda: client.create_task("echo").wait()) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {task.status for task in client.server.tasks} == {Status.SUCCESS}
