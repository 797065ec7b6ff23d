"""``http_request`` and ``webhook``: real requests to a real server that answers what a test asks for."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import logging
from typing import Any

import msgspec
import pytest
import trio

from atm.errors import ConfigError
from atm.executors.http import HttpExecutor
from atm.executors.http_answer import MAX_RESPONSE
from atm.store import Outcome
from atm.task import Status, TaskType
from executors.web import Asked, Certificate, Names, Stream, answer, certificate, hang_up, silence, web
from nursery.bench import AttemptKit

HERE = ["127.0.0.0/8"]
NAME = "api.example.test"


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), NAME, "127.0.0.1")


def local(**config: Any) -> HttpExecutor:
    return HttpExecutor(**{"allow": HERE} | config)


async def ask(
    attempts: AttemptKit, executor: HttpExecutor, how: dict[str, Any] | None = None, **payload: Any
) -> Outcome:
    return await attempts.outcome(executor, payload=payload, **how or {})


def result_of(outcome: Outcome) -> dict[str, Any]:
    assert outcome.status is Status.SUCCESS, outcome.message
    found: dict[str, Any] = json.loads(outcome.result_json or "null")
    return found


def refused(outcome: Outcome) -> str:
    """Why it failed for good."""
    assert (outcome.status, outcome.retry_in) == (Status.FAILED, None), outcome
    return outcome.message


def retried(outcome: Outcome) -> str:
    """Why it failed for now."""
    assert outcome.status is Status.FAILED, outcome
    assert outcome.retry_in is not None
    return outcome.message


# what is sent


async def test_a_request_is_sent_and_its_answer_is_the_result(attempts: AttemptKit) -> None:
    reply = answer(body=b'{"ok": [1, "\xc3\xbc"]}', content_type="application/json", etag='"7"', set_cookie="s=1")
    async with web({"/a": reply}) as server:
        run = attempts.run(local(), payload={"url": f"{server.url}/a?b=c"})
        result = result_of(await attempts.end_of(run))
    assert result == {
        "status": 200,
        "headers": {"content-type": "application/json", "etag": '"7"'},
        "json": {"ok": [1, "ü"]},
    }
    (asked,) = server.asked
    assert (asked.method, asked.target, asked.body) == ("GET", "/a?b=c", b"")
    assert asked.headers["host"] == f"127.0.0.1:{server.port}"
    assert asked.headers["idempotency-key"] == run.task.task_id


async def sent(attempts: AttemptKit, **payload: Any) -> Asked:
    async with web({"/": answer()}) as server:
        result_of(await ask(attempts, local(), url=f"{server.url}/", **payload))
    return server.asked[0]


async def test_json_is_sent_as_json(attempts: AttemptKit) -> None:
    asked = await sent(attempts, method="put", json={"a": ["ü", None]})
    assert asked.method == "PUT"
    assert asked.headers["content-type"] == "application/json"
    assert json.loads(asked.body) == {"a": ["ü", None]}


async def test_a_text_is_sent_as_it_is(attempts: AttemptKit) -> None:
    headers = {"Content-Type": "text/csv", "X-Twice": " a ", "User-Agent": "mine"}
    asked = await sent(attempts, method="POST", body="a;ü\r\n", headers=headers)
    assert asked.body == "a;ü\r\n".encode()
    assert (asked.headers["content-type"], asked.headers["x-twice"], asked.headers["user-agent"]) == (
        "text/csv",
        "a",
        "mine",
    )


async def test_user_and_password_of_a_url_are_sent_as_authorization(attempts: AttemptKit) -> None:
    async with web({"/": answer()}) as server:
        url = server.url.replace("//", "//me:p%40ss@")
        result_of(await ask(attempts, local(), url=f"{url}/"))
    assert server.asked[0].headers["authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()


@pytest.mark.parametrize(
    ("name", "header"), [("X-Request-Key", "x-request-key"), (None, None), ("Idempotency-Key", "idempotency-key")]
)
async def test_the_idempotency_key_has_the_header_that_is_asked_for(
    attempts: AttemptKit, name: str | None, header: str | None
) -> None:
    asked = await sent(attempts, idempotency_header=name)
    assert {key for key in asked.headers if key.endswith("-key")} == ({header} if header else set())


async def test_an_idempotency_key_of_ones_own_wins(attempts: AttemptKit) -> None:
    asked = await sent(attempts, headers={"Idempotency-Key": "order-7"})
    assert asked.headers["idempotency-key"] == "order-7"


async def test_a_webhook_is_a_post(attempts: AttemptKit) -> None:
    async with web({"/hook": answer("204 No Content", content_length="0")}) as server:
        run = attempts.run(local(), payload={"url": f"{server.url}/hook", "json": {"event": "paid"}})
        run.task = msgspec.structs.replace(run.task, task_type="webhook")
        assert result_of(await attempts.end_of(run)) == {"status": 204, "headers": {}}
    assert server.asked[0].method == "POST"


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ({}, "payload.url"),
        ({"url": 7}, "payload.url"),
        ({"url": "ftp://example.com/"}, "payload.url"),
        ({"url": "file:///etc/passwd"}, "payload.url"),
        ({"url": "/etc/passwd"}, "payload.url"),
        ({"url": "http:///x"}, "payload.url"),
        ({"url": "http://example.com:99999/"}, "payload.url"),
        ({"url": "http://example.com:0/"}, "payload.url"),
        ({"url": "http://example.com/\nX: 1"}, "payload.url"),
        ({"url": "http://a b/"}, "payload.url"),
        ({"url": "http://a..b/"}, "payload.url"),
        ({"url": "http://" + "a" * 64 + ".example/"}, "payload.url"),
        ({"url": "http://x/" + "a" * 8192}, "payload.url"),
        ({"method": "CONNECT"}, "payload.method"),
        ({"method": "GET / HTTP/1.1\r\n"}, "payload.method"),
        ({"method": None}, "payload.method"),
        ({"headers": []}, "payload.headers"),
        ({"headers": {"X-A": 1}}, "payload.headers.X-A"),
        ({"headers": {"X-A": "a\r\nX-B: b"}}, "payload.headers.X-A"),
        ({"headers": {"X-A": "ü"}}, "payload.headers.X-A"),
        ({"headers": {"X A": "a"}}, "payload.headers"),
        ({"headers": {"X-A\r\nX-B": "a"}}, "payload.headers"),
        ({"headers": {"X-A": "a", "x-a": "b"}}, "payload.headers.x-a"),
        ({"headers": {"Host": "internal"}}, "payload.headers.Host"),
        ({"headers": {"content-length": "3"}}, "payload.headers.content-length"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "payload.headers.Transfer-Encoding"),
        ({"body": {"a": 1}}, "payload.body"),
        ({"body": "a", "json": 1}, "payload.body and payload.json"),
        ({"timeout": 0}, "payload.timeout"),
        ({"timeout": "5s"}, "payload.timeout"),
        ({"timeout": True}, "payload.timeout"),
        ({"expected_status": "200"}, "payload.expected_status"),
        ({"expected_status": []}, "payload.expected_status"),
        ({"expected_status": [200, 99]}, "payload.expected_status"),
        ({"redirects": 11}, "payload.redirects"),
        ({"redirects": True}, "payload.redirects"),
        ({"idempotency_header": "a b"}, "payload.idempotency_header"),
        ({"idempotency_header": "Host"}, "payload.idempotency_header"),
        ({"verify": False}, "payload.verify is unknown"),
    ],
)
async def test_a_bad_payload_is_refused_for_good_by_its_field(
    attempts: AttemptKit, payload: dict[str, Any], told: str
) -> None:
    given = {"url": "http://127.0.0.1:1/"} | payload
    assert told in refused(await ask(attempts, local(), **given if payload else {}))


# what comes back


@pytest.mark.parametrize(
    "status", ["400 Bad Request", "401 No", "404 Not Found", "418 Teapot", "304 Same", "302 Found"]
)
async def test_what_is_refused_is_not_asked_again(attempts: AttemptKit, status: str) -> None:
    async with web({"/": answer(status, location="http://127.0.0.1:1/elsewhere")}) as server:
        told = refused(await ask(attempts, local(), url=f"{server.url}/"))
    assert f"HTTP {status[:3]} from {server.url}" in told
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", ["429 Slowly", "500 Oh", "502 Bad", "503 Busy", "504 Late", "599 Odd"])
async def test_what_may_pass_is_asked_again_by_the_policy(attempts: AttemptKit, status: str) -> None:
    async with web({"/": answer(status)}) as server:
        outcome = await ask(attempts, local(), url=f"{server.url}/")
    assert f"HTTP {status[:3]}" in retried(outcome)
    assert 1.0 <= (outcome.retry_in or 0) <= 1.1


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7.7),
        ("0", 1, 1.1),
        ("Tue, 24 Nov 2026 10:00:30 GMT", 30, 33),
        ("Tue, 24 Nov 2026 09:00:00 GMT", 1, 1.1),
        ("9999999999999999999999", 3600, 3960),
        ("soon", 1, 1.1),
        ("-5", 1, 1.1),
        ("", 1, 1.1),
    ],
)
async def test_the_server_is_not_asked_before_the_time_it_named(
    attempts: AttemptKit, text: str, least: float, most: float
) -> None:
    reply = answer("503 Busy", retry_after=text, date="Tue, 24 Nov 2026 10:00:00 GMT")
    async with web({"/": reply}) as server:
        outcome = await ask(attempts, local(), url=f"{server.url}/")
    assert least <= (outcome.retry_in or 0) <= most


async def test_the_policy_may_wait_longer_than_the_server_asks(attempts: AttemptKit) -> None:
    settings = TaskType(task_type="http_request", retry_delay=60)
    async with web({"/": answer("429 Slowly", retry_after="5")}) as server:
        outcome = await ask(attempts, local(), {"settings": settings}, url=f"{server.url}/")
    assert 60 <= (outcome.retry_in or 0) <= 66


@pytest.mark.parametrize("expected", [404, [200, 404]])
async def test_a_status_that_is_expected_is_a_success(attempts: AttemptKit, expected: Any) -> None:
    async with web({}) as server:
        outcome = await ask(attempts, local(), url=f"{server.url}/gone", expected_status=expected)
    assert result_of(outcome)["status"] == 404


async def test_a_status_that_is_not_expected_is_none(attempts: AttemptKit) -> None:
    async with web({"/": answer("200 OK")}) as server:
        assert "HTTP 200" in refused(await ask(attempts, local(), url=f"{server.url}/", expected_status=201))


@pytest.mark.parametrize(
    ("content_type", "body", "told"),
    [
        ("text/plain; charset=iso-8859-1", "grün".encode("latin-1"), {"body": "grün"}),
        ("text/plain", "字".encode(), {"body": "字"}),
        ("text/plain; charset=zlib", b"text", {"body": "text"}),
        ("text/plain; charset=utf-7", b"+AGE-", {"body": "+AGE-"}),
        ("image/png", b"\x89PNG\x00\xff", {"base64": base64.b64encode(b"\x89PNG\x00\xff").decode()}),
        ("text/plain", b"a\x00b", {"base64": "YQBi"}),
        ("application/problem+json", b'{"a": 1}', {"json": {"a": 1}}),
        ("application/json", b"{broken", {"body": "{broken"}),
        ("application/json", b"[NaN]", {"body": "[NaN]"}),
        ("application/json", b"1e999", {"body": "1e999"}),
        ("application/json", rb'"\ud800"', {"body": r'"\ud800"'}),
        ("application/json", b"[" * 100_000, {"body": "[" * 100_000}),
        ("application/json", b"1" * 5000, {"body": "1" * 5000}),
        ("application/json", b"", {}),
    ],
)
async def test_a_body_becomes_what_json_can_hold(
    attempts: AttemptKit, content_type: str, body: bytes, told: dict[str, Any]
) -> None:
    async with web({"/": answer(body=body, content_type=content_type)}) as server:
        result = result_of(await ask(attempts, local(), url=f"{server.url}/"))
    assert result == {"status": 200, "headers": {"content-type": content_type}} | told


@pytest.mark.parametrize("worst", [b"1e15,", b'"', "€".encode("windows-1252"), b"\n", b"\xff"])
async def test_no_body_is_too_large_for_a_result(attempts: AttemptKit, worst: bytes) -> None:
    """An answer that cannot be kept would fail a request that has been carried out."""
    body = worst * (MAX_RESPONSE // len(worst))
    types = {b"1e15,": "application/json", b"\xff": "application/octet-stream"}
    if worst == b"1e15,":
        body = b"[" + body[: 5 * (MAX_RESPONSE // 5 - 1)] + b"1]"
    kind = types.get(worst, "text/plain; charset=windows-1252")
    async with web({"/": answer(body=body, content_type=kind)}) as server:
        result = result_of(await ask(attempts, local(), url=f"{server.url}/"))
    assert "truncated" not in result


async def test_other_headers_are_kept_if_asked_for(attempts: AttemptKit) -> None:
    async with web({"/": answer(x_rate_limit="3", x_long="a" * 5000)}) as server:
        result = result_of(
            await ask(attempts, local(keep_headers=["X-Rate-Limit", "X-Long"]), url=f"{server.url}/")
        )
    assert result["headers"] == {"x-rate-limit": "3", "x-long": "a" * 1024}


async def test_head_has_no_body(attempts: AttemptKit) -> None:
    async with web({"/": answer(content_length="1000")}) as server:
        assert result_of(await ask(attempts, local(), url=f"{server.url}/", method="HEAD"))["status"] == 200


# too much, too slow, broken


async def endless(stream: Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        await stream.send_all("ü".encode() * 10_000)


async def test_of_an_endless_body_the_beginning_is_kept(attempts: AttemptKit) -> None:
    async with web({"/": endless}) as server:
        result = result_of(await ask(attempts, local(max_response=1001), url=f"{server.url}/"))
        with trio.fail_after(10):
            while not server.gone:
                await trio.sleep(0.01)
    assert result["truncated"] is True
    assert result["body"] == "ü" * 500


async def test_a_compressed_bomb_is_not_unpacked(attempts: AttemptKit) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    async with web({"/": answer(body=bomb, content_encoding="gzip")}) as server:
        result = result_of(await ask(attempts, local(max_response=10), url=f"{server.url}/"))
    assert result["truncated"] is True
    assert result["base64"] == base64.b64encode(bytes(10)).decode()


async def test_a_body_that_unpacks_to_nothing_for_ever_is_left(attempts: AttemptKit) -> None:
    async def nothings(stream: Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
        while True:
            await stream.send_all(gzip.compress(b"") * 1000)

    async with web({"/": nothings}) as server:
        assert result_of(await ask(attempts, local(), url=f"{server.url}/"))["truncated"] is True


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (gzip.compress(b"hello"), {"body": "hello"}),
        (gzip.compress(b"hel") + gzip.compress(b"lo"), {"body": "hello"}),
        (gzip.compress(b"hello") + b"\x00\x00", {"body": "hello"}),
        (gzip.compress(b"hello")[:-9], {"body": "hello", "truncated": True}),
        (b"not packed", {"truncated": True, "body": ""}),
        (b"", {}),
    ],
    ids=["whole", "in two parts", "with padding", "cut short", "not packed", "empty"],
)
async def test_a_packed_body_is_unpacked(attempts: AttemptKit, body: bytes, told: dict[str, Any]) -> None:
    async with web({"/": answer(body=body, content_encoding="gzip", content_type="text/plain")}) as server:
        result = result_of(await ask(attempts, local(), url=f"{server.url}/"))
    assert result == {"status": 200, "headers": {"content-type": "text/plain"}} | told


async def test_what_cannot_be_unpacked_is_kept_as_it_came(attempts: AttemptKit) -> None:
    async with web({"/": answer(body=b"brrr", content_encoding="br")}) as server:
        result = result_of(await ask(attempts, local(), url=f"{server.url}/"))
    assert result["headers"] == {"content-encoding": "br"}
    assert result["base64"] == base64.b64encode(b"brrr").decode()


async def drip(stream: Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await stream.send_all(b".")
        await trio.sleep(0.01)


@pytest.mark.parametrize("slow", [silence, drip], ids=["silent", "dripping"])
async def test_a_slow_server_is_left_when_the_time_is_over(attempts: AttemptKit, slow: Any) -> None:
    async with web({"/": slow}) as server:
        outcome = await ask(attempts, local(), {"timeout": 0.3}, url=f"{server.url}/")
        assert outcome.status is Status.TIMEOUT
        outcome = await ask(attempts, local(), url=f"{server.url}/", timeout=0.3)
        assert "no full answer" in retried(outcome)
        with trio.fail_after(10):
            while server.gone < 2:
                await trio.sleep(0.01)


async def early(stream: Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


async def gibberish(stream: Stream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.9\r\n")


async def endless_head(stream: Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"X-Header: " + b"a" * 1000 + b"\r\n")


@pytest.mark.parametrize("broken", [hang_up, early, gibberish, endless_head])
async def test_a_broken_answer_is_asked_for_again(attempts: AttemptKit, broken: Any) -> None:
    async with web({"/": broken}) as server:
        told = retried(await ask(attempts, local(), url=f"{server.url}/"))
    assert "ended early" in told


async def test_a_server_that_is_not_there_is_asked_again(attempts: AttemptKit) -> None:
    async with web() as server:
        pass
    assert "connection refused" in retried(await ask(attempts, local(), url=f"{server.url}/"))


async def test_a_server_that_refuses_a_large_body_is_heard(attempts: AttemptKit) -> None:
    async def too_large(stream: Stream) -> None:
        await stream.receive_some(100)
        await stream.send_all(answer("413 Too Large"))
        await silence(stream)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            functools.partial(trio.serve_tcp, too_large, 0, host="127.0.0.1")
        )
        port = listeners[0].socket.getsockname()[1]
        url = f"http://127.0.0.1:{port}/"
        told = refused(await ask(attempts, local(), url=url, method="POST", body="a" * 5_000_000))
        nursery.cancel_scope.cancel()
    assert "HTTP 413" in told


# TLS


async def test_a_name_is_kept_for_tls_though_its_address_is_pinned(
    attempts: AttemptKit, cert: Certificate
) -> None:
    names = Names(api_example_test=["127.0.0.1"])
    async with web({"/": answer()}, cert.server) as server:
        executor = local(tls_ca=str(cert.authority), lookup=names)
        result_of(await ask(attempts, executor, url=f"https://{NAME}:{server.port}/"))
        result_of(await ask(attempts, executor, url=f"https://{NAME.upper()}.:{server.port}/"))
        result_of(await ask(attempts, executor, url=f"{server.url}/"))
    assert server.asked[0].headers["host"] == f"{NAME}:{server.port}"
    assert names.asked == [NAME, NAME]


async def test_a_certificate_for_another_name_is_not_accepted(attempts: AttemptKit, cert: Certificate) -> None:
    async with web({"/": answer()}, cert.server) as server:
        executor = local(tls_ca=str(cert.authority), lookup=Names(other_example_test=["127.0.0.1"]))
        told = retried(await ask(attempts, executor, url=f"https://other.example.test:{server.port}/"))
    assert "certificate is not trusted" in told
    assert server.asked == []


async def test_a_certificate_of_nobody_known_is_not_accepted(attempts: AttemptKit, cert: Certificate) -> None:
    async with web({"/": answer()}, cert.server) as server:
        told = retried(await ask(attempts, local(), url=f"{server.url}/"))
    assert "certificate is not trusted" in told
    assert server.asked == []


async def test_a_server_without_tls_is_told(attempts: AttemptKit) -> None:
    async with web({"/": answer()}) as server:
        told = retried(await ask(attempts, local(), url=f"https://127.0.0.1:{server.port}/"))
    assert server.asked == []
    assert "no TLS connection" in told


# where it may go


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"])
async def test_a_private_address_is_refused(
    attempts: AttemptKit, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with web({"/": answer()}) as server:
        told = refused(await ask(attempts, HttpExecutor(), url=f"http://{host}:{server.port}/"))
    assert "payload.url" in told
    assert server.came == 0
    assert host.strip("[]") in caplog.text


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0x7f.1", "017700000001", "127.1", "127.0.0.01", "1.2.3.4.5", "0", "0x", "1."],
)
async def test_an_address_in_disguise_is_refused(attempts: AttemptKit, host: str) -> None:
    async with web({"/": answer()}) as server:
        told = refused(await ask(attempts, HttpExecutor(), url=f"http://{host}:{server.port}/"))
        assert "payload.url" in told
        refused(await ask(attempts, local(), url=f"http://{host}:{server.port}/"))
    assert server.came == 0


async def test_a_name_with_a_private_address_is_refused_and_the_address_not_told(attempts: AttemptKit) -> None:
    executor = HttpExecutor(lookup=Names(intra_example_test=["93.184.215.14", "10.20.30.40"]))
    outcome = await ask(attempts, executor, url="http://intra.example.test/")
    assert "intra.example.test is at an address that may not be reached" in refused(outcome)
    assert "10.20.30.40" not in f"{outcome}"


async def test_a_name_that_changes_its_address_is_asked_once(attempts: AttemptKit) -> None:
    """DNS rebinding: what was looked at is what is connected to."""
    names = Names(evil_example_test=[["127.0.0.1"], ["127.0.0.2"]])
    async with web({"/": answer()}) as server:
        executor = HttpExecutor(allow=["127.0.0.1"], lookup=names)
        result_of(await ask(attempts, executor, url=f"http://evil.example.test:{server.port}/"))
        assert server.came == 1
        assert names.asked == ["evil.example.test"]
        refused(await ask(attempts, executor, url=f"http://evil.example.test:{server.port}/"))
        assert server.came == 1


async def test_a_name_that_is_not_found_is_asked_again(attempts: AttemptKit) -> None:
    told = retried(await ask(attempts, HttpExecutor(lookup=Names()), url="http://nowhere.example.test/"))
    assert "http://nowhere.example.test: its name leads to no address" in told


async def test_the_systems_resolver_finds_this_host(attempts: AttemptKit) -> None:
    async with web({"/": answer()}) as server:
        result_of(await ask(attempts, HttpExecutor(allow=["localhost"]), url=f"http://localhost:{server.port}/"))
        refused(await ask(attempts, HttpExecutor(), url=f"http://localhost:{server.port}/"))
    assert server.came == 1


async def test_an_address_that_is_dead_is_passed_over(attempts: AttemptKit) -> None:
    async with web({"/": answer()}) as server:
        executor = local(lookup=Names(api_example_test=["127.0.0.2", "127.0.0.1"]))
        result_of(await ask(attempts, executor, url=f"http://{NAME}:{server.port}/"))


async def test_no_proxy_of_the_environment_is_used(attempts: AttemptKit, monkeypatch: pytest.MonkeyPatch) -> None:
    async with web({"/": answer()}) as proxy, web({"/": answer()}) as server:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        result_of(await ask(attempts, local(), url=f"{server.url}/"))
    assert (proxy.came, server.came) == (0, 1)


# redirects


async def test_a_redirect_is_followed_if_asked_for(attempts: AttemptKit) -> None:
    async with web({"/old": answer("301 Moved", location="/new?x=1"), "/new": answer(body=b"here")}) as server:
        outcome = await ask(
            attempts, local(), url=f"{server.url}/old", redirects=1, headers={"Authorization": "Bearer s"}
        )
    assert result_of(outcome)["body"] == "here"
    assert [asked.target for asked in server.asked] == ["/old", "/new?x=1"]
    assert server.asked[1].headers["authorization"] == "Bearer s"


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        ("301 Moved", "POST", ("GET", b"")),
        ("302 Found", "POST", ("GET", b"")),
        ("302 Found", "PUT", ("PUT", b"data")),
        ("303 See", "PUT", ("GET", b"")),
        ("307 Again", "POST", ("POST", b"data")),
        ("308 Again", "POST", ("POST", b"data")),
    ],
)
async def test_a_redirect_keeps_the_method_or_not(
    attempts: AttemptKit, status: str, method: str, then: tuple[str, bytes]
) -> None:
    async with web({"/old": answer(status, location="/new"), "/new": answer()}) as server:
        result_of(await ask(attempts, local(), url=f"{server.url}/old", method=method, body="data", redirects=1))
    assert (server.asked[1].method, server.asked[1].body) == then
    assert ("content-type" in server.asked[1].headers) is bool(then[1])


async def test_secrets_do_not_follow_to_another_host(attempts: AttemptKit) -> None:
    headers = {"Authorization": "Bearer s", "Cookie": "c=1", "X-Api-Key": "k", "Accept": "text/plain"}
    async with web({"/": answer()}) as other, web() as server:
        server.answers["/"] = answer("307 Go", location=f"{other.url}/")
        result_of(await ask(attempts, local(), url=f"{server.url}/", headers=headers, redirects=3))
    assert server.asked[0].headers["authorization"] == "Bearer s"
    assert not {"authorization", "cookie", "x-api-key"} & set(other.asked[0].headers)
    assert other.asked[0].headers["accept"] == "text/plain"


async def test_a_redirect_to_a_private_address_is_refused(attempts: AttemptKit) -> None:
    async with web({"/": answer()}) as inner, web() as server:
        for target in (
            f"http://127.0.0.2:{inner.port}/",
            "http://169.254.169.254/",
            "http://[::1]/",
            "http://2130706433/",
        ):
            server.answers["/"] = answer("302 Found", location=target)
            executor = HttpExecutor(allow=["127.0.0.1"])
            told = refused(await ask(attempts, executor, url=f"{server.url}/", redirects=5))
            assert "payload.url" in told
    assert inner.came == 0


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/", "file:///etc/passwd", "http://127.0.0.1:99999/", "\x7f"])
async def test_a_redirect_to_nowhere_is_refused(attempts: AttemptKit, location: str) -> None:
    async with web({"/": answer("302 Found", location=location)}) as server:
        outcome = await ask(attempts, local(), url=f"{server.url}/", redirects=1)
    assert outcome.status is Status.FAILED
    assert len(server.asked) == 1


async def test_redirects_in_a_circle_end(attempts: AttemptKit) -> None:
    async with web({"/": answer("302 Found", location="/")}) as server:
        assert "more than 3 redirects" in refused(await ask(attempts, local(), url=f"{server.url}/", redirects=3))
    assert len(server.asked) == 4


async def test_a_redirect_out_of_tls_is_refused(attempts: AttemptKit, cert: Certificate) -> None:
    async with web({"/": answer()}) as open_one, web({}, cert.server) as server:
        server.answers["/"] = answer("302 Found", location=f"{open_one.url}/")
        executor = local(tls_ca=str(cert.authority))
        assert "from https to http" in refused(await ask(attempts, executor, url=f"{server.url}/", redirects=1))
    assert open_one.came == 0


# secrets


async def test_nothing_secret_is_told(attempts: AttemptKit, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "atm")
    caplog.set_level(logging.INFO)
    payload = {
        "headers": {"Authorization": "Bearer s3cret-header"},
        "body": "s3cret-body",
        "method": "POST",
    }
    async with web(
        {"/s3cret-path": answer("500 Oh", body=b"s3cret-answer", location="/s3cret-location")}
    ) as server:
        url = server.url.replace("//", "//me:s3cret-password@") + "/s3cret-path?key=s3cret-query"
        for answered in (
            answer("500 Oh"),
            answer("400 No"),
            hang_up,
            gibberish,
            answer("302 F", location="http://s3cret:x@["),
        ):
            server.answers["/s3cret-path"] = answered
            outcome = await ask(attempts, local(), url=url, redirects=1, **payload)
            assert outcome.status is Status.FAILED
            assert "s3cret" not in f"{outcome.message} {outcome.error_json} {outcome.details}"
        outcome = await ask(attempts, HttpExecutor(), url=url, **payload)
        assert "s3cret" not in f"{outcome.message} {outcome.error_json} {outcome.details}"
    assert len(server.asked) == 5
    assert "s3cret" not in caplog.text


# settings


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"allow": "10.0.0.0/8"}, "allow"),
        ({"allow": ["10.0.0.1/8"]}, "allow"),
        ({"allow": ["not a host"]}, "allow"),
        ({"allow": ["10.0.0"]}, "allow"),
        ({"allow": ["http://example.com"]}, "allow"),
        ({"allow": [7]}, "allow"),
        ({"public": "no"}, "public"),
        ({"tls_ca": "/not/there.pem"}, "tls_ca"),
        ({"max_response": 10**9}, "max_response"),
        ({"max_response": True}, "max_response"),
        ({"idempotency_header": "a b"}, "idempotency_header"),
        ({"keep_headers": "x"}, "keep_headers"),
        ({"lookup": "x"}, "lookup"),
    ],
)
def test_a_wrong_setting_is_named(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpExecutor(**config)
    assert caught.value.key == key


async def test_nothing_public_is_reached_where_the_config_says_so(attempts: AttemptKit) -> None:
    executor = HttpExecutor(public=False, allow=["*.example.test"], lookup=Names(example_com=["93.184.215.14"]))
    refused(await ask(attempts, executor, url="http://example.com/"))
