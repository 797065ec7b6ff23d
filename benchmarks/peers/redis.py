"""A Redis of our own: free port, folder of its own, ended by its process id."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers.fetch import NotToBeHadError, redis_server

PATIENCE = 10.0


@contextmanager
def private_redis(folder: Path, *, durable: bool) -> Iterator[int]:
    """Its port. ``durable``: every write is on the disk before it is answered; else memory alone."""
    command, environment = redis_server()
    port = free_port()
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--maxmemory-policy", "noeviction"]
    settings += ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "redis.out").open("w") as output:
        process = subprocess.Popen(
            [*command, *settings], cwd=folder, env=os.environ | environment, stdout=output, stderr=output
        )
    try:
        _wait_for(port, process, folder / "redis.out")
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    return
        except OSError:
            time.sleep(0.02)
    raise NotToBeHadError(f"redis-server does not start: {' '.join(output.read_text().split())[-200:]}")
