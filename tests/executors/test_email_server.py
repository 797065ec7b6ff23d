"""``send_email`` against a mail server that is not ours, with TLS and passwords."""

from __future__ import annotations

import email
import email.policy
from pathlib import Path
from typing import Any

import pytest

from atm.executors.email import EmailExecutor
from atm.task import Status
from executors.mail import Mailbox, mail_server_of_others
from executors.web import Certificate, certificate
from nursery.bench import AttemptKit

HELLO = {"to": ["user@example.com", "other@example.com"], "subject": "Grüße", "body": "Zeile\n.\n字"}


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), "localhost")


@pytest.fixture(autouse=True)
def trusted(cert: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(cert.authority))


def sender_to(mailbox: Mailbox, security: str, **settings: Any) -> EmailExecutor:
    given = {"host": "localhost", "port": mailbox.port, "security": security, "sender": "shop@example.com"}
    return EmailExecutor("smtp", **given | {"user": "me", "password": "secret"} | settings)


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_a_message_is_sent_by_who_has_the_password(
    attempts: AttemptKit, cert: Certificate, tmp_path: Path, security: str
) -> None:
    with mail_server_of_others(tmp_path, cert.chain, security) as mailbox:
        outcome = await attempts.outcome(sender_to(mailbox, security), payload=HELLO)
        assert outcome.status is Status.SUCCESS, outcome.message
        outcome = await attempts.outcome(sender_to(mailbox, security, password="wrong"), payload=HELLO)
        assert (outcome.status, outcome.retry_in) == (Status.FAILED, None)
        outcome = await attempts.outcome(sender_to(mailbox, security, user=None), payload=HELLO)
        assert (outcome.status, outcome.retry_in) == (Status.FAILED, None)
        (taken,) = mailbox.messages()
        logins = mailbox.logins()
    assert (taken["from"], taken["to"]) == ("shop@example.com", HELLO["to"])
    message = email.message_from_string(taken["text"], policy=email.policy.default)
    assert message["Subject"] == HELLO["subject"]
    assert logins[0] == ["me", "secret"]
    assert logins[-1] == ["me", "wrong"]
