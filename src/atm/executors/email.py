"""``send_email``: by default printed to the terminal, with backend ``smtp`` sent.

    executors:
      - use: atm.executors.email:EmailExecutor
        config: {backend: smtp, host: smtp.example.com, user: me, password: secret, sender: me@example.com}

The payload is ``{"to": address or list, "subject": text, "body": text}``; the result ``{"message_id": id}``.
"""

from __future__ import annotations

import contextlib
import email.message
import email.utils
import smtplib
import socket
import ssl
import sys
import unicodedata
from collections.abc import Callable
from typing import Any, TextIO

import trio

from atm.context import Context
from atm.errors import ConfigError, NonRetryable
from atm.executor import Executor, TaskResult
from atm.task import Task

BACKENDS = ("console", "smtp")
SECURITY = ("starttls", "tls", "none")

MAX_TIMEOUT = 1e6
"""Seconds; longer than any task may take."""


class EmailExecutor(Executor):
    """Sends an email a task.

    Args:
        backend: ``console`` prints the message, ``smtp`` sends it.
        host, port: the SMTP server.
        user, password: log in with these, if given.
        security: ``starttls`` (port 587), ``tls`` (port 465) or ``none``.
        sender: the From address, with or without a name before it.
    Raises: ConfigError, naming the setting.
    """

    type = "email"
    supported_task_types = ("send_email",)

    def __init__(
        self,
        backend: str = "console",
        *,
        host: str = "localhost",
        port: int = 587,
        user: str | None = None,
        password: str | None = None,
        security: str = "starttls",
        sender: str = "atm@localhost",
        out: TextIO | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise ConfigError("backend", f"must be one of {', '.join(BACKENDS)}, not {backend!r}")
        if security not in SECURITY:
            raise ConfigError("security", f"must be one of {', '.join(SECURITY)}, not {security!r}")
        if user is not None and security == "none" and host not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError("security", "a password is not sent over an open connection: use starttls or tls")
        for key, text in (("host", host), ("user", user), ("password", password)):
            if text is not None and not isinstance(text, str):
                raise ConfigError(key, "must be a text; put it into quotes")
        if type(port) is not int or not 1 <= port <= 65535:
            raise ConfigError("port", f"must be a number from 1 to 65535, not {port!r}")
        address = email.utils.parseaddr(sender)[1] if isinstance(sender, str) else ""
        if not _is_address(address) or any(ord(c) < 32 for c in sender):
            raise ConfigError(
                "sender", 'must be an email address, as in me@example.com or "Shop <me@example.com>"'
            )
        self._backend = backend
        self._host = host
        self._port = port
        self._user = user
        self._password = password
        self._security = security
        self._sender = sender
        self._domain = address.rpartition("@")[2]
        self._out = out
        self._threads = trio.CapacityLimiter(20)

    async def execute(self, ctx: Context, task: Task) -> TaskResult:
        message = self._message(ctx, task.payload)
        data: dict[str, Any] = {"message_id": message["Message-ID"].strip("<>")}
        if self._backend == "console":
            print(_for_console(message), file=self._out or sys.stdout, flush=True)
            await trio.lowlevel.checkpoint()
        else:
            refused = await self._send(message, ctx)
            if refused:
                data["refused"] = refused
        return TaskResult(success=True, data=data)

    def _message(self, ctx: Context, payload: dict[str, Any]) -> email.message.EmailMessage:
        message = email.message.EmailMessage()
        to = payload.get("to")
        recipients = [to] if isinstance(to, str) else to
        if not isinstance(recipients, list) or not recipients or not all(map(_is_address, recipients)):
            raise NonRetryable("payload.to must be an email address or a list of them")
        for name in ("subject", "body"):
            if not isinstance(payload.get(name, ""), str):
                raise NonRetryable(f"payload.{name} must be a text")
        try:
            message["From"] = self._sender
            message["To"] = ", ".join(recipients)
            message["Subject"] = payload.get("subject", "")
            # The same at each attempt, so that a mail system can drop a repetition.
            message["Message-ID"] = f"<{ctx.idempotency_key}@{self._domain}>"
            message["Date"] = email.utils.localtime()
            message.set_content(payload.get("body", ""))
        except ValueError as error:  # a line break in a header
            raise NonRetryable(f"the message is not well-formed: {error}") from None
        return message

    async def _send(self, message: email.message.EmailMessage, ctx: Context) -> dict[str, str]:
        """Talk SMTP in a thread; a cancel cuts the connection, which ends the thread at once.

        Returns the recipients that the server refused, with its reasons, when it took others.
        """
        stream = await trio.open_tcp_stream(self._host, self._port)
        sock = socket.socket(fileno=stream.socket.detach())
        # TLS takes the socket over; a second descriptor of the same connection can still cut it.
        cutter = sock.dup()
        failure: Exception | None = None
        refused: dict[str, str] = {}
        with sock, cutter:
            # The thread's own end, should the cutter be late; more than this a socket cannot count.
            sock.settimeout(min(max(0.1, ctx.time_left), MAX_TIMEOUT))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cut_when_cancelled, cutter)
                try:
                    refused = await trio.to_thread.run_sync(self._talk, sock, message, limiter=self._threads)
                except (smtplib.SMTPException, OSError) as error:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise _verdict(failure)
        return refused

    def _talk(self, sock: socket.socket, message: email.message.EmailMessage) -> dict[str, str]:
        secure = ssl.create_default_context()
        given = secure.wrap_socket(sock, server_hostname=self._host) if self._security == "tls" else sock
        with (
            given,
            contextlib.closing(_Client(given, self._host, self._domain)) as client,
        ):
            try:
                client.ehlo_or_helo_if_needed()
                if self._security == "starttls":
                    client.starttls(context=secure)
                if self._user is not None:
                    client.login(self._user, self._password or "")
                refused = client.send_message(message)
            finally:
                _say_goodbye(client)
        return {address: f"{code} {_text(text)}" for address, (code, text) in refused.items()}


