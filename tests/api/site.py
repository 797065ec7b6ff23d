"""A node in this process: real store, worker and HTTP server, in a thread with a loop of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import httpx
import trio

from atm.api.app import Services, build_app
from atm.api.guard import AsgiApp
from atm.api.server import Server, bind, metrics_app, url_of
from atm.api.waiters import Waiters
from atm.config import ApiKey
from atm.context import Context
from atm.coordinators.local import LocalCoordinator
from atm.executors import trial
from atm.health import Health
from atm.metrics import Metrics
from atm.nursery.balance import LeastTask
from atm.nursery.supervisor import Parts, supervise
from atm.nursery.worker import Worker
from atm.registry import Registry, executes
from atm.stores.sqlite import SqliteStore
from atm.task import Task

TASKS = "/api/v1/tasks"
BATCH = "/api/v1/tasks/batch"
JSON = {"Content-Type": "application/json"}

PATIENCE = 20.0
"""Seconds that a test waits for something that takes milliseconds on a machine at rest."""

T = TypeVar("T")


class Gates:
    """Executors that wait until the test lets them go, by the name in their payload's ``gate``."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self.entered: Counter[str] = Counter()
        self.inside: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def open(self, name: str) -> None:
        self._open.add(name)

    async def pass_through(self, name: str) -> None:
        self.entered[name] += 1
        self.inside[name] += 1
        self.most[name] = max(self.most[name], self.inside[name])
        try:
            while name not in self._open:
                await trio.sleep(0.005)
        finally:
            self.inside[name] -= 1


def executors(gates: Gates) -> Registry:
    """``echo`` and ``sleep`` as shipped; the others do what their names say."""

    @executes("gate", "gate_capped", "gate_renamed")
    async def gate(ctx: Context, task: Task) -> Any:
        await gates.pass_through(task.payload["gate"])
        return {"passed": True}

    @executes("stubborn")
    async def stubborn(ctx: Context, task: Task) -> None:
        with trio.CancelScope(shield=True):
            await gates.pass_through(task.payload["gate"])

    @executes("fails")
    async def fails(ctx: Context, task: Task) -> None:
        raise ValueError("as ever")

    @executes("reports")
    async def reports(ctx: Context, task: Task) -> None:
        await ctx.progress(0.25, "a quarter")
        await ctx.log("half past")
        await gates.pass_through(task.payload["gate"])

    registry = Registry()
    for executor in (trial.echo, trial.sleep, gate, stubborn, fails, reports):
        registry.register(executor)
    return registry


class Site:
    """Served while entered.

    Args:
        folder: where the store's file is.
        capacity: slots of the worker; 0: no worker.
        schedule: whether anybody hands tasks to the worker.
        cancel_patience: seconds that a cancel waits for the executor.
        hosts: further names of the server; None: it has any.
        keys: API keys that are asked for.
        wrap: goes around the application.
    """

    def __init__(
        self,
        folder: Path,
        *,
        capacity: int = 20,
        schedule: bool = True,
        cancel_patience: float = PATIENCE,
        grace: float = 0.1,
        hosts: Sequence[str] | None = (),
        keys: Sequence[ApiKey] = (),
        wrap: Callable[[AsgiApp], AsgiApp] = lambda app: app,
        host: str = "127.0.0.1",
    ) -> None:
        self.gates = Gates()
        self.health = Health()
        self.coordinator = LocalCoordinator()
        self.metrics = Metrics()
        self.path = folder / "atm.db"
        self.store = SqliteStore(self.path)
        self._sockets = [bind(host, 0, "server.port"), bind(host, 0, "metrics.port")]
        self.url, self.metrics_url = map(url_of, self._sockets)
        self.port, self.metrics_port = (int(url.rpartition(":")[2]) for url in (self.url, self.metrics_url))
        self.waiters = Waiters(self.store, self.coordinator, self.health)
        services = Services(
            self.store,
            self.coordinator,
            self.metrics,
            self.health,
            self.waiters,
            cancel_patience,
            has_keys=bool(keys),
        )
        application = build_app(services)
        self.rules = list(application.url_map.iter_rules())
        app = wrap(cast("AsgiApp", application))
        self.servers = [
            Server(app, self._sockets[0], hosts, keys),
            Server(metrics_app(self.metrics), self._sockets[1], hosts, keys),
        ]
        worker = Worker(
            self.store,
            self.coordinator,
            self.metrics,
            executors(self.gates).by_type,
            worker_id="worker-1",
            name="the worker",
            address=self.url,
            capacity=capacity,
            cleanup_budget=0.2,
        )
        self.metrics.watch(self.coordinator, "worker-1")
        self._parts = Parts(
            store=self.store,
            coordinator=self.coordinator,
            metrics=self.metrics,
            health=self.health,
            worker=worker if capacity else None,
            balance=LeastTask() if schedule else None,
            leader_id="worker-1",
            scan_interval=0.1,
            batch_size=500,
            heartbeat_interval=2.5,
            grace=grace,
            retention=None,
            listeners=[self.waiters.listen],
            servers=[*self.servers],
        )
        self._thread = threading.Thread(target=self._live, name="site")
        self._started = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.stop()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """As SIGTERM does."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._stop.set)

    def _live(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            self._error = error
        finally:
            for sock in self._sockets:
                sock.close()
            self._started.set()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(_supervised, self._parts, self._stop))
            self._started.set()

    def inside(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Call an async function on the node's loop."""
        return trio.from_thread.run(function, *args, trio_token=self._token)

    # the short ways

    def create(self, task_type: str = "echo", **fields: Any) -> str:
        answer = self.http.post(TASKS, json={"task_type": task_type, **fields})
        assert answer.status_code in (200, 201), answer.text
        return cast("str", answer.json()["data"]["task_id"])

    def get(self, task_id: str, **query: Any) -> dict[str, Any]:
        answer = self.http.get(f"{TASKS}/{task_id}", params=query)
        assert answer.status_code == 200, answer.text
        return cast("dict[str, Any]", answer.json()["data"])

    def end_of(self, task_id: str) -> dict[str, Any]:
        """The task once it is terminal."""
        task = self.get(task_id, wait=PATIENCE)
        assert task["completed_at"] is not None, task
        return task

    def running(self, name: str, task_type: str = "gate", **fields: Any) -> str:
        """A new task, once its executor waits at the gate of this name."""
        before = self.gates.entered[name]
        task_id = self.create(task_type, payload={"gate": name}, **fields)
        until(lambda: self.gates.entered[name] > before)
        return task_id

    def configure(self, task_type: str, **settings: Any) -> None:
        answer = self.http.put(f"/api/v1/task-types/{task_type}", json=settings)
        assert answer.status_code == 200, answer.text

    def is_waited_for(self, task_id: str) -> bool:
        """Whether a request waits for the task's end."""
        return task_id in self.waiters._events

    def raw(self, *parts: bytes, half_close: bool = False) -> Answer:
        """The answer to bytes that no client library would send."""
        return talk(self.port, *parts, half_close=half_close)


