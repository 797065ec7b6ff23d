"""schemathesis tries the OpenAPI document on a running node: all its checks, in all its phases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atm.api import operations
from atm.api.keys import hash_of, new_key
from running import Process, node

HERE = Path(__file__).parent
KEY = new_key()
CONFIG = f"""
server:
  port: 0
  api_keys: [{{name: test, hash: "{hash_of(KEY)}", scopes: [admin]}}]
metrics: {{enabled: false}}
worker: {{enabled: true, id: worker-001}}
"""


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """A node that asks for a key, so that what it does without one is tried as well."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ATM_")]:
        monkeypatch.delenv(name)
    Path("config.yaml").write_text(CONFIG)
    with node(environ={}) as started:
        yield started


# Some 750 requests: seconds, but not on a machine that has much else to do.
@pytest.mark.timeout(150)
def test_the_node_does_what_its_document_says(guarded: Process) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
        *("run", f"{guarded.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
        *("--checks", "all", "--generation-deterministic", "--warnings", "off", "--no-color"),
    ]
    # It is the node whose coverage is measured, where it is.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environ |= {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=140, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    # All but the one that serves the document: it was asked already.
    assert f"Tested: {len(operations.ALL) - 1}\n" in done.stdout
    assert guarded.end() == 0
    assert "Traceback" not in guarded.err.read_text()
