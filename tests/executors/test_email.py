"""``send_email``: printed, or sent by SMTP to a real server that does what a test asks of it."""

from __future__ import annotations

import email
import email.policy
import io
import json
import os
import socket
from email.message import EmailMessage
from typing import Any

import pytest
import trio
from trio.testing import active_thread_count

from atm.errors import ConfigError
from atm.executors.email import EmailExecutor
from atm.store import Outcome
from atm.task import Status
from executors.smtp import CERTIFICATE, DROP, HANG, RESET, MailServer, mail_server
from nursery.bench import AttemptKit

HELLO = {"to": "user@example.com", "subject": "Hello", "body": "Test email"}


def error_of(outcome: Outcome) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(outcome.error_json or "null")
    return error


def message_id_of(outcome: Outcome) -> str:
    assert outcome.status is Status.SUCCESS, outcome
    result = json.loads(outcome.result_json or "null")
    assert list(result) == ["message_id"]
    return str(result["message_id"])


def parsed(text: str) -> EmailMessage:
    message = email.message_from_string(text, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


# console


async def test_by_default_the_message_is_printed(attempts: AttemptKit, capsys: pytest.CaptureFixture[str]) -> None:
    message_id = message_id_of(await attempts.outcome(EmailExecutor(), payload=HELLO))
    printed = capsys.readouterr().out
    assert "To: user@example.com" in printed
    assert "Subject: Hello" in printed
    assert "Test email" in printed
    assert message_id in printed


async def test_the_message_may_be_printed_elsewhere(attempts: AttemptKit) -> None:
    out = io.StringIO()
    payload = {"to": ["a@x.test", "b@y.test"], "subject": "Grüße", "body": "zwei\nZeilen 字\n"}
    executor = EmailExecutor(out=out, sender="shop@example.com")
    message_id = message_id_of(await attempts.outcome(executor, payload=payload))
    assert "To: a@x.test, b@y.test" in out.getvalue()
    assert "From: shop@example.com" in out.getvalue()
    assert "Subject: Grüße" in out.getvalue()
    assert "  zwei\n  Zeilen 字\n" in out.getvalue()
    assert message_id.endswith("@example.com")


async def test_the_sender_may_have_a_name(attempts: AttemptKit) -> None:
    out = io.StringIO()
    executor = EmailExecutor(out=out, sender="Käse & Shop <shop@example.com>")
    message_id = message_id_of(await attempts.outcome(executor, payload=HELLO))
    assert "From: Käse & Shop <shop@example.com>" in out.getvalue()
    assert message_id.endswith("@example.com")


async def test_subject_and_body_may_be_left_out(attempts: AttemptKit) -> None:
    outcome = await attempts.outcome(EmailExecutor(out=io.StringIO()), payload={"to": "a@x.test"})
    assert outcome.status is Status.SUCCESS


async def test_a_message_cannot_play_tricks_on_the_terminal(attempts: AttemptKit) -> None:
    out = io.StringIO()
    payload = HELLO | {"body": "\x1b]0;owned\x07\x1b[2J harmless \x9b31m"}
    await attempts.outcome(EmailExecutor(out=out), payload=payload)
    assert "harmless" in out.getvalue()
    assert not set("\x1b\x07\x9b") & set(out.getvalue())


async def test_every_attempt_has_the_same_message_id(attempts: AttemptKit) -> None:
    run = attempts.run(EmailExecutor(out=io.StringIO()), payload=HELLO)
    again = attempts.run(EmailExecutor(out=io.StringIO()), payload=HELLO, retry_count=1)
    again.context.task_id = run.task.task_id
    assert message_id_of(await attempts.end_of(run)) == message_id_of(await attempts.end_of(again))


@pytest.mark.parametrize(
    "to",
    [
        None,
        "",
        [],
        7,
        {"a@x.test": 1},
        [""],
        "nobody",
        "@x.test",
        "a@",
        ["a@x.test", None],
        "a@x.test, b@y.test",
        "a b@x.test",
        "a@x.test\nBcc: b@y.test",
    ],
)
async def test_without_an_address_there_is_nothing_to_retry(attempts: AttemptKit, to: Any) -> None:
    outcome = await attempts.outcome(EmailExecutor(out=io.StringIO()), payload=HELLO | {"to": to})
    assert (outcome.status, outcome.retry_in) == (Status.FAILED, None)
    assert "payload.to" in outcome.message


@pytest.mark.parametrize("name", ["subject", "body"])
@pytest.mark.parametrize("value", [None, 1, ["text"]])
async def test_subject_and_body_are_texts(attempts: AttemptKit, name: str, value: Any) -> None:
    outcome = await attempts.outcome(EmailExecutor(out=io.StringIO()), payload=HELLO | {name: value})
    assert (outcome.status, outcome.retry_in) == (Status.FAILED, None)
    assert f"payload.{name} must be a text" in outcome.message


async def test_a_subject_cannot_smuggle_headers_in(attempts: AttemptKit) -> None:
    out = io.StringIO()
    payload = HELLO | {"subject": "Hello\r\nBcc: b@y.test"}
    outcome = await attempts.outcome(EmailExecutor(out=out), payload=payload)
    assert (outcome.status, outcome.retry_in) == (Status.FAILED, None)
    assert out.getvalue() == ""


# settings


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"backend": "pigeon"}, "backend"),
        ({"security": "hope"}, "security"),
        ({"host": 7}, "host"),
        ({"password": 1234}, "password"),
        ({"port": "587"}, "port"),
        ({"port": 0}, "port"),
        ({"sender": "nobody"}, "sender"),
        ({"sender": "Shop <me@example.com>\r\nBcc: x@y.test"}, "sender"),
        ({"host": "smtp.example.com", "security": "none", "user": "me", "password": "secret"}, "security"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EmailExecutor(**settings)
    assert caught.value.key == key
    assert "secret" not in str(caught.value)


# SMTP


def sender_to(server: MailServer, **settings: Any) -> EmailExecutor:
    given = {"host": "127.0.0.1", "port": server.port, "security": "none", "sender": "shop@example.com"}
    return EmailExecutor("smtp", **given | settings)


async def assert_nothing_is_left(server: MailServer) -> None:
    """No thread works on, and the server has lost its client."""
    assert active_thread_count() == 0
    await trio.to_thread.run_sync(server.wait_until_gone)


async def test_a_message_is_sent(attempts: AttemptKit) -> None:
    with mail_server() as server:
        payload = {"to": ["a@x.test", "b@y.test"], "subject": "Grüße", "body": "Zeile\n.\n字"}
        message_id = message_id_of(await attempts.outcome(sender_to(server), payload=payload))
        await assert_nothing_is_left(server)
    (sent,) = map(parsed, server.messages)
    assert sent["Message-ID"] == f"<{message_id}>"
    assert (sent["From"], sent["To"], sent["Subject"]) == ("shop@example.com", "a@x.test, b@y.test", "Grüße")
    assert sent["Date"] is not None
    envelope = [command.split(" size=")[0] for command in server.commands if ":" in command]
    assert envelope == ["mail FROM:<shop@example.com>", "rcpt TO:<a@x.test>", "rcpt TO:<b@y.test>"]
    assert server.commands[-1].upper() == "QUIT"


async def test_a_user_logs_in_first(attempts: AttemptKit) -> None:
    with mail_server() as server:
        executor = sender_to(server, user="me", password="secret")
        message_id_of(await attempts.outcome(executor, payload=HELLO))
    assert "AUTH '\\x00me\\x00secret'" in server.commands
    assert len(server.messages) == 1


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_a_message_is_sent_over_tls(
    attempts: AttemptKit, monkeypatch: pytest.MonkeyPatch, security: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with mail_server(tls=security == "tls", starttls=security == "starttls") as server:
        executor = sender_to(server, security=security, host="localhost", user="me", password="secret")
        message_id_of(await attempts.outcome(executor, payload=HELLO))
        await assert_nothing_is_left(server)
    assert len(server.messages) == 1
    if security == "starttls":
        said = [command.split()[0] for command in server.commands]
        assert said.index("STARTTLS") < said.index("AUTH")


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_nothing_is_told_to_a_server_without_a_good_certificate(attempts: AttemptKit, security: str) -> None:
    with mail_server(tls=security == "tls", starttls=security == "starttls") as server:
        executor = sender_to(server, security=security, host="localhost", user="me", password="secret")
        outcome = await attempts.outcome(executor, payload=HELLO)
        await assert_nothing_is_left(server)
    assert outcome.status is Status.FAILED
    assert "certificate" in error_of(outcome)["message"].lower()
    assert server.messages == []
    assert "secret" not in str(server.commands)


async def test_without_starttls_nothing_is_sent_in_the_open(attempts: AttemptKit) -> None:
    with mail_server() as server:
        executor = sender_to(server, security="starttls", user="me", password="secret")
        outcome = await attempts.outcome(executor, payload=HELLO)
        await assert_nothing_is_left(server)
    assert outcome.status is Status.FAILED
    assert "STARTTLS" in error_of(outcome)["message"]
    assert server.messages == []
    assert "secret" not in str(server.commands)


@pytest.mark.parametrize("verb", ["greeting", "MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize(("reply", "retryable"), [("451 come back later", True), ("550 never", False)])
async def test_what_the_server_refuses_for_now_is_tried_again_and_for_good_is_not(
    attempts: AttemptKit, verb: str, reply: str, retryable: bool
) -> None:
    with mail_server({verb: reply}) as server:
        outcome = await attempts.outcome(sender_to(server), payload=HELLO)
        await assert_nothing_is_left(server)
    assert outcome.status is Status.FAILED
    assert error_of(outcome)["retryable"] is retryable
    assert (outcome.retry_in is not None) is retryable
    code, _, text = reply.partition(" ")
    assert f"SMTP {code}: {text}" in error_of(outcome)["message"]


async def test_a_wrong_password_is_not_tried_again(attempts: AttemptKit) -> None:
    with mail_server({"AUTH": "535 wrong"}) as server:
        outcome = await attempts.outcome(sender_to(server, user="me", password="secret"), payload=HELLO)
    assert (outcome.status, outcome.retry_in) == (Status.FAILED, None)
    assert "secret" not in f"{outcome.message}{outcome.error_json}{outcome.details}"


async def test_all_recipients_refused_one_for_now_is_tried_again(attempts: AttemptKit) -> None:
    replies = {"rcpt TO:<a@x.test>": "550 never", "rcpt TO:<b@y.test>": "450 later"}
    with mail_server(replies) as server:
        outcome = await attempts.outcome(sender_to(server), payload=HELLO | {"to": ["a@x.test", "b@y.test"]})
    assert outcome.retry_in is not None
    assert "SMTP 550: never; SMTP 450: later" in error_of(outcome)["message"]


async def test_who_was_refused_among_others_is_told(attempts: AttemptKit) -> None:
    with mail_server({"rcpt TO:<b@y.test>": "550 never"}) as server:
        outcome = await attempts.outcome(sender_to(server), payload=HELLO | {"to": ["a@x.test", "b@y.test"]})
    assert len(server.messages) == 1
    assert outcome.status is Status.SUCCESS
    assert "b@y.test" in (outcome.result_json or "")


@pytest.mark.parametrize("how", [DROP, RESET])
@pytest.mark.parametrize("verb", ["greeting", "EHLO", "RCPT", "."])
async def test_a_broken_connection_is_tried_again(attempts: AttemptKit, verb: str, how: str) -> None:
    with mail_server({verb: how, "HELO": how}) as server:
        outcome = await attempts.outcome(sender_to(server), payload=HELLO)
        await assert_nothing_is_left(server)
    assert outcome.status is Status.FAILED
    assert outcome.retry_in is not None


async def test_a_server_that_is_not_there_is_tried_again(attempts: AttemptKit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    executor = EmailExecutor("smtp", host="127.0.0.1", port=port, security="none")
    outcome = await attempts.outcome(executor, payload=HELLO)
    assert outcome.status is Status.FAILED
    assert outcome.retry_in is not None


# what is accepted is sent, whatever comes after


@pytest.mark.parametrize("goodbye", ["421 I am off", "500 what?", "250 ok", DROP, RESET])
async def test_an_odd_goodbye_does_not_send_the_message_again(attempts: AttemptKit, goodbye: str) -> None:
    with mail_server({"QUIT": goodbye}) as server:
        message_id_of(await attempts.outcome(sender_to(server), payload=HELLO))
        await assert_nothing_is_left(server)
    assert len(server.messages) == 1


async def test_a_missing_goodbye_does_not_send_the_message_again(attempts: AttemptKit) -> None:
    with mail_server({"QUIT": HANG}) as server:
        message_id_of(await attempts.outcome(sender_to(server), payload=HELLO, timeout=1.0))
        await assert_nothing_is_left(server)


async def test_an_odd_goodbye_does_not_hide_the_reason(attempts: AttemptKit) -> None:
    with mail_server({"RCPT": "550 never", "QUIT": "421 I am off"}) as server:
        outcome = await attempts.outcome(sender_to(server), payload=HELLO)
    assert outcome.retry_in is None
    assert "SMTP 550: never" in error_of(outcome)["message"]


# a server that says nothing


@pytest.mark.parametrize("verb", ["greeting", "EHLO", "DATA", "."])
async def test_a_cancel_ends_a_hanging_talk_at_once(attempts: AttemptKit, verb: str) -> None:
    descriptors = len(os.listdir("/dev/fd"))
    with mail_server({verb: HANG}) as server:
        run = attempts.run(sender_to(server), payload=HELLO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempts.end_of, run)
            heard = "connect" if verb == "greeting" else verb.lower()
            await trio.to_thread.run_sync(server.wait_until_heard, heard)
            run.cancel()
        assert run.outcome.status is Status.CANCELLED
        await assert_nothing_is_left(server)
    assert len(os.listdir("/dev/fd")) == descriptors


async def test_the_timeout_ends_a_hanging_talk(attempts: AttemptKit) -> None:
    with mail_server({"EHLO": HANG}) as server:
        outcome = await attempts.outcome(sender_to(server), payload=HELLO, timeout=0.3)
        assert outcome.status is Status.TIMEOUT
        await assert_nothing_is_left(server)


async def test_a_cancel_ends_a_handshake_that_hangs(attempts: AttemptKit) -> None:
    with mail_server({"greeting": HANG}, tls=True) as server:
        run = attempts.run(sender_to(server, security="tls"), payload=HELLO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempts.end_of, run)
            await trio.to_thread.run_sync(server.wait_until_heard, "connect")
            run.cancel()
        assert run.outcome.status is Status.CANCELLED
        await assert_nothing_is_left(server)


async def test_a_stopping_node_ends_a_hanging_talk(attempts: AttemptKit) -> None:
    with mail_server({"EHLO": HANG}) as server:
        run = attempts.run(sender_to(server), payload=HELLO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempts.end_of, run)
            await trio.to_thread.run_sync(server.wait_until_heard, "ehlo")
            nursery.cancel_scope.cancel(reason="shutdown")
        assert run.outcome.status is Status.PENDING
        await assert_nothing_is_left(server)