async def _supervised(parts: Parts, stop: trio.Event, task_status: trio.TaskStatus[None]) -> None:
    await supervise(parts, stop, task_status)


def until(condition: Callable[[], object]) -> None:
    """Look until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.005)


# what answers look like


def assert_problem(answer: httpx.Response | Answer, code: int, *fields: str) -> dict[str, Any]:
    """The answer is the error envelope with this code and errors for exactly these fields."""
    assert answer.status_code == code // 100, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = json.loads(answer.text)
    assert set(body) == {"code", "message", "request_id", "errors"}
    assert body["code"] == code, body
    assert body["message"]
    assert len(body["request_id"]) == 32
    assert [sorted(error) for error in body["errors"]] == [["field", "reason"]] * len(body["errors"])
    assert sorted(error["field"] for error in body["errors"]) == sorted(fields), body
    return cast("dict[str, Any]", body)


def assert_success(answer: httpx.Response, status: int = 200, message: str = "success") -> Any:
    """The answer is the envelope; its data."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) <= {"code", "message", "data"}
    assert (body["code"], body["message"]) == (0, message)
    return body.get("data")


# raw HTTP


class Answer:
    """What came back over a socket: the first answer taken apart, the rest, and whether it was closed."""

    def __init__(self, received: bytes, *, closed: bool) -> None:
        self.received = received
        self.closed = closed
        head, found, rest = received.partition(b"\r\n\r\n")
        assert found, f"no answer: {received!r}"
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status_code = int(status.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(self.headers.get("content-length", "0"))
        self.text = rest[:length].decode()
        self.rest = rest[length:]


def talk(port: int, *parts: bytes, half_close: bool = False) -> Answer:
    """Send the parts; receive one whole answer, and when it says so the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                sock.sendall(part)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        received, closed = bytearray(), False
        while not closed and not _is_whole(bytes(received)):
            closed = not _receive(sock, received)
        if b"connection: close" in bytes(received).lower():
            while _receive(sock, received):
                pass
            closed = True
        return Answer(bytes(received), closed=closed)


def _receive(sock: socket.socket, into: bytearray) -> bool:
    data = sock.recv(65536)
    into += data
    return bool(data)


def _is_whole(received: bytes) -> bool:
    head, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return False
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(rest) >= int(value)
    return True


def request(method: str, target: str, *headers: str, body: bytes = b"", host: str = "localhost") -> bytes:
    """A request's bytes, with a Content-Length if it has a body."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def post(body: bytes, *headers: str, target: str = TASKS) -> bytes:
    """A create's bytes."""
    return request("POST", target, "Content-Type: application/json", *headers, body=body)


@contextlib.contextmanager
def in_thread(function: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Call the function beside the test; what is given waits for its result."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()

    def result() -> T:
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    try:
        yield result
    finally:
        thread.join()
