"""Get the peers into a folder of their own; nothing is installed into the system."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atm-benchmarks"
REDIS_PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")
PATIENCE = 300.0
"""Seconds that fetching one of them may take."""


class NotToBeHadError(Exception):
    """This peer cannot be fetched here; the message says why in one line."""


def redis_server() -> tuple[list[str], dict[str, str]]:
    """The command of a redis-server, and the environment that it needs."""
    installed = shutil.which("redis-server")
    if installed:
        return [installed], {}
    folder = FOLDER / "redis"
    server = folder / "usr/bin/redis-server"
    if not server.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", *REDIS_PACKAGES], folder, "redis-server is not installed")
        for package in folder.glob("*.deb"):
            _run(["dpkg-deb", "-x", package.name, "."], folder, "redis-server cannot be unpacked")
    libraries = ":".join(str(found.parent) for found in folder.glob("usr/lib/*/libjemalloc.so.2"))
    return [str(server)], {"LD_LIBRARY_PATH": libraries}


def bullmq() -> Path:
    """The folder in which a script can import bullmq."""
    if not shutil.which("node") or not shutil.which("npm"):
        raise NotToBeHadError("node and npm are not installed")
    folder = FOLDER / "bullmq"
    if not (folder / "node_modules/bullmq").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _run(["npm", "install", "--no-audit", "--no-fund", "bullmq@5"], folder, "npm install failed")
    return folder


def huey() -> Path:
    """The folder to be put on the path of Python."""
    folder = FOLDER / "huey"
    if not (folder / "huey").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "huey"]
        _run(pip, Path.cwd(), "pip install failed")
    return folder


def _run(command: Sequence[str], folder: Path, complaint: str) -> None:
    try:
        subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        raise NotToBeHadError(f"{complaint}: {' '.join(output.split())[:200]}") from None
