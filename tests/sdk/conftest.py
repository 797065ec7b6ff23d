"""One node for all tests that do it no harm."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from running import node
from sdk.kinds import FAKE, REAL, TASKS, client_of


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATM_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node that serves all tests of the SDK."""
    folder = tmp_path_factory.mktemp("sdk-node")
    (folder / "my_tasks.py").write_text(TASKS)
    (folder / "config.yaml").write_text("executors: [my_tasks]\n")
    with contextlib.ExitStack() as stack:
        with contextlib.chdir(folder):
            started = stack.enter_context(node())
            found = started.url
        yield found


@pytest.fixture(scope="session", params=[*REAL, *FAKE])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of each kind, the same for all tests."""
    url = request.getfixturevalue("url") if request.param in REAL else ""
    with client_of(request.param, url) as made:
        yield made


@pytest.fixture
def kind_of_task() -> str:
    """A task type that no worker supports, and no other test uses."""
    return f"nobody.{os.urandom(8).hex()}"
