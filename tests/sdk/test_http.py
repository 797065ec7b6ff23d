"""Clients and servers that are away, slow, busy, or not what they should be: over real sockets."""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
import trio

import async_task_manager
from async_task_manager import (
    ApiError,
    AsyncClient,
    BadAnswer,
    Client,
    ConnectionFailed,
    RateLimited,
    RequestTimeout,
    ServerUnavailable,
    WaitTimeout,
)
from atm.client.calls import WAITERS
from sdk.kinds import REAL, client_of
from sdk.rude import Rude, Say, bytes_only, drip, fine, hang, refusal, whole

TASK = {"task_id": "x", "task_type": "echo", "status": "SUCCESS", "created_at": "2026-01-31T10:00:00.000Z"}
CREATED = {"task_id": "0199d3f0-5b6e-7000-8a4c-3f1f2a9d7c11"}

Connect = Callable[..., Any]


@pytest.fixture(params=REAL)
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a client of each kind that speaks HTTP."""
    stack = []

    def make(url: str, **options: Any) -> Any:
        stack.append(client_of(request.param, url, **options))
        return stack[-1].__enter__()

    yield make
    for manager in stack:
        manager.__exit__(None, None, None)


@pytest.mark.parametrize(
    "failure",
    [
        refusal("503 Service Unavailable", "Retry-After: 0"),
        refusal("429 Too Many Requests", "Retry-After: 0"),
        whole("502 Bad Gateway", b"<html>", "Retry-After: 0"),
        bytes_only(b""),
        bytes_only(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        bytes_only(b"SSH-2.0-OpenSSH_9.6\r\n"),
    ],
    ids=["503", "429", "502", "closed", "cut", "ssh"],
)
def test_a_create_that_failed_on_the_way_is_sent_again_as_it_was(connect: Connect, failure: Say) -> None:
    with Rude(failure, fine(CREATED)) as server:
        assert connect(server.url).create_task("echo").task_id == CREATED["task_id"]
        assert len(server.requests) == 2
        first, second = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in server.requests]
    assert first == second
    assert first["idempotency_key"]


@pytest.mark.parametrize(
    ("say", "kind"),
    [
        (refusal("503 Service Unavailable"), ServerUnavailable),
        (refusal("429 Too Many Requests"), RateLimited),
        (whole("500 Internal Server Error", b"oops"), ApiError),
        (whole("200 OK", b"<html>It works!</html>"), BadAnswer),
        (whole("200 OK", b'{"code": 0, "message": "success", "data": {"tasks": 7}}'), BadAnswer),
        (whole("200 OK", b"\x1f\x8b\x00", "Content-Encoding: gzip"), BadAnswer),
        (whole("301 Moved Permanently", b"", "Location: http://127.0.0.1:9/"), BadAnswer),
        (whole("404 Not Found", b"<html>"), BadAnswer),
        (bytes_only(b""), ConnectionFailed),
        (bytes_only(b"\x00\x01\x02\x03\r\n\r\n"), ConnectionFailed),
        (hang, RequestTimeout),
        (drip, RequestTimeout),
    ],
    ids=["503", "429", "500", "html", "model", "gzip", "moved", "404", "closed", "garbage", "slow", "drip"],
)
def test_what_a_server_does_wrong_has_an_error_of_its_own(
    connect: Connect, say: Say, kind: type[Exception]
) -> None:
    with Rude(say) as server, pytest.raises(kind):
        connect(server.url, timeout=0.3, retries=0).list_tasks()


def test_a_server_that_is_away_is_named(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    client = connect(url, retries=1)
    with pytest.raises(ConnectionFailed, match=url) as caught:
        client.get_task("x")
    assert caught.value.sent is False
    assert client.livez().ok is False


def test_a_server_that_is_no_atm_is_not_well(connect: Connect) -> None:
    with Rude(whole("404 Not Found", b"<html>")) as server:
        health = connect(server.url).livez()
    assert health.ok is False
    assert "no atm server" in health.reason


def test_a_server_that_comes_late_is_found(connect: Connect) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        said: list[Any] = []
        client = connect(url)
        with Rude(fine(CREATED)) as server:
            # Nobody listens on the first port until the client has been refused there.
            proxy = threading.Timer(0.3, _hand_over, (sock, server.url))
            proxy.start()
            said.append(client.create_task("echo").task_id)
            proxy.join()
    assert said == [CREATED["task_id"]]


def _hand_over(sock: socket.socket, url: str) -> None:
    """Serve one connection of ``sock`` by asking the server at ``url``."""
    sock.listen()
    connection, _ = sock.accept()
    with connection, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as behind:
        behind.sendall(Rude._read(connection))
        connection.sendall(behind.recv(65536))


def test_a_retry_that_may_have_been_carried_out_is_not_sent_again(connect: Connect) -> None:
    with Rude(bytes_only(b""), fine(TASK)) as server:
        with pytest.raises(ConnectionFailed) as caught:
            connect(server.url).retry_task("x")
        assert caught.value.sent is True
        assert len(server.requests) == 1


def test_a_cancel_that_takes_longer_says_so(connect: Connect) -> None:
    with Rude(whole("202 Accepted", {"code": 0, "message": "Cancellation requested"}), fine()) as server:
        client = connect(server.url)
        assert client.cancel_task("x") is False
        assert client.cancel_task("x") is True


def test_a_piece_of_many_is_sent_again_as_it_was(connect: Connect) -> None:
    with Rude(bytes_only(b""), fine({"task_ids": ["a", "b"]})) as server:
        handles = connect(server.url).create_tasks([{"task_type": "echo"}] * 2)
        assert [handle.task_id for handle in handles] == ["a", "b"]
        first, second = [request.partition(b"\r\n\r\n")[2] for request in server.requests]
    assert first == second


def test_an_answer_with_too_few_ids_is_not_believed(connect: Connect) -> None:
    with (
        Rude(fine({"task_ids": ["a"]})) as server,
        pytest.raises(BadAnswer, match="2 tasks were sent, 1 came back"),
    ):
        connect(server.url).create_tasks([{"task_type": "echo"}] * 2)


async def test_those_who_wait_take_turns_when_there_are_many() -> None:
    """The first look of the last one is short; who waits alone afterwards waits long."""
    with Rude(fine({**TASK, "status": "PENDING"}), fine(TASK)) as server:
        async with AsyncClient(server.url) as client:
            client._session.waiters = {*range(4 * WAITERS - 1)}
            with pytest.raises(WaitTimeout):
                await client.wait("x", timeout=0)
            await client.wait("x")
            client._session.waiters.clear()
            await client.wait("x")
        asked = [request.split(b" ")[1].partition(b"=")[2] for request in server.requests]
    assert asked == [b"0.000", b"1.250", b"30.000"]


def test_waiting_goes_on_when_the_server_answers_early(connect: Connect) -> None:
    with Rude(fine({**TASK, "status": "PENDING"}), refusal("503 Away", "Retry-After: 0"), fine(TASK)) as server:
        assert connect(server.url).wait("x").status == "SUCCESS"
        asked = [request.split(b" ")[1] for request in server.requests]
    assert asked == [b"/api/v1/tasks/x?wait=30.000"] * 3


def test_connections_are_used_again(connect: Connect) -> None:
    with Rude(fine(CREATED)) as server:
        client = connect(server.url)
        for _ in range(5):
            client.create_task("echo")
        assert (len(server.requests), server.connections) == (5, 1)


def test_a_newer_server_may_say_more(connect: Connect) -> None:
    with Rude(fine({**TASK, "colour": "blue", "progress": {"fraction": 0.5, "eta": 7}})) as server:
        task = connect(server.url).get_task("x")
        assert task.progress.fraction == 0.5


def test_the_environment_says_where_and_with_which_key(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rude(fine(TASK)) as server:
        monkeypatch.setenv("ATM_URL", server.url + "/prefix/")
        monkeypatch.setenv("ATM_API_KEY", "atm_secret")
        connect(None).get_task("x")
        connect(None, api_key="atm_other").get_task("x")
        assert server.requests[0].startswith(b"GET /prefix/api/v1/tasks/x HTTP/1.1\r\n")
        assert b"\r\nAuthorization: Bearer atm_secret\r\n" in server.requests[0]
        assert b"\r\nAuthorization: Bearer atm_other\r\n" in server.requests[1]
    for kind in (Client, AsyncClient):
        assert "secret" not in repr(kind("http://localhost", api_key="secret"))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"base_url": "localhost:8080"}, "base_url"),
        ({"base_url": "ftp://localhost"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://[::1"}, "base_url"),
        ({"base_url": "http://a\x00b"}, "base_url"),
        ({"base_url": "http://user:secret@localhost"}, "base_url"),
        ({"base_url": "http://localhost:8080/?x=1"}, "base_url"),
        ({"base_url": "http://localhost:99999"}, "base_url"),
        ({"base_url": "http://localhost:0"}, "base_url"),
        ({"base_url": "http://localhost\n"}, "base_url"),
        ({"base_url": "http://a..b"}, "base_url"),
        ({"base_url": "http://xn--"}, "base_url"),
        ({"api_key": "two words"}, "api_key"),
        ({"api_key": "a\r\nb"}, "api_key"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
    ],
)
def test_settings_that_cannot_be_are_named(kind: type[Client], options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: ") as caught:
        kind(**options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "options",
    [
        {"base_url": 8080},
        {"api_key": b"key"},
        {"timeout": None},
        {"retries": "3"},
        {"retries": 2.5},
        {"retry_for": None},
    ],
)
def test_settings_of_another_type_are_named(kind: type[Client], options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(TypeError, match=f"^{name}: must be a "):
        kind(**options)


def test_connections_of_ones_own_stay_open() -> None:
    with Rude(fine(TASK)) as server, httpx.Client(headers={"X-Mine": "1"}) as http:
        with Client(server.url, http=http) as client:
            client.get_task("x")
        assert not http.is_closed
        assert b"\r\nX-Mine: 1\r\n" in server.requests[0]


async def test_a_wait_is_cancelled_like_anything_else() -> None:
    with Rude(hang) as server:
        async with AsyncClient(server.url) as client:
            with trio.move_on_after(0.1) as scope:
                await client.wait("x")
            assert scope.cancelled_caught


async def test_more_may_wait_than_there_are_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atm.client.http.WAITERS", 10)
    with Rude(fine(TASK)) as server:
        async with AsyncClient(server.url) as client, anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(client.wait, "x")
        assert len(server.requests) == 30
        assert server.connections <= 10


def test_threads_may_share_a_client() -> None:
    with Rude(fine(CREATED)) as server, Client(server.url) as client:
        threads = [threading.Thread(target=client.create_task, args=("echo",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.requests) == 8


# what the package is


def test_the_client_does_not_load_the_server() -> None:
    # What is there already is the measuring of coverage.
    code = "import sys; before = set(sys.modules); import async_task_manager; print(*sys.modules.keys() - before)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in said.split()}
    assert not loaded & {"quart", "quart_trio", "hypercorn", "redis", "trio_mysql", "sqlite3", "yaml", "trio"}
    assert {name for name in said.split() if name.startswith("atm.")} <= {"atm.errors", "atm.task"} | {
        name for name in said.split() if name.startswith("atm.client")
    }


def test_verbs_look_like_what_they_are() -> None:
    for name in ("create_task", "get_task", "wait", "cancel_task"):
        now, later = getattr(Client, name), getattr(AsyncClient, name)
        assert not inspect.iscoroutinefunction(now)
        assert inspect.iscoroutinefunction(later)
        assert str(inspect.signature(now)) == str(inspect.signature(later))
        assert now.__doc__
    assert list(inspect.signature(Client("http://localhost").get_task).parameters) == ["task_id"]


def test_all_that_is_public_is_there() -> None:
    for name in async_task_manager.__all__:
        assert getattr(async_task_manager, name) is not None
