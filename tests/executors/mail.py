"""A mail server that is not ours: aiosmtpd, in a process of its own, with STARTTLS or TLS and passwords.

    python mail.py CHAIN.pem starttls|tls

It prints its port, and then, as JSON lines, what it takes and who tries to log in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


class Server:
    """Takes mail from who logs in as ``me`` with ``secret``, over TLS alone."""

    def __init__(self, tls: ssl.SSLContext, *, from_the_start: bool) -> None:
        self._tls = tls
        self._from_the_start = from_the_start

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        say({"from": envelope.mail_from, "to": envelope.rcpt_tos, "text": envelope.content.decode("latin-1")})
        return "250 taken"

    def log_in(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: LoginPassword
    ) -> AuthResult:
        say({"login": [given.login.decode(), given.password.decode()]})
        return AuthResult(success=given == LoginPassword(b"me", b"secret"), handled=False)

    def protocol(self) -> SMTP:
        return SMTP(
            self,
            hostname="mail.test",
            authenticator=self.log_in,
            auth_required=True,
            auth_require_tls=not self._from_the_start,
            require_starttls=not self._from_the_start,
            tls_context=None if self._from_the_start else self._tls,
        )

    async def serve(self) -> None:
        tls = self._tls if self._from_the_start else None
        listener = await asyncio.get_running_loop().create_server(self.protocol, "127.0.0.1", 0, ssl=tls)
        say(listener.sockets[0].getsockname()[1])
        await listener.serve_forever()


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


class Mailbox:
    """A server that runs, and what it has told of so far."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.port: int = self.told()[0]

    def told(self) -> list[Any]:
        return [
            json.loads(line) for line in self._out.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]

    def messages(self) -> list[dict[str, Any]]:
        return [told for told in self.told()[1:] if "text" in told]

    def logins(self) -> list[list[str]]:
        return [told["login"] for told in self.told()[1:] if "login" in told]


@contextlib.contextmanager
def mail_server_of_others(folder: Path, chain: Path, security: str) -> Iterator[Mailbox]:
    out = folder / "mail.jsonl"
    command = [sys.executable, __file__, str(chain), security]
    with out.open("w") as told, subprocess.Popen(command, stdout=told, stderr=subprocess.DEVNULL) as process:
        try:
            while not out.read_text().endswith("\n"):
                assert process.poll() is None
            yield Mailbox(out)
        finally:
            process.kill()


if __name__ == "__main__":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    asyncio.run(Server(context, from_the_start=sys.argv[2] == "tls").serve())
