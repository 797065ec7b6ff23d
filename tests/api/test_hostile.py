"""A real node under attack: whatever is thrown at it, it answers by the rules, stays healthy and stays small."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.site import BATCH, JSON, PATIENCE, TASKS, Site, assert_problem, assert_success, post, request, talk, until

MIB = 1024 * 1024
GROWTH = 150 * MIB
"""Bytes that a node's memory may grow by; one attack that is kept in memory alone costs more."""


class NodeProcess:
    """``python -m atm`` on free ports, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        config = {"server": {"port": 0}, "metrics": {"port": 0}, "log": {"file": None}}
        (folder / "config.yaml").write_text(json.dumps(config))
        self._output = folder / "output"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "atm"], cwd=folder, stdout=output, stderr=subprocess.STDOUT
            )
        until(lambda: "is ready" in self.output() or self.process.poll() is not None)
        found = dict(re.findall(r"^ +(API|metrics) +http://127\.0\.0\.1:(\d+)", self.output(), re.MULTILINE))
        self.port, self.metrics_port = int(found["API"]), int(found["metrics"])

    def output(self) -> str:
        return self._output.read_text()

    def memory(self) -> int:
        """Bytes in use."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self) -> int:
        """Drain it; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    made = NodeProcess(tmp_path_factory.mktemp("node"))
    with httpx.Client() as client:
        # What every node needs once, it has now.
        client.post(f"http://127.0.0.1:{made.port}{TASKS}", json={"task_type": "echo"})
    try:
        yield made
        assert made.stop() == 0
        assert "Traceback" not in made.output()
    finally:
        made.process.kill()
        made.process.wait()


@contextlib.contextmanager
def unharmed(node: NodeProcess) -> Iterator[None]:
    """Afterwards the node is as it was: alive, no larger, with no descriptor more; and it still works."""
    memory, descriptors = node.memory(), node.descriptors()
    yield
    until(lambda: node.descriptors() <= descriptors)
    assert node.memory() - memory < GROWTH
    with httpx.Client(base_url=f"http://127.0.0.1:{node.port}", timeout=PATIENCE) as client:
        assert_success(client.get("/readyz"))
        task_id = assert_success(client.post(TASKS, json={"task_type": "echo", "payload": {"a": 1}}), 201)[
            "task_id"
        ]
        task = assert_success(client.get(f"{TASKS}/{task_id}", params={"wait": PATIENCE}))
        assert (task["status"], task["result"]) == ("SUCCESS", {"a": 1})
    until(lambda: node.descriptors() <= descriptors)


# connections


def test_five_hundred_connections_that_are_opened_and_dropped(node: NodeProcess) -> None:
    with unharmed(node):
        beginnings = [
            b"",
            b"G",
            b"GET / HTTP/1.1\r\nHost: ",
            post(b'{"task_type":"nobody"}')[:-5],
            request("GET", "/livez"),
        ]
        for number in range(500):
            with socket.create_connection(("127.0.0.1", node.port), PATIENCE) as sock:
                sock.sendall(beginnings[number % len(beginnings)])


def test_two_hundred_connections_at_a_time(node: NodeProcess) -> None:
    with unharmed(node), contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(("127.0.0.1", node.port))) for _ in range(200)]
        for sock in socks:
            sock.settimeout(PATIENCE)
            sock.sendall(request("GET", "/livez"))
        assert {sock.recv(12) for sock in socks} == {b"HTTP/1.1 200"}


def test_clients_that_leave_while_their_task_is_being_written(node: NodeProcess) -> None:
    body = b'{"tasks":[' + b",".join([b'{"task_type":"echo"}'] * 200) + b"]}"
    with unharmed(node):
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", node.port)) as sock:
                sock.sendall(post(body, target=BATCH))
        # Each batch is there or not; what is there runs, also those whose hint died with the request.
        with httpx.Client(base_url=f"http://127.0.0.1:{node.port}", timeout=PATIENCE) as client:

            def unfinished() -> list[str]:
                return assert_success(client.get(TASKS, params={"status": "PENDING"}))["tasks"]

            until(lambda: not unfinished())


def test_the_metrics_port_is_as_hard(node: NodeProcess) -> None:
    with unharmed(node):
        for junk in (
            b"\x16\x03\x01",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            request("GET", "/metrics", "Upgrade: websocket"),
        ):
            with socket.create_connection(("127.0.0.1", node.metrics_port)) as sock:
                sock.sendall(junk)
        upgrade = request(
            "GET", "/metrics", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Protocol: \xff"
        )
        assert talk(node.metrics_port, upgrade).status_code == 200


# large bodies


def large(inside: bytes, size: int = 16 * MIB) -> bytes:
    return inside * (size // len(inside) - 8)


LARGE = {
    "objects without end": (b'{"tasks":[' + large(b"{},") + b"{}]}", 422),
    "lists without end": (b'{"tasks":[' + large(b"[],") + b"[]]}", 422),
    "objects beside the tasks": (b'{"x":[' + large(b"{},") + b"{}]}", 422),
    "numbers": (b'{"x":[' + large(b"1,") + b"1]}", 422),
    "one task of many objects": (b'{"tasks":[{"task_type":"a","payload":{"a":[' + large(b"{},") + b"1]}}]}", 413),
    "brackets": (large(b"["), 422),
    "braces": (large(b'{"a":'), 400),
    "quotes": (large(b'"'), 422),
    "blanks": (large(b" "), 400),
    "NUL": (large(b"\0"), 400),
    "not UTF-8": (large(b"\xff"), 400),
    "a key without end": (b'{"' + large(b"k") + b'":1}', 422),
    "more than is allowed": (large(b"x", 64 * MIB), 413),
}


@pytest.mark.parametrize(("body", "status"), LARGE.values(), ids=LARGE)
def test_a_large_body_of_nothing_costs_little(node: NodeProcess, body: bytes, status: int) -> None:
    with unharmed(node):
        answer = httpx.post(f"http://127.0.0.1:{node.port}{BATCH}", content=body, headers=JSON, timeout=PATIENCE)
        assert answer.status_code == status
        assert_problem(answer, answer.json()["code"], *(error["field"] for error in answer.json()["errors"]))
        assert len(answer.content) < 2_000


def test_a_body_that_never_ends_is_cut(node: NodeProcess) -> None:
    head = request("POST", TASKS, "Content-Type: application/json", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with unharmed(node), socket.create_connection(("127.0.0.1", node.port), PATIENCE) as sock:
        sock.sendall(head)
        sent = 0
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                sock.sendall(chunk)
                sent += len(chunk)
            pytest.fail(f"it took {sent} bytes")


# small things


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/tasks/%00",
        "/api/v1/tasks/%ff%fe",
        "/api/v1/tasks/%C3%28",
        "/api/v1/tasks/%ED%A0%80",
        "/api/v1/tasks/%zz",
        "/api/v1/tasks/%",
        "/api/v1/tasks/a%0d%0aSet-Cookie:x",
        "/api/v1/tasks/%2e%2e%2f%2e%2e",
        "/api/v1/tasks/x%2flogs",
        "/api/v1/tasks/%F0%9F%98%80",
        "/api/v1/tasks/'%20OR%201=1--",
        "/api/v1/tasks/" + "%00" * 4_000,
    ],
)
def test_an_odd_task_id_is_no_task(site: Site, path: str) -> None:
    answer = site.raw(request("GET", path))
    assert answer.status_code == 404
    assert_problem(answer, json.loads(answer.text)["code"])
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "query",
    [
        "%ff=1",
        "=",
        "%00=%00",
        "limit=%00",
        "status=%ff",
        "cursor=%ED%A0%80",
        "task_type=a&" * 3_000,
        "&".join(f"a{n}=1" for n in range(2_000)),
        "status=PENDING&status=PENDING",
        "created_after=" + "9" * 10_000,
        "limit=" + "9" * 10_000,
        "limit=1e1",
        "limit=0x10",
        "status[]=PENDING",
        ";",
        "a;b=c",
    ],
)
def test_an_odd_query_is_a_422(site: Site, query: str) -> None:
    answer = site.raw(request("GET", f"{TASKS}?{query}"))
    assert answer.status_code == 422
    assert_problem(answer, 42201, *(error["field"] for error in json.loads(answer.text)["errors"]))


@pytest.mark.parametrize(
    "key", ["a\r\nX-Injected: yes", "a\r\n\r\nGET /livez HTTP/1.1", "a\nb", "a\rb", "a\0b"], ids=repr
)
def test_a_key_injects_nothing(site: Site, key: str) -> None:
    answer = site.raw(post(b'{"task_type":"nobody"}', f"Idempotency-Key: {key}"))
    assert answer.status_code in (201, 400, 415)
    assert "x-injected" not in answer.headers
    # By itself, in a body, the same key is refused.
    body = {"task_type": "nobody", "idempotency_key": key}
    assert_problem(site.http.post(TASKS, json=body), 42201, "idempotency_key")


def test_mangled_requests_get_answers_by_the_rules(site: Site) -> None:
    whole = [
        post(b'{"task_type":"nobody","payload":{"a":[1,2]}}'),
        post(b'{"tasks":[{"task_type":"nobody"}]}', target=BATCH),
        request("GET", f"{TASKS}?limit=5&status=PENDING"),
        request("POST", f"{TASKS}/01890000-0000-7000-8000-000000000000/cancel"),
        request("PUT", "/api/v1/task-types/mangled", "Content-Type: application/json", body=b'{"enabled":true}'),
        request("GET", "/livez", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    ]
    bites = st.tuples(st.integers(0, 400), st.integers(0, 12), st.binary(max_size=6))

    @settings(max_examples=100)
    @given(st.sampled_from(whole), st.lists(bites, min_size=1, max_size=4))
    def check(sent: bytes, mangling: list[tuple[int, int, bytes]]) -> None:
        for start, length, put in mangling:
            sent = sent[:start] + put + sent[start + length :]
        with socket.create_connection(("127.0.0.1", site.port), PATIENCE) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(sent)
                sock.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(ConnectionError):
                while data := sock.recv(65536):
                    received += data
        # A client that has left may get no answer; one that gets any gets none of the server's faults.
        for status in re.findall(rb"HTTP/1\.1 (\d+)", received):
            assert int(status) < 500, (sent, received)

    check()
    assert_success(site.http.get("/livez"))
