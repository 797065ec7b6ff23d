"""Alive is who answers; ready is who should get requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from api.site import Site, assert_problem, assert_success, until
from atm.errors import StoreUnavailable

MakeSite = Callable[..., Site]


def test_a_node_that_serves_is_alive_and_ready(site: Site) -> None:
    assert assert_success(site.http.get("/livez")) == {"status": "alive"}
    assert assert_success(site.http.get("/readyz")) == {"status": "ready"}


def test_a_node_that_drains_is_alive_and_serves_but_is_not_ready(make_site: MakeSite) -> None:
    site = make_site(grace=20)
    task_id = site.running("drained")
    site.stop()
    until(lambda: site.http.get("/readyz").status_code == 503)
    assert assert_problem(site.http.get("/readyz"), 50302)["message"] == "draining"
    assert_success(site.http.get("/livez"))
    assert site.get(site.create("nobody"))["status"] == "PENDING"
    assert_success(site.http.post(f"/api/v1/tasks/{task_id}/cancel"), message="Task cancelled successfully")


def test_a_node_that_has_not_started_is_not_ready(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site()
    monkeypatch.setattr(site.health, "started", False)
    assert assert_problem(site.http.get("/readyz"), 50302)["message"] == "starting"


def test_a_node_whose_store_is_away_is_not_ready(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site()

    async def ping() -> None:
        raise StoreUnavailable("the disk is gone")

    monkeypatch.setattr(site.store, "ping", ping)
    assert assert_problem(site.http.get("/readyz"), 50302)["message"] == "the disk is gone"
    assert_success(site.http.get("/livez"))
