"""A node that calls a server of the operator's, sends mail and runs commands, as its config allows; by REST."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from executors.smtp import mail_server
from running import PATIENCE, Process, node

CONFIG = """
executors:
  - use: atm.executors.http:HttpExecutor
    config: {{allow: [127.0.0.1]}}
  - use: atm.executors.email:EmailExecutor
    config: {{backend: smtp, host: 127.0.0.1, port: {mail}, security: none, sender: shop@example.com}}
  - use: atm.executors.shell:ShellExecutor
    config: {{programs: [echo]}}
"""


class Receiver(ThreadingHTTPServer):
    """Takes webhooks; ``/busy`` asks the first to come back in a second, ``/hang`` answers nobody."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[tuple[str, dict[str, str], bytes, float]] = []
        self.left = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def to(self, path: str) -> list[tuple[dict[str, str], bytes, float]]:
        return [tuple(rest) for where, *rest in self.heard if where == path]  # type: ignore[misc]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_first = not self.server.to(self.path)
        self.server.heard.append((self.path, headers, body, time.monotonic()))
        if self.path == "/hang":
            self.rfile.read(1)
            self.server.left.set()
            return
        self.send_response(503 if is_first and self.path == "/busy" else 200)
        self.send_header("Retry-After", "2")
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"taken": true}')

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
        return


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_node_calls_and_writes_as_its_config_allows() -> None:
    with mail_server() as mail, receiver() as server:
        Path("config.yaml").write_text(CONFIG.format(mail=mail.port))
        with node() as started:
            a_webhook_is_delivered(started, server)
            a_busy_receiver_is_called_again_when_it_wants_to_be(started, server)
            what_is_not_allowed_is_refused(started)
            a_cancelled_request_has_ended(started, server)
            an_email_is_sent(started)
            a_listed_command_runs_and_no_other(started)
            assert started.end() == 0
        assert "To: user@example.com" in mail.messages[0]


def a_webhook_is_delivered(started: Process, server: Receiver) -> None:
    task_id = started.create("webhook", payload={"url": f"{server.url}/hook", "json": {"event": "paid"}})
    task = started.task(task_id, wait=10)
    assert (task["status"], task["result"]["json"]) == ("SUCCESS", {"taken": True}), task
    ((headers, body, _),) = server.to("/hook")
    assert headers["idempotency-key"] == task_id
    assert json.loads(body) == {"event": "paid"}


def a_busy_receiver_is_called_again_when_it_wants_to_be(started: Process, server: Receiver) -> None:
    task_id = started.create("webhook", payload={"url": f"{server.url}/busy", "body": "x"})
    task = started.task(task_id, wait=20)
    assert (task["status"], task["retry_count"]) == ("SUCCESS", 1), task
    (first, _, began), (second, _, again) = server.to("/busy")
    assert first["idempotency-key"] == second["idempotency-key"] == task_id
    assert again - began >= 2


def what_is_not_allowed_is_refused(started: Process) -> None:
    for url in ("http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://2130706433/", "ftp://x/"):
        task = started.task(started.create("http_request", payload={"url": url}), wait=10)
        assert task["status"] == "FAILED"
        assert task["error"]["retryable"] is False
        assert "payload.url" in task["error"]["message"]


def a_cancelled_request_has_ended(started: Process, server: Receiver) -> None:
    task_id = started.create("webhook", payload={"url": f"{server.url}/hang", "json": 1})
    deadline = time.monotonic() + PATIENCE
    while not server.to("/hang"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    told = httpx.post(f"{started.url}/api/v1/tasks/{task_id}/cancel", timeout=PATIENCE)
    assert told.json()["message"] == "Task cancelled successfully"
    assert server.left.wait(PATIENCE)
    assert started.task(task_id)["status"] == "CANCELLED"


def an_email_is_sent(started: Process) -> None:
    task_id = started.create("send_email", payload={"to": "user@example.com", "subject": "Hello", "body": "Hi"})
    task = started.task(task_id, wait=10)
    assert task["status"] == "SUCCESS", task
    assert task["result"]["message_id"] == f"{task_id}@example.com"


def a_listed_command_runs_and_no_other(started: Process) -> None:
    task = started.task(started.create("shell", payload={"argv": ["echo", "$HOME; hello"]}), wait=10)
    assert task["status"] == "SUCCESS", task
    assert task["result"] == {"exit_code": 0, "stdout": "$HOME; hello\n", "stderr": ""}
    task = started.task(started.create("shell", payload={"argv": ["cat", "/etc/passwd"]}), wait=10)
    assert (task["status"], task["error"]["retryable"]) == ("FAILED", False)
    assert "payload.argv" in task["error"]["message"]
