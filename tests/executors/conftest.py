from __future__ import annotations

import pytest

from nursery.bench import AttemptKit


@pytest.fixture
def attempts() -> AttemptKit:
    return AttemptKit()
