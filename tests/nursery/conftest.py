"""What the tests of the runtime start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atm.executor import Executor
from nursery.bench import AttemptKit, Bench, Body, MakeBench, Scripted


@pytest.fixture
def attempts() -> AttemptKit:
    return AttemptKit()


@pytest.fixture
def make_bench(tmp_path: Path) -> MakeBench:
    """Makes a node on this test's store file: ``make_bench({"type": body or executor, …}, capacity=…, …)``."""

    def make(bodies: dict[str, Body | Executor] | None = None, **settings: Any) -> Bench:
        executors = [
            body if isinstance(body, Executor) else Scripted(body, name) for name, body in (bodies or {}).items()
        ]
        return Bench(tmp_path / "atm.db", executors, settings)

    return make
