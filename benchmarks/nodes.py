"""Real nodes: ``python -m atm`` in a folder of its own, on free ports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.wire import Connection

ROOT = Path(__file__).resolve().parent.parent
START_PATIENCE = 30.0
STOP_PATIENCE = 60.0
"""Seconds."""

_URL = re.compile(r"^  (API|metrics) +http://127\.0\.0\.1:(\d+)", re.MULTILINE)


class NodeProcess:
    """A node, started when entered, drained and ended by SIGTERM when left.

    Args:
        folder: where its file, config and log are.
        settings: sections of its config.yaml, beside ports and executors.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self._settings = {
            "server": {"port": 0},
            "metrics": {"port": 0},
            "executors": ["benchmarks.tasks"],
            **settings,
        }
        self._output = folder / "node.out"

    def __enter__(self) -> NodeProcess:
        # JSON is YAML.
        (self.folder / "config.yaml").write_text(json.dumps(self._settings))
        self._output.write_text("")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with self._output.open("a") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "atm"], cwd=self.folder, env=environment, stdout=output, stderr=output
            )
        try:
            self.ports = self._wait_for_ports()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def _wait_for_ports(self) -> dict[str, int]:
        wanted = sum(self._settings[part].get("enabled", True) for part in ("server", "metrics"))
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            text = self._output.read_text()
            found = {name: int(port) for name, port in _URL.findall(text)}
            if len(found) == wanted and " is ready\n" in text:
                return found
            time.sleep(0.005)
        raise RuntimeError(f"the node did not start:\n{self._output.read_text()}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(STOP_PATIENCE)

    @property
    def port(self) -> int:
        return self.ports["API"]

    def connect(self) -> Connection:
        return Connection(self.port)

    def metric(self, line: str) -> float:
        """The value of the metric whose name and labels are ``line``; 0 where there is none yet."""
        with Connection(self.ports["metrics"]) as connection:
            text = connection.text("/metrics")
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)


def cpu_seconds(pid: int) -> float:
    """What the process has used, of all cores."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
