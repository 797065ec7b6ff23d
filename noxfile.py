"""The only door for the checks. Each session makes a virtual environment of its own and installs what it needs.

nox                            tests, lint, types
nox -s stores                  the contract of the stores on a MySQL server of yours, named by ATM_TEST_MYSQL
nox -s chaos                   kills real nodes again and again; takes minutes
nox -s go                      the Go client against a node, where there is a Go toolchain
nox -s bench                   measures the product on this machine; takes minutes
nox -s bench -- cluster --only pickup      one of the benchmarks, embedded, cluster or cancels, and its options
nox -s tests -- -k config      what stands behind -- goes to the tool

The tests start MariaDB and Redis themselves, each run its own, and need the programs of both. Where these are
missing they are installed from the distribution's packages, by root or with a sudo that asks nothing. The packages
are those that bring no service along: nothing is started, and nothing will be at the next boot.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True

SERVERS = {
    "mariadb-server-core": ("mariadbd", "mysqld"),
    "mariadb-client-core": ("mariadb", "mysql"),
    "redis-tools": ("redis-server", "redis-check-rdb"),
}
"""Packages of Debian and Ubuntu, and the programs that make each of them superfluous."""

BENCHMARKS = ("embedded", "cluster", "cancels")

# Ubuntu's needrestart would restart services of the machine after an installation.
QUIET = ("env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1")
# --no-remove: a MySQL that stands in the way is the user's, and stays.
INSTALL = ("install", "-y", "-q", "--no-install-recommends", "--no-remove", "-o", "DPkg::Lock::Timeout=120")


def install_servers(session: nox.Session) -> None:
    """Install what is missing of the servers that the tests start."""
    missing = missing_servers()
    if not missing:
        return
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") is None or not may_run([*root, "true"]):
        session.error(f"MariaDB and Redis are needed; install them: sudo apt install {' '.join(missing)}")
    apt = [*root, *QUIET, "apt-get"]
    # Where a foreign source does not answer the update fails, and what is needed may be known all the same.
    session.run(*apt, "update", "-q", external=True, success_codes=[0, 100])
    session.run(*apt, *INSTALL, *missing, external=True)
    if still := missing_servers():
        session.error(f"these packages did not bring the programs that the tests look for: {' '.join(still)}")


def missing_servers() -> list[str]:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    found = {name for names in SERVERS.values() for name in names if shutil.which(name, path=path)}
    return [package for package, names in SERVERS.items() if not found.intersection(names)]


def may_run(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
    except OSError:
        return False


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but those of `chaos`, with branch coverage, that of the nodes they start included."""
    install_servers(session)
    session.install(".[test]")
    options = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal", "--cov", "--cov-report=term"]
    session.run("pytest", "-m", "not faults", *options, *session.posargs)


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
    session.run("mypy", "tests/sdk/user_types.py")


@nox.session
def stores(session: nox.Session) -> None:
    """The contract of the stores on the MySQL server that ATM_TEST_MYSQL names."""
    if not os.environ.get("ATM_TEST_MYSQL"):
        session.error('say which server: ATM_TEST_MYSQL="host=127.0.0.1 port=3306 user=root password=secret"')
    install_servers(session)
    session.install(".[test]")
    session.run("pytest", *(session.posargs or ["tests/contracts", "tests/stores"]))


@nox.session
def chaos(session: nox.Session) -> None:
    """The tests marked `faults`."""
    install_servers(session)
    session.install(".[test]")
    session.run("pytest", "-m", "faults", *(session.posargs or ["tests/faults"]))


@nox.session
def go(session: nox.Session) -> None:
    """The Go client: style, tests and the examples of its page, against an embedded node."""
    missing = [program for program in ("go", "gofmt") if shutil.which(program) is None]
    if missing:
        session.skip(
            f"the Go client was NOT tried: no {' and no '.join(missing)} here (sudo apt install golang-go)"
        )
    session.install(".[test]")
    session.run("python", "clients/go/check.py")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, or the one that is named, with its options."""
    install_servers(session)
    session.install(".[test]")
    options = [word for word in session.posargs if word not in BENCHMARKS]
    for name in [word for word in session.posargs if word in BENCHMARKS] or BENCHMARKS:
        session.run("python", f"benchmarks/{name}.py", *options)
