"""A node goes, and another comes in its place, while clients go on: nothing is doubled, nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections import Counter

import trio
import trio.lowlevel

from async_task_manager import AsyncClient, Client
from running import FREE_PORTS, PATIENCE, free_ports, node

THREADS = 4
EACH = 60
MANY = 8_000


def fixed_port() -> tuple[str, dict[str, str]]:
    (port,) = free_ports(1)
    return f"http://127.0.0.1:{port}", {**FREE_PORTS, "ATM_SERVER__PORT": str(port)}


def test_a_node_is_killed_in_the_middle_of_creates() -> None:
    """From four threads one by one, and as pieces of many, over the kill of the node."""
    url, environ = fixed_port()
    created: list[str] = []
    many: list[str] = []
    enough = threading.Event()

    def create() -> None:
        for n in range(EACH):
            created.append(client.create_task("one_by_one", {"n": n}).task_id)
            if len(created) >= EACH:
                enough.set()

    def create_many() -> None:
        tasks = [{"task_type": "one_of_many"}] * MANY
        client.create_tasks(tasks, on_progress=lambda progress: many.extend(progress.task_ids))

    threads = [threading.Thread(target=work) for work in [create] * THREADS + [create_many]]
    with Client(url, retries=50) as client:
        with node(environ=environ) as first:
            assert first.url == url
            for thread in threads:
                thread.start()
            assert enough.wait(PATIENCE)
            first.end(signal.SIGKILL)
            assert len(created) < THREADS * EACH
        with node(environ=environ):
            for thread in threads:
                thread.join(PATIENCE)
            stored = {task.task_id: task.task_type for task in client.iter_tasks(page_size=500)}
    assert Counter(stored.values()) == {"one_by_one": THREADS * EACH, "one_of_many": MANY}
    assert Counter([*created, *many]) == Counter(stored.keys())


async def test_waiters_move_from_a_node_that_stops_to_the_next() -> None:
    url, environ = fixed_port()
    statuses: list[str] = []

    async def wait(task_id: str) -> None:
        statuses.append((await client.wait(task_id, timeout=PATIENCE)).status)

    async with AsyncClient(url, retries=50) as client, trio.open_nursery() as nursery:
        with node(environ=environ) as first:
            assert first.url == url
            handles = await client.create_tasks([{"task_type": "waits_for_ever"}] * 5)
            for handle in handles:
                nursery.start_soon(wait, handle.task_id)
            assert await trio.to_thread.run_sync(first.end) == 0
        with node(environ=environ), trio.fail_after(PATIENCE):
            for handle in handles:
                assert await handle.cancel()
            while len(statuses) < 5:
                await trio.sleep(0.01)
    assert statuses == ["CANCELLED"] * 5
