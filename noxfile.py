"""The only door for the checks. Each session makes a virtual environment of its own and installs what it needs.

nox                            tests, lint, types
nox -s chaos                   kills real nodes again and again; takes minutes
nox -s bench                   measures the product on this machine; takes minutes
nox -s tests -- -k config      what stands behind -- goes to the tool

Nothing beyond Python is needed yet. Servers that the sessions of the cluster need are to be started by them, here.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but those of `chaos`, with branch coverage, that of the nodes they start included."""
    session.install(".[test]")
    session.run("pytest", "-m", "not faults", "--cov", "--cov-report=term", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and the mistakes that can be seen in the text."""
    session.install(".[lint]")
    session.run("ruff", "check", ".", *session.posargs)
    session.run("ruff", "format", "--check", ".", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Strict types."""
    session.install(".[types]")
    session.run("mypy", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """The tests marked `faults`."""
    session.install(".[test]")
    session.run("pytest", "-m", "faults", *(session.posargs or ["tests/faults"]))


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmark of the embedded product."""
    session.install(".[test]")
    session.run("python", "benchmarks/embedded.py", *session.posargs)
