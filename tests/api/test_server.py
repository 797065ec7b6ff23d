"""Connections: kept, shared, given up; and no answer is lost on the way."""

from __future__ import annotations

import contextlib
import logging
import re
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import trio

from api.site import (
    BATCH,
    PATIENCE,
    TASKS,
    Answer,
    Site,
    assert_problem,
    assert_success,
    in_thread,
    post,
    request,
    talk,
    until,
)
from atm.api import app as app_module
from atm.api import server
from atm.api.guard import AsgiApp, Receive, Scope, Send
from atm.errors import StartError

MakeSite = Callable[..., Site]

LIVEZ = request("GET", "/livez")
ALIVE = '{"code":0,"message":"success","data":{"status":"alive"}}\n'


@contextlib.contextmanager
def connection(site: Site) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", site.port), PATIENCE) as sock:
        yield sock


def receive_all(sock: socket.socket) -> bytes:
    """What comes until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            received += data
    return received


def answers_in(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", received)]


def reset(sock: socket.socket) -> None:
    """End the connection without a goodbye."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def open_connections(site: Site) -> int:
    return len(site.servers[0]._open)


# listening


def test_a_busy_port_is_told_in_one_line(site: Site) -> None:
    with pytest.raises(StartError, match=rf"server.port: cannot listen on 127.0.0.1 port {site.port}: address"):
        server.bind("127.0.0.1", site.port, "server.port")


def test_a_host_that_is_none_is_told_in_one_line() -> None:
    with pytest.raises(StartError, match=r"server.port: cannot use host no such host: "):
        server.bind("no such host", 0, "server.port")


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_the_url_names_host_and_port(host: str, url: str) -> None:
    with server.bind(host, 0, "server.port") as sock:
        assert server.url_of(sock) == f"{url}{sock.getsockname()[1]}"


def test_ipv6_is_served(make_site: MakeSite) -> None:
    site = make_site(host="::1")
    assert site.url.startswith("http://[::1]:")
    assert_success(site.http.get("/livez"))


# one connection, many requests


def test_a_connection_is_used_again_and_again(site: Site) -> None:
    with connection(site) as sock:
        for _ in range(3):
            sock.sendall(LIVEZ)
            received = b""
            while not received.endswith(ALIVE.encode()):
                received += sock.recv(65536)
            assert answers_in(received) == [200]
            assert b"connection" not in received.lower()


def test_requests_sent_ahead_are_answered_in_order(site: Site) -> None:
    with connection(site) as sock:
        task = post(b'{"task_type":"nobody"}')
        sock.sendall(
            LIVEZ + task + request("GET", "/nope") + LIVEZ + request("GET", "/livez", "Connection: close")
        )
        assert answers_in(receive_all(sock)) == [200, 201, 404, 200, 200]


@pytest.mark.parametrize(
    "head", [b"GET /livez HTTP/1.0\r\n\r\n", request("GET", "/livez", "Connection: close")], ids=["1.0", "1.1"]
)
def test_a_client_that_wants_to_close_gets_its_way(site: Site, head: bytes) -> None:
    answer = site.raw(head)
    assert (answer.text, answer.closed) == (ALIVE, True)
    assert answer.headers["connection"] == "close"


def test_a_request_may_come_byte_by_byte(site: Site) -> None:
    parts = post(b'{"task_type":"nobody"}')
    assert site.raw(*(parts[n : n + 1] for n in range(len(parts)))).status_code == 201


