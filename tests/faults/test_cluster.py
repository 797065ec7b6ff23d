"""A cluster whose nodes and servers are killed, paused and emptied loses nothing that it acknowledged.

CHAOS_SECONDS, CHAOS_CLUSTER_RATE (creates a second) and CHAOS_SEED change the run:
``CHAOS_SECONDS=600 nox -s chaos -- tests/faults/test_cluster.py``.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from . import cluster

SECONDS = float(os.environ.get("CHAOS_SECONDS", "40"))
RATE = float(os.environ.get("CHAOS_CLUSTER_RATE", "50"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.mark.faults
@pytest.mark.timeout(400 + 2 * SECONDS)
def test_every_invariant_holds_over_faults_of_nodes_and_servers(tmp_path: Path) -> None:
    report = trio.run(partial(cluster.run, tmp_path, seconds=SECONDS, rate=RATE, seed=SEED))
    print("\n".join(report.history), report.text(), sep="\n")
    assert [str(violation) for violation in report.violations] == []
    assert sum(report.faults.values()) > SECONDS / 10
    assert len(report.evidence.ledger.acknowledged()) > SECONDS * 5
