"""A node that is killed again and again loses nothing that it acknowledged.

CHAOS_KILLS, CHAOS_RATE (creates a second) and CHAOS_SEED change the run: ``CHAOS_KILLS=100 nox -s chaos``.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from . import kill9

KILLS = int(os.environ.get("CHAOS_KILLS", "10"))
RATE = float(os.environ.get("CHAOS_RATE", "200"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.mark.faults
@pytest.mark.timeout(300 + 10 * KILLS)
def test_every_invariant_holds_over_kills_at_random_moments(tmp_path: Path) -> None:
    report = trio.run(partial(kill9.run, tmp_path, kills=KILLS, rate=RATE, seed=SEED))
    print(report.text())
    assert [str(violation) for violation in report.violations] == []
    assert report.exit_status == 0
    assert len(report.evidence.ledger.acknowledged()) > KILLS * 20
