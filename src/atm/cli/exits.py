"""Codes that the commands exit with, and the one line that an error comes with.

After sysexits.h where that has a fitting one; docs/command-line.md explains them.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import click

from atm.errors import AtmError, ConfigError, StoreDamaged, WorkerIdTaken

EXIT_FAILED = 1
"""What was waited for, or looked at, is not as it should be."""

EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_CONFLICT = 4
EXIT_REFUSED = 5
EXIT_UNAVAILABLE = 69
EXIT_SOFTWARE = 70
EXIT_DAMAGED = 74
EXIT_OUTPUT = 74
EXIT_CONFIG = 78
EXIT_WAITED = 124
"""As of timeout(1)."""

NO_PATH = 40402
"""The code of the answer to a path that the server does not know: docs/api.md."""

EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
"""As a shell sees who SIGINT or SIGPIPE has ended."""

UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What becomes of output that nobody takes."""


@contextmanager
def guarded() -> Iterator[None]:
    """Turn what a command raises into one line and a code. Raises SystemExit, click's own exceptions, bugs."""
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except AtmError as error:
        click.echo(f"atm: {in_words(error)}{_advice_on(error)}", err=True)
        raise SystemExit(code_of(error)) from None
    except UnicodeEncodeError:
        # An argument of stray bytes, or an escaped half of a character in a payload.
        click.echo("atm: what is given holds something that is no text in Unicode", err=True)
        raise SystemExit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    except OSError as error:
        # A file of ours would have its name there.
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        _drop_output()
        if error.errno == errno.EPIPE:
            raise SystemExit(EXIT_PIPE) from None
        click.echo(f"atm: the output cannot be written: {error.strerror}", err=True)
        raise SystemExit(EXIT_OUTPUT) from None


def _open_closed() -> None:
    """Who closes a stream wants nothing from it; and no file of ours must get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends


def _drop_output() -> None:
    """What is still buffered must not fail once more at the very end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def code_of(error: AtmError) -> int:
    """The code that a command exits with for this error."""
    if isinstance(error, ConfigError | WorkerIdTaken):
        return EXIT_CONFIG
    if isinstance(error, StoreDamaged):
        return EXIT_DAMAGED
    # Late: it brings httpx along, which who only serves does not need.
    from atm import client

    if getattr(error, "code", None) == NO_PATH:
        return EXIT_REFUSED
    codes: list[tuple[type[AtmError], int]] = [
        (client.NotFound, EXIT_NOT_FOUND),
        (client.Conflict, EXIT_CONFLICT),
        (client.RateLimited, EXIT_UNAVAILABLE),
        (client.ServerUnavailable, EXIT_UNAVAILABLE),
        (client.ServerError, EXIT_SOFTWARE),
        (client.ApiError, EXIT_REFUSED),
        (client.WaitTimeout, EXIT_WAITED),
        (client.TaskUnsuccessful, EXIT_FAILED),
    ]
    return next((code for kind, code in codes if isinstance(error, kind)), EXIT_UNAVAILABLE)


def _advice_on(error: AtmError) -> str:
    """What to do about it, where the command line has a word on that."""
    if getattr(error, "sent", True) is False:
        return "; is a node running there? --url or ATM_URL name another"
    if getattr(error, "status", None) == HTTPStatus.UNAUTHORIZED:
        return "; put it into ATM_API_KEY, or name its file by --api-key-file"
    return ""


def in_words(error: AtmError) -> str:
    """One line, with every field that is wrong."""
    text = str(error)
    errors = getattr(error, "errors", ())
    if len(errors) > 1:
        text = "; ".join(f"{wrong.field}: {wrong.reason}" for wrong in errors)
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)
