"""Load from a process of its own: N keep-alive connections, each sending as soon as it has its answer.

    python -m benchmarks.load PORT --connections 32 --seconds 5
    python -m benchmarks.load PORT --connections 2 --batch 500

Prints one line of JSON: requests, seconds, errors, and the latencies p50 and p99 in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import time
from collections.abc import Sequence

from benchmarks.wire import answer_length, request_bytes


class _Client:
    """A connection with at most one request under way."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._received = b""
        self._sent_at = 0.0

    def send(self) -> None:
        self._received = b""
        self._sent_at = time.perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> tuple[int, float] | None:
        """Status and seconds of the answer, None while it is not complete."""
        part = self.socket.recv(65536)
        if not part:
            raise ConnectionError("the server closed a connection")
        self._received += part
        length = answer_length(self._received)
        if length is None or len(self._received) < length:
            return None
        return int(self._received[9:12]), time.perf_counter() - self._sent_at


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that this fraction of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def run(port: int, connections: int, seconds: float, request: bytes) -> dict[str, float]:
    """Load the server for ``seconds``; then wait for the answers under way."""
    latencies: list[float] = []
    errors = 0
    selector = selectors.DefaultSelector()
    began = time.perf_counter()
    for _ in range(connections):
        client = _Client(port, request)
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.send()
    while selector.get_map():
        for key, _ in selector.select(10):
            answer = key.data.receive()
            if answer is None:
                continue
            latencies.append(answer[1])
            errors += answer[0] >= 300
            if time.perf_counter() - began < seconds:
                key.data.send()
            else:
                selector.unregister(key.fileobj)
                key.data.socket.close()
    taken = time.perf_counter() - began
    return {
        "requests": len(latencies),
        "seconds": taken,
        "per_second": len(latencies) / taken,
        "errors": errors,
        "p50_ms": percentile(latencies, 0.5) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument(
        "--batch", type=int, default=0, help="create so many tasks a request (default: one by one)"
    )
    chosen = parser.parse_args()
    task = {"task_type": "noop", "payload": {"n": 1}}
    if chosen.batch:
        request = request_bytes("POST", "/api/v1/tasks/batch", {"tasks": [task] * chosen.batch})
    else:
        request = request_bytes("POST", "/api/v1/tasks", task)
    print(json.dumps(run(chosen.port, chosen.connections, chosen.seconds, request)))


if __name__ == "__main__":
    main()
