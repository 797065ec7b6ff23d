"""Every shipped executor, cancelled at each of its checkpoints in turn: nothing is left of it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from atm.executor import Executor
from atm.executors import loading
from atm.executors.email import EmailExecutor
from atm.executors.http import HttpExecutor
from atm.executors.shell import ShellExecutor
from atm.registry import Registry
from atm.testing import check_cancel_safety
from executors.mail import mail_server_of_others
from executors.web import Certificate, Names, answer, certificate, web

HELLO = {"to": "user@example.com", "subject": "Hello", "body": "Test email"}
NAME = "api.example.test"

Work = tuple[Executor, dict[str, Any]]
Case = Callable[[Certificate, Path], contextlib.AbstractAsyncContextManager[Work]]


def shipped() -> Registry:
    registry = Registry()
    loading.load_shipped(registry)
    return registry


@contextlib.asynccontextmanager
async def echo(cert: Certificate, folder: Path) -> AsyncIterator[Work]:
    yield shipped().by_type["echo"], {"a": 1}


@contextlib.asynccontextmanager
async def sleep(cert: Certificate, folder: Path) -> AsyncIterator[Work]:
    yield shipped().by_type["sleep"], {"seconds": 0.01}


@contextlib.asynccontextmanager
async def email_to_the_console(cert: Certificate, folder: Path) -> AsyncIterator[Work]:
    yield EmailExecutor(out=io.StringIO()), HELLO


@contextlib.asynccontextmanager
async def email_by_smtp(cert: Certificate, folder: Path) -> AsyncIterator[Work]:
    with mail_server_of_others(folder, cert.chain, "starttls") as mailbox:
        yield EmailExecutor("smtp", host="localhost", port=mailbox.port, user="me", password="secret"), HELLO


@contextlib.asynccontextmanager
async def http(cert: Certificate, folder: Path) -> AsyncIterator[Work]:
    """With TLS, a name, a body to send, a redirect, and a body to read."""
    executor = HttpExecutor(
        allow=["127.0.0.1"], tls_ca=str(cert.authority), lookup=Names(api_example_test=["127.0.0.1"])
    )
    async with web({}, cert.server) as server:
        server.answers["/old"] = answer("307 Go", location=f"https://127.0.0.1:{server.port}/new")
        server.answers["/new"] = answer(body=b"a" * 100_000)
        url = f"https://{NAME}:{server.port}/old"
        yield executor, {"url": url, "method": "POST", "body": "b", "redirects": 1, "timeout": 30}


@contextlib.asynccontextmanager
async def shell(cert: Certificate, folder: Path) -> AsyncIterator[Work]:
    """A command that reads, writes, and leaves something behind that has left its group and session."""
    script = "setsid sleep 1000 & cat; echo done >&2"
    yield ShellExecutor(cwd=str(folder)), {"argv": ["sh", "-c", script], "input": "a" * 200_000}


CASES: dict[str, tuple[Case, tuple[str, ...], int]] = {
    "echo": (echo, ("echo",), 0),
    "sleep": (sleep, ("sleep",), 1),
    "console": (email_to_the_console, ("send_email",), 1),
    "smtp": (email_by_smtp, ("send_email",), 4),
    "http": (http, ("http_request", "webhook"), 10),
    "shell": (shell, ("shell",), 4),
}
"""How it is set up, the task types it stands for, and the checkpoints that it has at the least."""


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), NAME, "127.0.0.1", "localhost")


@pytest.mark.parametrize("name", CASES)
async def test_nothing_is_left(
    cert: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(cert.authority))
    case, _, least = CASES[name]
    async with case(cert, tmp_path) as (executor, payload):
        assert await check_cancel_safety(executor, payload) >= least


def test_every_shipped_executor_is_tried() -> None:
    tried = {task_type for _, task_types, _ in CASES.values() for task_type in task_types}
    assert tried == {*shipped().by_type, "shell"}
