"""A keep-alive HTTP client that costs little, so that what is measured is the server."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
HEAD_END = b"\r\n\r\n"


def request_bytes(method: str, path: str, body: object = None) -> bytes:
    """A whole request; ``body`` becomes JSON."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if content:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


def answer_length(received: bytes) -> int | None:
    """How long the whole answer is that begins with these bytes; None when its head is not complete."""
    head = received.find(HEAD_END)
    if head < 0:
        return None
    length = _LENGTH.search(received, 0, head + 2)
    return head + len(HEAD_END) + (int(length[1]) if length else 0)


class Connection:
    """One connection, one request at a time."""

    def __init__(self, port: int, timeout: float = 60.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, request: bytes) -> tuple[int, bytes]:
        """The answer's status and body."""
        self._socket.sendall(request)
        received = b""
        length = None
        while length is None or len(received) < length:
            part = self._socket.recv(1 << 20)
            if not part:
                raise ConnectionError("the server closed the connection")
            received += part
            length = length or answer_length(received)
        return int(received[9:12]), received[received.find(HEAD_END) + len(HEAD_END) :]

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The ``data`` of the answer. Raises RuntimeError for any status but 2xx."""
        status, content = self.send(request_bytes(method, path, body))
        if not 200 <= status < 300:
            raise RuntimeError(f"{method} {path}: {status} {content[:300]!r}")
        return json.loads(content).get("data")

    def text(self, path: str) -> str:
        return self.send(request_bytes("GET", path))[1].decode()