def test_a_body_may_come_in_chunks_of_any_size(site: Site) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"task_type":"nobody"}')
    head = request("POST", TASKS, "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert site.raw(head + chunks + b"0\r\n\r\n").status_code == 201
    assert site.raw(head + chunks + b"0\r\nTrailer: x\r\n\r\n").status_code == 201


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(site: Site) -> None:
    body = b'{"task_type":"nobody"}'
    head, _, _ = post(body, "Expect: 100-continue").partition(b"\r\n\r\n")
    with connection(site) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert answers_in(sock.recv(65536)) == [100]
        sock.sendall(body)
        assert answers_in(sock.recv(65536)) == [201]


# answers before the body has come


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (request("POST", TASKS, "Content-Type: application/json", "Content-Length: 30000000"), 41301),
        (request("POST", BATCH, "Content-Type: application/json", "Content-Length: 30000000"), 41301),
        (request("POST", TASKS, "Content-Length: 30000000"), 41501),
        (request("POST", "/nope", "Content-Length: 30000000"), 40402),
        (request("DELETE", TASKS, "Content-Length: 30000000"), 40501),
        (request("POST", TASKS, "Content-Length: 30000000", host="evil.example"), 40301),
        (request("POST", TASKS, "Content-Length: " + "9" * 20), 41501),
    ],
)
def test_an_early_answer_can_be_read_though_the_client_goes_on_sending(site: Site, head: bytes, code: int) -> None:
    answer = site.raw(head, *[b"x" * 1_000_000] * 30)
    assert_problem(answer, code)
    assert answer.headers["connection"] == "close"


def test_a_client_library_goes_on_after_an_early_answer(site: Site) -> None:
    with httpx.Client(base_url=site.url, timeout=PATIENCE) as client:
        for _ in range(3):
            for path in (TASKS, BATCH, "/nope"):
                assert client.post(path, content=b" " * 17_000_000).status_code in (404, 415)
            answer = client.post(TASKS, content=b" " * 4_000_000, headers={"Content-Type": "application/json"})
            assert_problem(answer, 41301)
            assert_success(client.get("/livez"))


def test_no_connection_is_left_over_by_early_answers(make_site: MakeSite) -> None:
    site = make_site()
    for _ in range(20):
        site.raw(request("POST", "/nope", "Content-Length: 5000000"), b"x" * 5_000_000)
    until(lambda: open_connections(site) == 0)


