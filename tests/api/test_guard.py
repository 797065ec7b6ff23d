"""What a browser can be made to send from another site's page is refused, whatever it asks for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from api.site import TASKS, Site, assert_problem, request, talk
from atm.api.guard import Guard

MakeSite = Callable[..., Site]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost",
        "127.0.0.1",
        "[::1]",
        "localhost:8080",
        "127.0.0.1:1",
        "[::1]:65535",
        "localhost:",
    ],
)
def test_names_of_loopback_are_ours(site: Site, host: str) -> None:
    assert site.raw(request("GET", "/livez", host=host)).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "localhost.",
        "127.0.0.1.evil.example",
        "127.0.0.2",
        "10.0.0.1",
        "0",
        "2130706433",
        "::1",
        "[::1",
        "[::1]evil.example",
        "[::1]:evil",
        "[::2]",
        "[localhost]",
        "localhost:evil",
        "localhost:80:80",
        "localhost@evil.example",
        "user@localhost",
        "localhost/",
        "localhost evil.example",
        "localhost,evil.example",
        "lócalhost",
        "\xff",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_any_other_host_is_refused_by_every_method(site: Site, host: str, method: str) -> None:
    assert_problem(site.raw(request(method, TASKS, host=host)), 40301)


def test_the_metrics_are_guarded_as_well(site: Site) -> None:
    assert_problem(talk(site.metrics_port, request("GET", "/metrics", host="evil.example")), 40301)


def test_a_request_without_a_host_is_no_browsers(site: Site) -> None:
    assert site.raw(b"GET /livez HTTP/1.0\r\n\r\n").status_code == 200
    assert_problem(site.raw(b"GET /livez HTTP/1.0\r\nOrigin: null\r\n\r\n"), 40302)


def test_allowed_hosts_are_ours_too(make_site: MakeSite) -> None:
    site = make_site(hosts=["Atm.Example", "10.1.2.3", "fe80::1", "[fe80::2]"])
    for host in ("atm.example", "ATM.example:8080", "10.1.2.3:80", "[fe80::1]:80", "[FE80::2]", "localhost"):
        assert site.raw(request("GET", "/livez", host=host)).status_code == 200
    assert_problem(site.raw(request("GET", "/livez", host="www.atm.example")), 40301)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8080", "localhost:8080"),
        ("HTTP://LOCALHOST:8080", "localhost:8080"),
        ("http://localhost", "localhost"),
        ("https://localhost", "localhost"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_our_own_origin_may_ask(site: Site, origin: str, host: str) -> None:
    assert site.raw(request("GET", "/livez", f"Origin: {origin}", host=host)).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://localhost",
        "http://localhost:3000",
        "http://127.0.0.1:8080",
        "http://localhost:8080.evil.example",
        "http://localhost:8080@evil.example",
        "localhost:8080",
        "file://",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "DELETE"])
def test_any_other_origin_is_refused(site: Site, origin: str, method: str) -> None:
    answer = site.raw(request(method, TASKS, f"Origin: {origin}", host="localhost:8080"))
    assert_problem(answer, 40302)


@pytest.mark.parametrize(("relation", "status"), [("same-origin", 200), ("none", 200)])
def test_what_the_user_asked_for_is_served(site: Site, relation: str, status: int) -> None:
    assert site.raw(request("GET", "/livez", f"Sec-Fetch-Site: {relation}")).status_code == status


@pytest.mark.parametrize("relation", ["cross-site", "same-site", "", "anything"])
def test_what_another_site_asked_for_is_refused(site: Site, relation: str) -> None:
    assert_problem(site.raw(request("GET", "/livez", f"Sec-Fetch-Site: {relation}")), 40302)


def test_nothing_is_done_for_another_site(make_site: MakeSite) -> None:
    site = make_site()
    body = b'{"task_type":"nobody"}'
    for header in ("Origin: http://evil.example", "Sec-Fetch-Site: cross-site"):
        answer = site.raw(request("POST", TASKS, "Content-Type: application/json", header, body=body))
        assert_problem(answer, 40302)
    assert site.http.get(TASKS).json()["data"]["tasks"] == []


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://localhost/livez", "evil.example"),
        ("HTTP://LOCALHOST:80/livez?a=b", "localhost"),
        ("https://[::1]:1/livez", ""),
    ],
)
def test_the_host_in_an_absolute_target_is_the_one_that_counts(site: Site, target: str, host: str) -> None:
    answer = site.raw(request("GET", target, host=host))
    assert answer.status_code == 200
    assert answer.text == '{"code":0,"message":"success","data":{"status":"alive"}}\n'


def test_an_absolute_target_elsewhere_is_refused(site: Site) -> None:
    for target in ("http://evil.example/livez", "http://[/livez", "http://[::1/livez", "http:///livez"):
        assert_problem(site.raw(request("GET", target)), 40301)
    answer = site.raw(request("GET", "http://localhost:8080/livez", "Origin: http://localhost"))
    assert_problem(answer, 40302)


def test_an_absolute_target_without_a_path_is_the_root(site: Site) -> None:
    assert_problem(site.raw(request("GET", "http://localhost")), 40402)
    assert_problem(site.raw(request("GET", "http://localhost?a=b")), 40402)


@pytest.mark.parametrize(
    "target",
    ["?", "#", "*", "livez", "localhost:80", "ftp://localhost/", "http:/livez", "javascript:1", "://", "\\"],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "CONNECT"])
def test_a_target_that_is_no_path_is_a_400(site: Site, method: str, target: str) -> None:
    assert_problem(site.raw(request(method, target)), 40002)


async def test_the_guard_lets_pass_what_is_ours_untouched() -> None:
    passed = []

    async def app(scope: object, receive: object, send: object) -> None:
        passed.append((scope, receive, send))

    scope = {"headers": [(b"host", b"localhost")], "raw_path": b"/a%20b", "path": "/a b"}
    receive, send = object(), object()
    await Guard(app)(dict(scope), receive, send)  # type: ignore[arg-type]
    assert passed == [(scope, receive, send)]
