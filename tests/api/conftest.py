"""What the tests of the API start from: nodes in this process, spoken to over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from api.site import Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One node for all tests that leave others' tasks and types alone."""
    with Site(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture
def make_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """Makes nodes of the test's own, with the settings of ``Site``."""
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> Site:
            return stack.enter_context(Site(tmp_path_factory.mktemp("own"), **settings))

        yield make
