"""A node with API keys answers nothing but its probes without one, and to each key only what it is good for."""

from __future__ import annotations

import hmac
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.site import BATCH, PATIENCE, TASKS, Answer, Site, assert_problem, assert_success, post, request, talk
from atm.api import keys
from atm.api.keys import Keys, hash_of, new_key, scope_for
from atm.config import ApiKey, KeyScope

MakeSite = Callable[..., Site]

SCOPES: tuple[KeyScope, ...] = ("read", "submit", "cancel", "admin")
SECRETS = {scope: new_key() for scope in SCOPES}
CONFIGURED = [ApiKey(name=f"for-{scope}", hash=hash_of(SECRETS[scope]), scopes=[scope]) for scope in SCOPES]
TYPES = "/api/v1/task-types"
NO_ID = "0199d3f0-5b6e-7000-8a4c-3f1f2a9d7c11"

LAST = "Connection: close"
"""Lets the answer to a HEAD end."""

CALLS: list[tuple[str, str, KeyScope]] = [
    ("GET", TASKS, "read"),
    ("HEAD", TASKS, "read"),
    ("GET", f"{TASKS}/{NO_ID}", "read"),
    ("GET", f"{TASKS}/{NO_ID}?wait=0", "read"),
    ("GET", f"{TASKS}/{NO_ID}/logs", "read"),
    ("GET", "/api/v1/workers", "read"),
    ("GET", "/api/v1/queues", "read"),
    ("GET", TYPES, "read"),
    ("POST", TASKS, "submit"),
    ("POST", f"{TASKS}/", "submit"),
    ("POST", BATCH, "submit"),
    ("POST", f"{TASKS}/{NO_ID}/retry", "submit"),
    ("POST", f"{TASKS}/{NO_ID}/cancel", "cancel"),
    ("POST", f"{TASKS}/{NO_ID}/cancel/", "cancel"),
    ("PUT", f"{TYPES}/echo", "admin"),
]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A node with one key for each scope."""
    with Site(tmp_path_factory.mktemp("locked"), keys=CONFIGURED) as made:
        yield made


def bearer(scope: KeyScope) -> str:
    return f"Authorization: Bearer {SECRETS[scope]}"


def assert_locked(answer: Answer) -> None:
    """401, with what a client needs to know and nothing else."""
    assert answer.status_code == 401, answer.received
    assert answer.headers["www-authenticate"] == "Bearer"
    assert set(answer.headers) <= {"content-type", "content-length", "www-authenticate", "date", "connection"}
    if answer.text:
        assert_problem(answer, 40101)


# who may do what


@pytest.mark.parametrize(("method", "target", "needed"), CALLS)
def test_a_call_asks_for_its_scope_and_admin_has_them_all(
    locked: Site, method: str, target: str, needed: KeyScope
) -> None:
    assert_locked(locked.raw(request(method, target, LAST)))
    for scope in SCOPES:
        answer = locked.raw(request(method, target, LAST, bearer(scope)))
        if scope in (needed, "admin"):
            assert answer.status_code not in (401, 403), answer.received
        else:
            assert answer.status_code == 403
            if method != "HEAD":
                assert f"scope {needed}" in assert_problem(answer, 40303)["message"]


def test_every_route_has_a_scope_that_was_chosen_for_it(locked: Site) -> None:
    served = {
        (method, re.sub(r"<\w+>", "x", rule.rule))
        for rule in locked.rules
        for method in (rule.methods or set()) - {"OPTIONS"}
    }
    chosen = {(method, target.partition("?")[0].rstrip("/").replace(NO_ID, "x")) for method, target, _ in CALLS}
    chosen |= {("PUT", f"{TYPES}/x")}
    missing = {call for call in served - chosen if call[0] not in ("GET", "HEAD")}
    assert not missing
    assert {call for call in served if scope_for(*call) is None} == {
        (method, path) for method in ("GET", "HEAD") for path in ("/livez", "/readyz", "/openapi.json", "/docs")
    }
    assert {call for call in served if scope_for(*call) == "admin"} == {("PUT", f"{TYPES}/x")}


@pytest.mark.parametrize(
    "path",
    [
        "//api/v1/tasks",
        "/x/api/v1/tasks",
        "/api/v1/tasks/a",
        "/api/v1/tasks/a/b/retry",
        "/api/v1/tasks/a/cancel/b",
        "/api/v1/tasks/a/cancel\n",
        "/api/v1/tasks//cancel",
        "/api/v1/tasks/cancel",
        "/x/api/v1/tasks/a/cancel",
        "/",
        "",
    ],
)
def test_a_call_that_nobody_foresaw_needs_admin(path: str) -> None:
    assert scope_for("POST", path) == "admin"
    assert scope_for("DELETE", TASKS) == scope_for("get", "/livez") == scope_for("OPTIONS", "/livez") == "admin"


def test_a_key_with_its_scopes_works_from_the_create_to_the_end(make_site: MakeSite) -> None:
    secret = new_key()
    site = make_site(keys=[ApiKey(name="ci", hash=hash_of(secret), scopes=["read", "submit"])])
    for headers in ({"Authorization": f"Bearer {secret}"}, {"X-API-Key": secret}):
        with httpx.Client(base_url=site.url, headers=headers, timeout=PATIENCE) as client:
            made = assert_success(client.post(TASKS, json={"task_type": "echo", "payload": {"a": 1}}), 201)
            ended = assert_success(client.get(f"{TASKS}/{made['task_id']}", params={"wait": PATIENCE}))
            assert (ended["status"], ended["result"]) == ("SUCCESS", {"a": 1})
            assert_problem(client.post(f"{TASKS}/{made['task_id']}/cancel"), 40303)


def test_probes_and_readers_of_the_documents_need_no_key(locked: Site) -> None:
    for path in ("/livez", "/readyz", "/livez/", "/openapi.json", "/docs"):
        assert locked.raw(request("GET", path)).status_code == 200
        assert locked.raw(request("HEAD", path, LAST)).status_code == 200
        assert locked.raw(request("GET", path, "Authorization: Bearer wrong")).status_code == 200


def test_metrics_can_be_read_by_those_who_may_read(locked: Site) -> None:
    ask = "GET", "/metrics"
    assert_locked(talk(locked.metrics_port, request(*ask)))
    assert_problem(talk(locked.metrics_port, request(*ask, bearer("submit"))), 40303)
    answer = talk(locked.metrics_port, request(*ask, bearer("read")))
    assert answer.status_code == 200
    assert "atm_leader" in answer.text


def test_without_keys_none_is_asked_for(site: Site) -> None:
    assert site.raw(request("GET", TASKS)).status_code == 200
    assert site.raw(request("GET", TASKS, "Authorization: Bearer anything")).status_code == 200


# how a key is shown


@pytest.mark.parametrize(
    "headers",
    [
        "Authorization: Bearer {}",
        "authorization: bearer {}",
        "AUTHORIZATION: BEARER   {}  ",
        "X-API-Key: {}",
        "x-api-key:   {}  ",
        "Authorization: Bearer {}\r\nX-API-Key: {}",
        "X-API-Key: {}\r\nX-API-Key: {}",
        # A proxy's own, which is passed on.
        "Authorization: Basic dTpw\r\nX-API-Key: {}",
    ],
)
def test_a_key_is_shown_in_either_header(locked: Site, headers: str) -> None:
    shown = headers.replace("{}", SECRETS["read"])
    assert locked.raw(request("GET", TASKS, *shown.split("\r\n"))).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        "Authorization:",
        "Authorization: {}",
        "Authorization: Bearer",
        "Authorization: Bearer ",
        "Authorization: Bearer{}",
        "Authorization: Bearer\t{}",
        "Authorization: Bearer {}x",
        "Authorization: Bearer x{}",
        "Authorization: Bearer {} {}",
        "Authorization: Bearer {}, Bearer {}",
        'Authorization: Bearer "{}"',
        "Authorization: Basic {}",
        "Authorization: Token {}",
        "Proxy-Authorization: Bearer {}",
        "X-API-Key:",
        "X-API-Key: {}, {}",
        "X-API-Key: Bearer {}",
        "X_API_Key: {}",
        "X-Forwarded-Authorization: Bearer {}",
        "Cookie: key={}; Authorization=Bearer {}; X-API-Key={}",
        "Authorization: Bearer \xff\xfe",
        # Which of two counts is not to be guessed.
        "Authorization: Bearer {}\r\nX-API-Key: wrong",
        "Authorization: Bearer wrong\r\nX-API-Key: {}",
        "Authorization: Bearer {}\r\nAuthorization: Bearer wrong",
        "X-API-Key: wrong\r\nX-API-Key: {}",
        "Authorization: Bearer\r\nX-API-Key: {}",
    ],
)
def test_anything_else_shows_no_key(locked: Site, headers: str) -> None:
    shown = headers.replace("{}", SECRETS["admin"])
    assert_locked(locked.raw(request("GET", TASKS, *shown.split("\r\n"))))


def test_two_good_keys_that_differ_are_refused(locked: Site) -> None:
    answer = locked.raw(request("GET", TASKS, bearer("read"), f"X-API-Key: {SECRETS['admin']}"))
    assert_locked(answer)


def test_a_key_in_the_query_is_none(locked: Site) -> None:
    for name in ("key", "api_key", "access_token", "X-API-Key"):
        assert_locked(locked.raw(request("GET", f"{TASKS}?{name}={SECRETS['admin']}")))


def test_the_hash_is_not_the_key(locked: Site) -> None:
    for shown in (CONFIGURED[3].hash, CONFIGURED[3].hash.partition(":")[2], CONFIGURED[3].name):
        assert_locked(locked.raw(request("GET", TASKS, f"Authorization: Bearer {shown}")))


def test_each_request_of_a_connection_shows_its_own_key(locked: Site) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), PATIENCE) as sock:
        sock.sendall(request("GET", "/api/v1/queues", bearer("read")))
        sock.sendall(request("GET", "/api/v1/queues"))
        sock.sendall(request("GET", "/livez", LAST))
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"401", b"200"]


# no key, but ideas


def targets() -> list[str]:
    """Ways to spell a path so that one reader may take it for another than the next does."""
    shapes = [
        "{}", "{}/", "/{}", "//{}", "/.{}", "/x/..{}", "/livez/..{}", "/livez/%2e%2e{}", "/livez%2f..{}",
        "/livez;{}", "/livez%3f{}", "/livez%23{}", "/livez%00{}", "/livez%0d%0a{}", "/livez{}", "//livez{}",
        "{}/livez", "{}%2flivez", "{}?/livez", "{};/livez", "{}/%2e%2e/livez", "{}/../../../livez",
        "http://localhost{}", "HTTP://localhost/{}", "http://livez{}", "http://localhost:80{}?/livez",
    ]  # fmt: skip
    paths = [TASKS, BATCH, f"{TASKS}/{NO_ID}/cancel", f"{TYPES}/echo", "/api/v1/workers", "/metrics", "/x"]
    spelt = ["/%61pi/v1/tasks", "/api%2fv1%2ftasks", "/API/V1/TASKS", "/api//v1//tasks", "/api/v1/./tasks"]
    return [shape.format(path) for shape in shapes for path in paths + spelt]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
def test_no_spelling_of_a_path_gets_round_the_keys(locked: Site, method: str) -> None:
    for target in targets():
        answer = locked.raw(request(method, target))
        assert answer.status_code in (400, 401, 403), (target, answer.received)
        if answer.status_code != 401:
            assert_problem(answer, {400: 40002, 403: 40301}[answer.status_code])


@pytest.mark.parametrize(
    "method",
    [
        "HEAD",
        "OPTIONS",
        "DELETE",
        "PATCH",
        "TRACE",
        "PROPFIND",
        "CONNECT",
        "get",
        "Get",
        "GETS",
        "BREW",
        "M-SEARCH",
    ],
)
@pytest.mark.parametrize("target", [TASKS, f"{TYPES}/echo", "/", "/nowhere", "/static/x", "/metrics"])
def test_no_method_gets_round_the_keys(locked: Site, method: str, target: str) -> None:
    assert_locked(locked.raw(request(method, target, LAST)))
    assert_locked(talk(locked.metrics_port, request(method, target, LAST)))


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "DELETE", "get", "CONNECT"])
def test_only_a_get_of_a_probe_is_open(locked: Site, method: str) -> None:
    for path in ("/livez", "/readyz"):
        assert_locked(locked.raw(request(method, path)))


@pytest.mark.parametrize(
    "header",
    [
        "X-HTTP-Method-Override: GET",
        "X-Original-URL: /livez",
        "X-Rewrite-URL: /livez",
        "X-Forwarded-Prefix: /livez",
        "X-Script-Name: /livez",
        "X-Forwarded-For: 127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "Forwarded: for=127.0.0.1",
        "Upgrade: h2c",
        "Connection: Authorization, X-API-Key",
    ],
)
def test_no_header_gets_round_the_keys(locked: Site, header: str) -> None:
    assert_locked(locked.raw(request("GET", TASKS, header)))


def test_the_wish_for_a_websocket_needs_a_key_as_well(locked: Site) -> None:
    wish = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    assert_locked(locked.raw(request("GET", TASKS, *wish)))


def test_old_http_needs_a_key_as_well(locked: Site) -> None:
    assert_locked(locked.raw(f"GET {TASKS} HTTP/1.0\r\n\r\n".encode()))


def test_a_huge_head_is_refused_as_ever(locked: Site) -> None:
    answer = locked.raw(request("GET", TASKS, f"Authorization: Bearer {'x' * 200_000}"))
    assert_problem(answer, 43101)
    assert_locked(locked.raw(request("GET", TASKS, f"X-API-Key: {'x' * 10_000}")))
    many = [f"X-API-Key: {number}" for number in range(500)]
    assert_locked(locked.raw(request("GET", TASKS, *many)))


def test_the_body_of_a_stranger_is_not_looked_at(locked: Site) -> None:
    assert_locked(locked.raw(post(b"{" * 100_000)))
    assert_locked(locked.raw(post(b'{"task_type":"nobody","payload":{"from":"a stranger"}}')))
    chunked = request("POST", TASKS, "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert_locked(locked.raw(chunked + b"2\r\n{}\r\n0\r\n\r\n"))
    found = locked.raw(request("GET", f"{TASKS}?task_type=nobody", bearer("read")))
    assert "a stranger" not in found.text


def test_a_stranger_learns_nothing_of_what_is_there(locked: Site) -> None:
    """The same refusal for what is there, what is not, and what makes no sense."""
    made = json.loads(locked.raw(post(b'{"task_type":"nobody"}', bearer("submit"))).text)["data"]["task_id"]
    told = set()
    for target in (f"{TASKS}/{made}", f"{TASKS}/{NO_ID}", f"{TASKS}?limit=0", "/nowhere", "/api/v2"):
        answer = json.loads(locked.raw(request("GET", target)).text)
        del answer["request_id"]
        told.add(json.dumps(answer))
    assert len(told) == 1


def test_pages_of_other_sites_are_refused_with_a_key_too(locked: Site) -> None:
    for header in ("Origin: http://evil.example", "Sec-Fetch-Site: cross-site"):
        assert_problem(locked.raw(request("GET", TASKS, header, bearer("admin"))), 40302)


# where the Host does not matter


def test_any_host_will_do_where_it_is_not_checked_but_the_key_is(make_site: MakeSite) -> None:
    site = make_site(hosts=None, keys=CONFIGURED)
    for host in (
        "atm.example",
        "10.0.0.7:8080",
        "[fe80::1]:80",
        "localhost",
        "a_b",
        "atm.example.",
        f"{'x' * 63}.y",
    ):
        assert site.raw(request("GET", TASKS, bearer("read"), host=host)).status_code == 200
        assert_locked(site.raw(request("GET", TASKS, host=host)))
        assert_problem(site.raw(request("GET", TASKS, bearer("read"), "Origin: http://x", host=host)), 40302)
        assert site.raw(request("GET", "/livez", host=host)).status_code == 200
    strange = (
        "",
        " ",
        ".",
        "a..b",
        ".a",
        "x" * 64,
        "a." * 127 + "a",
        "user@atm.example",
        "a b",
        "ä",
        "\xff",
        "[x]",
        "%61",
    )
    for host in strange:
        assert_problem(site.raw(request("GET", "/livez", host=host)), 40301)
    for target in ("http://a..b/livez", "http://./livez", "http:///livez"):
        assert_problem(site.raw(request("GET", target)), 40301)


@given(st.binary(max_size=40), st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_whatever_is_shown_is_compared_and_never_a_surprise(name: bytes, value: bytes) -> None:
    known = Keys(CONFIGURED)
    for header in (name.lower(), b"authorization", b"x-api-key"):
        for shown in (value, b"Bearer " + value):
            assert known.refusal("GET", TASKS, [(header, shown)]) is not None


# what is kept secret


def test_a_key_is_compared_with_every_key_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return hmac.compare_digest(one, other)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(keys, "hmac", Watched)
    known = Keys(CONFIGURED)
    for shown in (*SECRETS.values(), "wrong"):
        compared.clear()
        known.refusal("GET", TASKS, [(b"x-api-key", shown.encode())])
        assert len(compared) == len(CONFIGURED)


def test_the_log_names_a_key_at_debug_level_and_never_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    known = Keys(CONFIGURED)
    with caplog.at_level(logging.DEBUG, "atm"):
        for shown in (SECRETS["read"], SECRETS["submit"], "a-wrong-one"):
            known.refusal("GET", TASKS, [(b"authorization", b"Bearer " + shown.encode())])
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "for-read" in caplog.text
    for secret in (*SECRETS.values(), "a-wrong-one", *(key.hash.partition(":")[2] for key in CONFIGURED)):
        assert secret not in caplog.text


def test_keys_are_long_and_never_the_same() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"atm_[A-Za-z0-9_-]{43}", key) for key in made)
