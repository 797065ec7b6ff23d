"""A mail server for tests: real sockets, real TLS, and whatever misbehaviour a test asks for."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

CERTIFICATE = Path(__file__).with_name("localhost.pem")

HANG = "hang"
DROP = "drop"
RESET = "reset"
"""Instead of a reply: say nothing until the client has gone; close the connection; break it off."""

REPLIES = {
    "greeting": "220 mail.test ready",
    "HELO": "250 mail.test",
    "AUTH": "235 welcome",
    "MAIL": "250 ok",
    "RCPT": "250 ok",
    "DATA": "354 go on",
    ".": "250 queued",
    "RSET": "250 ok",
    "QUIT": "221 bye",
    "STARTTLS": "220 go on",
}


class MailServer:
    """Serves one client after the other.

    Attributes:
        replies: by verb; "greeting" and "." (the end of a message) are replied to as well. A reply may also be
            given for a whole line, as in ``"RCPT TO:<bob@x.test>"``.
        tls: from the first byte on.
        commands: what clients said, line by line; passwords are decoded.
        messages: what was sent.
        gone: how many clients have left, or were left.
    """

    def __init__(self, replies: dict[str, str], *, tls: bool, starttls: bool) -> None:
        offers = ["mail.test", *(["STARTTLS"] if starttls else []), "AUTH PLAIN"]
        hello = "\r\n".join(f"250-{offer}" for offer in offers) + "\r\n250 8BITMIME"
        self.replies = REPLIES | {"EHLO": hello} | replies
        self.tls = tls
        self.commands: list[str] = []
        self.messages: list[str] = []
        self.gone = 0
        self._heard = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="mail server")
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def wait_until_heard(self, start: str) -> None:
        """Return when a client has said a line that begins so; "connect" stands for its coming."""
        with self._heard:
            assert self._heard.wait_for(lambda: any(c.startswith(start) for c in self.commands), 20)

    def wait_until_gone(self, count: int = 1) -> None:
        with self._heard:
            assert self._heard.wait_for(lambda: self.gone >= count, 20)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._client = client
            self._hear("connect")
            with contextlib.suppress(OSError, EOFError):
                if self.tls:
                    if self.replies["greeting"] == HANG:
                        _wait_for_end(client)
                    client = self._client = _secured(client)
                _Talk(self, client).run()
            with contextlib.suppress(OSError):
                client.close()
            with self._heard:
                self.gone += 1
                self._heard.notify_all()

    def _hear(self, line: str) -> None:
        with self._heard:
            self.commands.append(line)
            self._heard.notify_all()


class _Talk:
    def __init__(self, server: MailServer, client: socket.socket) -> None:
        self._server = server
        self._client = client
        self._lines = client.makefile("rb")

    def run(self) -> None:
        try:
            self._reply("greeting", "")
            while self._step(self._line()):
                pass
        finally:
            self._lines.close()
            self._client.close()

    def _line(self) -> str:
        data = self._lines.readline()
        if not data:
            raise EOFError
        return data.decode().rstrip("\r\n")

    def _step(self, line: str) -> bool:
        verb = line.split(" ", 1)[0].upper()
        if verb == "AUTH":
            line = f"AUTH {base64.b64decode(line.split()[-1]).decode()!r}"
        self._server._hear(line)
        reply = self._reply(verb, line)
        if verb == "STARTTLS" and reply.startswith("220"):
            self._lines.close()
            self._client = self._server._client = _secured(self._client)
            self._lines = self._client.makefile("rb")
        if verb == "DATA" and reply.startswith("354"):
            message = "\n".join(iter(self._line, "."))
            self._server.messages.append(message)
            self._server._hear(".")
            self._reply(".", "")
        return verb != "QUIT"

    def _reply(self, verb: str, line: str) -> str:
        reply = self._server.replies.get(line) or self._server.replies.get(verb, "502 what?")
        if reply == HANG:
            _wait_for_end(self._client)
        if reply == RESET:
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if reply in (DROP, RESET):
            raise EOFError
        self._client.sendall(f"{reply}\r\n".encode())
        return reply


def _secured(client: socket.socket) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    try:
        return context.wrap_socket(client, server_side=True)
    except OSError:
        client.close()
        raise


def _wait_for_end(client: socket.socket) -> None:
    while client.recv(4096):
        pass
    raise EOFError


@contextlib.contextmanager
def mail_server(
    replies: dict[str, str] | None = None, *, tls: bool = False, starttls: bool = False
) -> Iterator[MailServer]:
    server = MailServer(replies or {}, tls=tls, starttls=starttls)
    try:
        yield server
    finally:
        server.close()
