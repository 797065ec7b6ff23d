"""A server on a bare socket that answers as a test says, however wrong that is."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

Say = Callable[[socket.socket], None]
"""Answers one request; a connection whose answer leaves it open takes the next."""

PATIENCE = 20.0


def whole(status: str, body: bytes | dict[str, Any], *headers: str) -> Say:
    """An answer that is HTTP, at least."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Content-Type: application/json", *headers]

    def say(connection: socket.socket) -> None:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + content)

    return say


def fine(data: Any = None) -> Say:
    return whole("200 OK", {"code": 0, "message": "success", "data": data})


def refusal(status: str, *headers: str) -> Say:
    code = int(status.split()[0]) * 100 + 1
    return whole(status, {"code": code, "message": "no", "request_id": "r1", "errors": []}, *headers)


def bytes_only(text: bytes) -> Say:
    """Exactly this; then the connection is closed."""

    def say(connection: socket.socket) -> None:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_RDWR)

    return say


def hang(connection: socket.socket) -> None:
    """Say nothing until the client goes away."""
    while connection.recv(4096):
        pass


def drip(connection: socket.socket) -> None:
    """An answer whose end is always near."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        connection.sendall(b" ")
        time.sleep(0.02)


class Rude:
    """The n-th request gets the n-th answer, the last one for ever. A context manager."""

    def __init__(self, *says: Say) -> None:
        self._says = list(says)
        self.requests: list[bytes] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with self._lock:
                self._open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while request := self._read(connection):
                with self._lock:
                    self.requests.append(request)
                    say = self._says.pop(0) if len(self._says) > 1 else self._says[0]
                say(connection)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        """One request, or nothing when there is none any more."""
        got = b""
        while b"\r\n\r\n" not in got:
            if not (part := connection.recv(65536)):
                return b""
            got += part
        head, _, body = got.partition(b"\r\n\r\n")
        lengths = [
            line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        ]
        while len(body) < int(lengths[0] if lengths else 0):
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body