def test_what_is_sent_after_an_early_answer_is_dropped_for_a_while_only(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LINGER", 0.05)
    site = make_site()
    with connection(site) as sock:
        sock.sendall(request("POST", "/nope", "Content-Length: 5000000"))
        assert answers_in(receive_all(sock)) == [404]
        until(lambda: open_connections(site) == 0)


def test_a_client_that_breaks_off_after_an_early_answer_is_let_go(make_site: MakeSite) -> None:
    site = make_site()
    with connection(site) as sock:
        sock.sendall(request("POST", "/nope", "Content-Length: 5000000"))
        assert answers_in(receive_all(sock)) == [404]
        reset(sock)
    until(lambda: open_connections(site) == 0)


# clients that keep the server waiting


@pytest.mark.parametrize("sent", [b"", b"GET /liv", request("GET", "/livez")[:-2]], ids=["none", "line", "head"])
def test_a_client_that_does_not_get_on_is_closed(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server, "IDLE_TIMEOUT", 0.1)
    site = make_site()
    with connection(site) as sock:
        sock.sendall(sent)
        assert receive_all(sock) == b""


def test_a_head_that_comes_drop_by_drop_is_closed(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_TIMEOUT", 0.2)
    site = make_site()
    with connection(site) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        deadline = time.monotonic() + PATIENCE
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        while time.monotonic() < deadline:
            sock.sendall(b"a: b\r\n")
            time.sleep(0.01)
        pytest.fail("it was never closed")


def test_an_idle_connection_is_closed_but_one_that_waits_for_its_answer_is_not(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_TIMEOUT", 0.1)
    site = make_site()
    task_id = site.create("nobody")
    with connection(site) as sock:
        sock.sendall(request("GET", f"{TASKS}/{task_id}?wait=0.5"))
        assert answers_in(receive_all(sock)) == [200]


@pytest.mark.parametrize(
    "head",
    [
        request("POST", TASKS, "Content-Type: application/json", "Content-Length: 22"),
        request("POST", BATCH, "Content-Type: application/json", "Transfer-Encoding: chunked"),
    ],
    ids=["declared", "chunked"],
)
def test_a_body_that_does_not_come_is_a_408(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(app_module, "BODY_PATIENCE", 0.1)
    monkeypatch.setattr(server, "LINGER", 0.05)
    site = make_site()
    answer = site.raw(head)
    assert_problem(answer, 40801)
    assert answer.closed


def test_a_client_that_does_not_read_is_given_up(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_TIMEOUT", 0.2)
    site = make_site(capacity=0)
    task = {"task_type": "nobody", "payload": {"a": "x" * 900_000}}
    site.http.post(BATCH, json={"tasks": [task] * 8})
    idle = open_connections(site)
    with connection(site) as sock:
        sock.sendall(request("GET", f"{TASKS}?limit=500") * 3)
        until(lambda: open_connections(site) == idle + 1)
        until(lambda: open_connections(site) == idle)


def test_a_client_that_does_not_read_does_not_hold_up_the_end(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IN_FLIGHT_PATIENCE", 0.2)
    site = make_site(capacity=0)
    task = {"task_type": "nobody", "payload": {"a": "x" * 900_000}}
    site.http.post(BATCH, json={"tasks": [task] * 8})
    with connection(site) as sock:
        sock.sendall(request("GET", f"{TASKS}?limit=500") * 3)
        until(lambda: open_connections(site) == 2)
        site.stop()
        until(lambda: open_connections(site) == 0)


def test_a_client_that_leaves_takes_its_request_along(make_site: MakeSite) -> None:
    site = make_site(capacity=0)
    task_id = site.create("nobody")
    for leave in (reset, socket.socket.close):
        with connection(site) as sock:
            sock.sendall(request("GET", f"{TASKS}/{task_id}?wait=300"))
            until(lambda: site.is_waited_for(task_id))
            leave(sock)
        until(lambda: not site.is_waited_for(task_id))
    until(lambda: open_connections(site) == 1)


def test_a_client_that_has_left_before_it_was_met_is_no_matter(make_site: MakeSite) -> None:
    site = make_site()

    async def sleep_through() -> None:
        time.sleep(0.2)  # noqa: ASYNC251 - the loop is to be busy while clients come and go

    with in_thread(lambda: site.inside(sleep_through)) as done:
        for _ in range(20):
            with connection(site) as sock:
                reset(sock)
        done()
    assert_success(site.http.get("/livez"))
    until(lambda: open_connections(site) == 1)


def test_there_is_a_limit_to_connections(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (15, 15))
    site = make_site()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connection(site))
        until(lambda: open_connections(site) == 5)
        with connection(site) as sock:
            assert receive_all(sock) == b""
    until(lambda: open_connections(site) == 0)
    assert_success(site.http.get("/livez"))


def test_without_a_limit_to_descriptors_there_is_none_to_connections(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert_success(make_site().http.get("/livez"))


# what is not HTTP/1.1 as it should be

JUNK = {
    "nothing": b"\r\n\r\n",
    "an empty line": b"\r\n" + LIVEZ,
    "words": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100,
    "no version": b"GET /livez\r\n\r\n",
    "a version that is none": b"GET /livez HTTP/x\r\nHost: localhost\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a blank in the target": b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes in the target": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a control character in the target": b"GET /\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method that is none": b"G@T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": request("GET", "/livez", "Host: localhost"),
    "a header without a colon": request("GET", "/livez", "foo"),
    "a blank before the colon": request("GET", "/livez", "foo : bar"),
    "a header without a name": request("GET", "/livez", ": bar"),
    "a header with NUL": request("GET", "/livez", "foo: a\0b"),
    "a header with a bare return": request("GET", "/livez", "foo: a\rb"),
    "a length that is none": request("POST", TASKS, "Content-Length: abc"),
    "a length below 0": request("POST", TASKS, "Content-Length: -1"),
    "a length with a sign": request("POST", TASKS, "Content-Length: +2"),
    "a length without end": request("POST", TASKS, "Content-Length: " + "9" * 5_000),
    "two lengths": request("POST", TASKS, "Content-Length: 2", "Content-Length: 3"),
    "a coding that is unknown": request("POST", TASKS, "Transfer-Encoding: gzip, chunked"),
    "two codings": request("POST", TASKS, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100,
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_junk_is_a_400_in_the_envelope(site: Site, junk: bytes) -> None:
    answer = site.raw(junk)
    assert_problem(answer, 40002)
    assert answer.closed or junk.startswith(b"PRI")


@pytest.mark.parametrize(
    ("chunk", "code"),
    [
        (b"zz\r\n", 40002),
        (b"-1\r\n", 40002),
        (b"1\r\nab", 40002),
        (b"f" * 30 + b"\r\n", 40002),
        (b"1;" + b"a" * 100_000, 43101),
    ],
)
def test_chunks_that_are_none_are_refused(site: Site, chunk: bytes, code: int) -> None:
    head = request("POST", TASKS, "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert_problem(site.raw(head + chunk), code)


def test_half_a_body_is_a_400(site: Site) -> None:
    head = request("POST", TASKS, "Content-Type: application/json", "Content-Length: 22")
    assert_problem(site.raw(head + b'{"task_', half_close=True), 40002)


@pytest.mark.parametrize(
    "head",
    [
        request("GET", "/livez?" + "a" * 65_536),
        request("GET", "/livez", "foo: " + "a" * 65_536),
        request("GET", "/livez", *(f"header-{n}: x" for n in range(10_000))),
        b"G" * 100_000,
    ],
    ids=["target", "header", "headers", "method"],
)
def test_a_head_that_is_too_large_is_a_431(site: Site, head: bytes) -> None:
    answer = site.raw(head)
    assert_problem(answer, 43101)
    assert answer.closed


def test_a_long_target_is_served(site: Site) -> None:
    assert site.raw(request("GET", "/livez?" + "a" * 15_000)).text == ALIVE


@pytest.mark.parametrize(
    "headers",
    [
        ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        ("Upgrade: h2c", "HTTP2-Settings: \xff"),
        ("Upgrade: h2c",),
        (
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==",
        ),
        ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Protocol: \xff"),
        ("Upgrade: websocket", "Connection: Upgrade, \xff"),
        ("Upgrade: \xff", "Connection: \xff"),
    ],
)
def test_there_is_no_way_to_another_protocol(site: Site, headers: tuple[str, ...]) -> None:
    assert site.raw(request("GET", "/livez", *headers)).text == ALIVE
    assert_problem(site.raw(request("GET", "/nope", *headers)), 40402)


# applications that misbehave


def answering(*messages: dict[str, Any]) -> Callable[[AsgiApp], AsgiApp]:
    """Instead of the application, one that sends these and ends; on /livez the real one."""

    def wrap(app: AsgiApp) -> AsgiApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/livez":
                return await app(scope, receive, send)
            for message in messages:
                await send(message)
            raise RuntimeError("the application is broken")

        return wrapped

    return wrap


START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]}


def test_an_application_that_fails_is_a_500(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    site = make_site(wrap=answering())
    with caplog.at_level(logging.ERROR, "atm.http"):
        assert_problem(site.raw(request("GET", "/")), 50001)
    assert "the application is broken" in caplog.text
    assert_success(site.http.get("/livez"))


@pytest.mark.parametrize("body", [b"abc", b"too long for its length"])
def test_an_answer_that_breaks_off_ends_the_connection(make_site: MakeSite, body: bytes) -> None:
    site = make_site(wrap=answering(START, {"type": "http.response.body", "body": body, "more_body": True}))
    with connection(site) as sock:
        sock.sendall(request("GET", "/"))
        assert len(answers_in(receive_all(sock))) <= 1
    assert_success(site.http.get("/livez"))


def test_an_application_that_answers_after_a_broken_request_is_not_heard(make_site: MakeSite) -> None:
    heard = []

    def late(app: AsgiApp) -> AsgiApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            heard.append((await receive())["type"])
            await send(START)
            await send({"type": "http.response.body", "body": b"later"})

        return wrapped

    site = make_site(wrap=late)
    answer = site.raw(request("POST", "/", "Transfer-Encoding: chunked") + b"zz\r\n")
    assert_problem(answer, 40002)
    assert answer.rest == b""
    until(lambda: heard == ["http.disconnect"])
    until(lambda: open_connections(site) == 0)


def test_an_application_that_fails_because_its_client_has_left_is_no_news(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    entered = []

    def offended(app: AsgiApp) -> AsgiApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            entered.append(scope["path"])
            await receive()
            if (await receive())["type"] == "http.disconnect":
                raise ConnectionError("the client has left")

        return wrapped

    site = make_site(wrap=offended)
    with connection(site) as sock:
        sock.sendall(request("GET", "/"))
        until(lambda: entered)
    until(lambda: open_connections(site) == 0)
    assert caplog.records == []


def test_an_application_that_reads_nothing_holds_the_client_back_until_it_answers(make_site: MakeSite) -> None:
    go_on = threading.Event()

    def deaf(app: AsgiApp) -> AsgiApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            await trio.to_thread.run_sync(go_on.wait, abandon_on_cancel=True)
            await send(START)
            await send({"type": "http.response.body", "body": b"never"})

        return wrapped

    site = make_site(wrap=deaf)
    sent = []
    with connection(site) as sock:

        def send_much() -> None:
            sock.sendall(request("POST", "/", "Content-Length: 60000000"))
            for number in range(60):
                sock.sendall(b"x" * 1_000_000)
                sent.append(number)

        with in_thread(send_much) as all_sent:
            count = -1
            while len(sent) > count:  # until it is held back
                count = len(sent)
                time.sleep(0.2)
            go_on.set()
            all_sent()
        assert count < 60
        assert receive_all(sock).endswith(b"never")
    until(lambda: open_connections(site) == 0)


def test_a_connection_that_fails_is_given_up_alone(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site()

    async def fail(*_: object) -> None:
        raise RuntimeError("the protocol is broken")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "atm.http"):
        patch.setattr(server._Protocol, "_create_stream", fail)
        with connection(site) as sock:
            sock.sendall(LIVEZ)
            assert receive_all(sock) == b""
    assert "the protocol is broken" in caplog.text
    assert_success(site.http.get("/livez"))
    assert open_connections(site) == 1


# the end


def test_a_server_that_stops_closes_idle_connections_and_ends_its_answers_so(make_site: MakeSite) -> None:
    site = make_site(capacity=0)
    task_id = site.create("nobody")
    with connection(site) as idle, connection(site) as busy:
        idle.sendall(LIVEZ)
        assert answers_in(idle.recv(65536)) == [200]
        busy.sendall(request("GET", f"{TASKS}/{task_id}?wait=300"))
        until(lambda: site.is_waited_for(task_id))
        site.stop()
        assert receive_all(idle) == b""
        received = receive_all(busy)
    assert answers_in(received) == [200]
    assert b"connection: close" in received.lower()
    with pytest.raises(ConnectionRefusedError):
        talk(site.port, LIVEZ)


def test_a_request_that_does_not_end_is_cut_when_the_server_stops(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IN_FLIGHT_PATIENCE", 0.1)
    entered = []

    def endless(app: AsgiApp) -> AsgiApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            entered.append(scope["path"])
            while True:
                await receive()

        return wrapped

    site = make_site(wrap=endless)
    with connection(site) as sock:
        sock.sendall(request("POST", "/", "Content-Length: 5"))
        until(lambda: entered)
        site.stop()
        assert receive_all(sock) == b""


# metrics


def metrics(site: Site, *args: str) -> Answer:
    return talk(site.metrics_port, request(*args))


def test_metrics_are_text_for_prometheus(site: Site) -> None:
    site.create("nobody")
    answer = metrics(site, "GET", "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'task_created_total{task_type="nobody"}' in answer.text
    head = httpx.head(f"{site.metrics_url}/metrics")
    assert (head.status_code, head.content) == (200, b"")


def test_nothing_else_is_on_their_port(site: Site) -> None:
    assert_problem(metrics(site, "GET", "/"), 40402)
    assert_problem(metrics(site, "GET", TASKS), 40402)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        answer = metrics(site, method, "/metrics")
        assert_problem(answer, 40501)
        assert answer.headers["allow"] == "GET, HEAD"
