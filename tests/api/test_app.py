"""Whatever goes wrong, and wherever: the error envelope with the fitting status."""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
from collections.abc import Callable

import pytest

from api.site import TASKS, Site, assert_problem, request, until
from atm.errors import StoreDamaged

MakeSite = Callable[..., Site]

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "PROPFIND"]
ROUTES = {
    TASKS: {"GET", "POST"},
    f"{TASKS}/batch": {"GET", "POST"},  # GET: the task of that name
    f"{TASKS}/x": {"GET"},
    f"{TASKS}/x/cancel": {"POST"},
    f"{TASKS}/x/retry": {"POST"},
    f"{TASKS}/x/logs": {"GET"},
    "/api/v1/workers": {"GET"},
    "/api/v1/queues": {"GET"},
    "/api/v1/task-types": {"GET"},
    "/api/v1/task-types/x": {"PUT"},
    "/livez": {"GET"},
    "/readyz": {"GET"},
}


@pytest.mark.parametrize("path", ROUTES)
def test_a_method_that_is_not_served_is_a_405_that_names_those_that_are(site: Site, path: str) -> None:
    served = ROUTES[path]
    for method in METHODS:
        if method not in served:
            answer = site.raw(request(method, path))
            assert_problem(answer, 40501)
            allowed = set(re.split(", *", answer.headers["allow"]))
            assert allowed == served | ({"HEAD"} if "GET" in served else set())


@pytest.mark.parametrize("path", ROUTES)
def test_head_is_get_without_the_body(site: Site, path: str) -> None:
    head = site.http.head(path)
    assert head.content == b""
    if "GET" in ROUTES[path]:
        get = site.http.get(path)
        assert head.status_code == get.status_code
        assert head.headers["content-type"] == get.headers["content-type"]
    else:
        assert head.status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/v1",
        "/api/v2/tasks",
        "/API/V1/TASKS",
        f"{TASKS}/x/y",
        f"{TASKS}/x/cancel/y",
        f"{TASKS}//cancel",
        f"{TASKS}/../tasks/x",
        "/api/v1/./tasks",
        "/static/x",
        "/favicon.ico",
        "/metrics",
        "/livez/x",
        "/%00",
        "/\\",
        "/a;b",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/" + "a" * 8_000,
        "/" + "a/" * 4_000,
    ],
)
def test_a_path_that_is_not_served_is_a_404(site: Site, path: str) -> None:
    for method in METHODS:
        assert_problem(site.raw(request(method, path)), 40402)


def test_a_slash_at_the_end_does_not_matter(site: Site) -> None:
    for path in (f"{TASKS}/", "/livez/", "/api/v1/queues/"):
        assert site.http.get(path).status_code == 200
    assert site.http.post(f"{TASKS}/", json={"task_type": "nobody"}).status_code == 201


def test_a_store_that_is_away_is_a_503_that_says_when_to_try_again(make_site: MakeSite) -> None:
    site = make_site(capacity=0)
    task_id = site.create("nobody")
    with contextlib.closing(sqlite3.connect(site.path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")  # somebody else writes and does not end
        answer = site.http.post(TASKS, json={"task_type": "nobody"})
        assert_problem(answer, 50301)
        assert answer.headers["retry-after"] == "1"
        assert site.get(task_id)["status"] == "PENDING"
        database.execute("ROLLBACK")
    assert site.http.post(TASKS, json={"task_type": "nobody"}).status_code == 201


def test_a_damaged_store_is_a_503_as_well(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(capacity=0)

    async def find(*_: object) -> None:
        raise StoreDamaged("page 7 is noise")

    monkeypatch.setattr(site.store, "find", find)
    answer = site.http.get(TASKS)
    assert "page 7" not in assert_problem(answer, 50301)["message"]


def test_a_bug_is_a_500_that_tells_where_to_look_but_not_what(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(capacity=0)

    async def find(*_: object) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(site.store, "find", find)
    with caplog.at_level(logging.ERROR, "atm.api"):
        message = assert_problem(site.http.get(TASKS), 50001)["message"]
    (record,) = caplog.records
    assert vars(record)["incident"] in message
    assert "secret" not in message
    assert "a secret" in caplog.text
    assert site.http.get("/livez").status_code == 200


def test_a_body_that_nobody_wants_is_not_kept(make_site: MakeSite) -> None:
    site = make_site(capacity=0)
    task_id = site.create("nobody")
    body = b"x" * (8 * 1024 * 1024)
    target = f"{TASKS}/{task_id}"
    assert site.raw(request("GET", f"{target}?wait=0.1", body=body)).status_code == 200
    assert site.raw(request("POST", f"{target}/cancel", body=body)).status_code == 200
    until(lambda: site.get(task_id)["status"] == "CANCELLED")