def _say_goodbye(client: smtplib.SMTP) -> None:
    """The message is taken or refused by now; nothing that comes of a QUIT may change that, so nobody waits."""
    with contextlib.suppress(smtplib.SMTPException, OSError):
        client.putcmd("QUIT")


class _Client(smtplib.SMTP):
    """SMTP over a connection that is there already."""

    def __init__(self, given: socket.socket, host: str, own_name: str) -> None:
        self._given = given
        super().__init__(host, 1, own_name, timeout=given.gettimeout() or 60)

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        return self._given


def _verdict(failure: Exception) -> Exception:
    """What the task makes of an SMTP failure. RFC 5321, section 4.2.1: 5yz is permanent, 4yz may pass."""
    codes: list[tuple[int, bytes | str]] = []
    if isinstance(failure, smtplib.SMTPRecipientsRefused):
        codes = list(failure.recipients.values())
    elif isinstance(failure, smtplib.SMTPResponseException):
        codes = [(failure.smtp_code, failure.smtp_error)]
    if not codes:
        return failure
    reason = "; ".join(f"SMTP {code}: {_text(text)}" for code, text in codes)
    return NonRetryable(reason) if all(code >= 500 for code, _ in codes) else OSError(reason)


async def _cut_when_cancelled(sock: socket.socket) -> None:
    try:
        await trio.sleep_forever()
    finally:
        _quietly(lambda: sock.shutdown(socket.SHUT_RDWR))


def _quietly(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError:
        return  # the other side was faster


def _is_address(value: object) -> bool:
    if not isinstance(value, str) or any(ord(c) < 33 for c in value):
        return False
    local, at, domain = value.rpartition("@")
    return bool(local and at and domain) and "," not in value


def _for_console(message: email.message.EmailMessage) -> str:
    headers = "\n".join(f"  {name}: {value}" for name, value in message.items())
    body = "\n".join(f"  {line}" for line in message.get_content().rstrip().splitlines())
    # Escape sequences in a payload would play tricks on the operator's terminal.
    text = f"--- email ---\n{headers}\n\n{body}\n-------------"
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
