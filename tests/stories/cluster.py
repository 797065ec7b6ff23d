"""Many nodes, as an operator starts them: processes in folders of their own, over one MariaDB and one Redis.

    with Cluster(mariadb) as cluster:
        one, two = cluster.start("one", "two")
        task_id = one.create("quick")
        assert two.task(task_id, wait=10)["status"] == "SUCCESS"

All of it ends with the block. The nodes' environment holds nothing of ours but what is said here, so that clusters
may live side by side.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from atm.task import legal_path
from keeper import keeper
from running import ATM, free_ports
from servers import Databases, RedisServer

PATIENCE = 30.0
"""Seconds that a test waits for what has to come."""

LEASE = 10.0
OVERTIME = 5.0
"""Seconds: a worker's lease, and how long the others wait beyond it."""

TASKS = Path(__file__).with_name("cluster_tasks.py")

T = TypeVar("T")


def until(happened: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """What ``happened`` gives, once that is something."""
    deadline = time.monotonic() + patience
    while not (found := happened()):
        assert time.monotonic() < deadline, f"{what}: not within {patience} s"
        time.sleep(0.02)
    return found


class Node:
    """One node. Started again it keeps its folder, its ports and its ``worker.id``, which is its name."""

    def __init__(self, name: str, folder: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.folder = folder
        port, metrics_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ATM_")},
            "ATM_WORKER__ID": name,
            "ATM_EXECUTORS": TASKS.stem,
            "ATM_SERVER__PORT": str(port),
            "ATM_METRICS__PORT": str(metrics_port),
            **environ,
        }
        self.out = folder / "stdout.txt"
        self.err = folder / "stderr.txt"
        self._process: subprocess.Popen[bytes] | None = None
        # A connection a request: none is left over from before a restart.
        self._client = httpx.Client(timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0))
        folder.mkdir()
        shutil.copy(TASKS, folder)

    # The process

    def start(self) -> Self:
        """Returns at once; see ``ready``."""
        assert not self.running
        with self.out.open("w") as out, self.err.open("w") as err:
            self._process = keeper.start(ATM, cwd=self.folder, env=self.environ, stdout=out, stderr=err)
        return self

    def ready(self) -> Self:
        until(lambda: "is ready" in self.out.read_text() or not self.running, f"{self.name} is ready")
        assert self.running, f"{self.name} ended: {self.err.read_text()}"
        return self

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self.ended()

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def ended(self, patience: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        code = self._process.wait(patience)
        keeper.ended(self._process)
        return code

    def close(self) -> None:
        if self.running:
            self.kill()
        self._client.close()

    # What it is asked

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._client.request(method, f"{self.url}{path}", **options)

    def data(self, path: str) -> Any:
        answer = self.request("GET", f"/api/v1{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def create(self, task_type: str, **fields: Any) -> str:
        answer = self.request("POST", "/api/v1/tasks", json={"task_type": task_type, **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["data"]["task_id"])

    def task(self, task_id: str, wait: float = 0) -> dict[str, Any]:
        return dict(self.data(f"/tasks/{task_id}?wait={wait:.1f}"))

    def wait_for(self, task_id: str, status: str, patience: float = PATIENCE) -> dict[str, Any]:
        """The task, once it has this status."""
        until(lambda: self.task(task_id)["status"] == status, f"{task_id} is {status}", patience)
        return self.task(task_id)

    def cancel(self, task_id: str) -> httpx.Response:
        return self.request("POST", f"/api/v1/tasks/{task_id}/cancel")

    def logs(self, task_id: str) -> list[dict[str, Any]]:
        return list(self.data(f"/tasks/{task_id}/logs"))

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        answer = self._client.get(self.metrics_url)
        assert answer.status_code == 200, answer.text
        families = text_string_to_metric_families(answer.text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    @property
    def is_ready(self) -> bool:
        """What a load balancer asks."""
        try:
            return self.request("GET", "/readyz").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def complaints(self) -> list[str]:
        """What it wrote to standard error since it was started, but for log lines of less than errors."""
        harmless = ('"level": "debug"', '"level": "info"', '"level": "warning"')
        lines = self.err.read_text().splitlines()
        return [line for line in lines if not (line.startswith("{") and any(word in line for word in harmless))]

    @property
    def log(self) -> str:
        """What it has written to its log since its first start."""
        file = self.folder / "logs" / "worker.log"
        return file.read_text() if file.exists() else ""


class Cluster:
    """Nodes over a database and a Redis of their own.

    Args:
        mariadb: the server that the database is made in.
        redis: taken instead of a new one.
        environ: settings of all nodes.
    """

    def __init__(
        self, mariadb: Databases, redis: RedisServer | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self.mariadb = mariadb
        self.redis = redis or RedisServer()
        self.folder = keeper.folder()
        self.nodes: dict[str, Node] = {}
        self.database = mariadb.create_database()
        self._environ = environ or {}
        self._stack = contextlib.ExitStack()

    def node(self, name: str, environ: Mapping[str, str] | None = None, *, roles: str | None = None) -> Node:
        """A node that is not started yet.

        Args:
            environ: settings of its own.
            roles: those that are on, of ``api scheduler worker``; None: all.
        """
        wanted = "api scheduler worker" if roles is None else roles
        switches = {
            f"ATM_{'SERVER' if role == 'api' else role.upper()}__ENABLED": str(role in wanted.split()).lower()
            for role in ("api", "scheduler", "worker")
        }
        servers = {**self.mariadb.environ(self.database), **self.redis.environ()}
        made = Node(name, self.folder / name, {**servers, **switches, **self._environ, **(environ or {})})
        self.nodes[name] = made
        return made

    def start(self, *names: str, environ: Mapping[str, str] | None = None, roles: str | None = None) -> list[Node]:
        """Nodes that are ready."""
        nodes = [self.node(name, environ, roles=roles).start() for name in names]
        return [node.ready() for node in nodes]

    def runs(self) -> Counter[str]:
        """How often the work of each task was begun, of the types ``quick`` and ``nap``."""
        files = [node.folder / "runs.txt" for node in self.nodes.values()]
        return Counter(line for file in files if file.exists() for line in file.read_text().splitlines())

    def leader(self) -> Node | None:
        """Who leads, as `redis-cli GET scheduler:leader` tells it."""
        holder = self.redis.call("GET", "scheduler:leader")
        return self.nodes[holder.partition(":")[0]] if holder else None

    def wait_for_leader(self, *, other_than: Node | None = None) -> Node:
        def found() -> Node | None:
            leader = self.leader()
            return None if leader is other_than else leader

        leader = until(found, "somebody leads")
        assert leader is not None
        return leader

    @contextlib.contextmanager
    def load(self, *nodes: Node, task_type: str = "quick", rate: float = 40, **fields: Any) -> Iterator[Load]:
        """Somebody creates tasks at these nodes, one after the other, as long as the block lasts."""
        load = Load(nodes, {"task_type": task_type, **fields}, 1 / rate)
        with load:
            yield load

    def __enter__(self) -> Self:
        self._stack.callback(keeper.remove, self.folder)
        self._stack.callback(self.mariadb.drop_database, self.database)
        if not self.redis.running:
            self._stack.enter_context(self.redis)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            node.close()
        if error is not None:
            error.add_note(self.told())
        self._stack.close()

    def told(self) -> str:
        """The ends of the nodes' logs, for whoever reads why a test failed."""
        parts = []
        for node in self.nodes.values():
            lines = node.log.splitlines()[-15:]
            if node.err.exists():
                lines += node.err.read_text().splitlines()[-15:]
            parts.append("\n  ".join([f"{node.name} wrote:", *lines]))
        return "\n".join(parts)


class Load:
    """A client that creates tasks; when a node does not answer it asks the next, with the same idempotency key.

    Attributes:
        acknowledged: the ids of the tasks that were created.
        put_off: answers 503, each with the value of its Retry-After.
        unanswered: requests that got no answer: the connection was refused or broke.
        unexpected: answers that no client should see.
    """

    def __init__(self, nodes: Sequence[Node], fields: Mapping[str, Any], interval: float) -> None:
        self._nodes = itertools.cycle(nodes)
        self._fields = fields
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._create_tasks)
        self.acknowledged: list[str] = []
        self.put_off: list[str | None] = []
        self.unanswered: list[httpx.TransportError] = []
        self.unexpected: list[str] = []

    def wait_for_more(self, count: int = 20) -> None:
        """Returns when so many more tasks have been acknowledged."""
        wanted = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= wanted, f"{count} more creates are acknowledged")

    def _create_tasks(self) -> None:
        # A client a node: a broken connection is that node's alone.
        with contextlib.ExitStack() as stack:
            clients: dict[str, httpx.Client] = {}
            for number in itertools.count():
                body = {**self._fields, "idempotency_key": f"load-{number}"}
                while not self._over.wait(self._interval):
                    url = next(self._nodes).url
                    if url not in clients:
                        clients[url] = stack.enter_context(httpx.Client(base_url=url, timeout=PATIENCE))
                    if self._create(clients[url], body):
                        break
                else:
                    return

    def _create(self, client: httpx.Client, body: Mapping[str, Any]) -> bool:
        try:
            answer = client.post("/api/v1/tasks", json=body)
        except httpx.TransportError as error:
            self.unanswered.append(error)
            return False
        if answer.status_code in (200, 201):
            self.acknowledged.append(answer.json()["data"]["task_id"])
            return True
        if answer.status_code == 503:
            self.put_off.append(answer.headers.get("Retry-After"))
        else:
            self.unexpected.append(f"{answer.status_code} {answer.text}")
        return False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


def all_succeed(node: Node, task_ids: Iterable[str], patience: float = PATIENCE) -> list[dict[str, Any]]:
    """The tasks, once each has been carried out; what their logs tell is legal and leads there."""
    wanted = set(task_ids)
    tasks: list[dict[str, Any]] = []

    def ended() -> bool:
        tasks[:] = [task for task in everything(node) if task["task_id"] in wanted]
        assert len(tasks) == len(wanted), f"{len(wanted) - len(tasks)} acknowledged tasks are lost"
        return all(task["status"] not in ("PENDING", "PROCESSING") for task in tasks)

    until(ended, "all tasks have ended", patience)
    for number, task in enumerate(tasks):
        assert task["status"] == "SUCCESS", task
        assert task["attempt"] == 1 + task["recoveries"] + task["releases"] + task["retry_count"], task
        assert task["result"]["attempt"] == task["attempt"], "the result is not that of the last attempt"
        # Logs are long: those of tasks to which something has happened, and some of the others.
        if task["attempt"] > 1 or number % 10 == 0:
            path = [(row["from_status"], row["to_status"]) for row in node.logs(task["task_id"])]
            assert legal_path(path) == "SUCCESS", path
    return tasks


def everything(node: Node) -> Iterator[dict[str, Any]]:
    """All tasks of the cluster."""
    cursor = ""
    while True:
        page = node.data(f"/tasks?limit=500{cursor}")
        yield from page["tasks"]
        if not page["next_cursor"]:
            return
        cursor = f"&cursor={page['next_cursor']}"
