"""Try the Go client against a node of this program's own: style, tests, and the programs of docs/go-sdk.md.

To be run by `nox -s go`. It needs a Go toolchain, and the modules of the session `tests`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TASKS = "go_tasks"

sys.path.insert(0, str(ROOT / "tests"))

import golang  # noqa: E402
from atm.client.sides import Verb, Walk  # noqa: E402
from atm.client.verbs import Verbs  # noqa: E402
from running import FREE_PORTS, node  # noqa: E402


def run(*command: str, folder: Path = HERE, environ: Mapping[str, str] | None = None) -> str:
    """What the command prints; the program ends where it fails."""
    print("$", *command, flush=True)
    given = {**os.environ, **golang.ENVIRON, **(environ or {})}
    done = subprocess.run(command, cwd=folder, env=given, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}")
    return done.stdout


def missing() -> list[str]:
    """The verbs of the Python SDK that the Go client, or the table of its page, does not have."""
    verbs = [name for name, value in vars(Verbs).items() if isinstance(value, Verb | Walk)]
    assert verbs, "the Python SDK has no verbs"
    names = ["".join(word.title() for word in verb.split("_")) for verb in verbs]
    methods = run("go", "doc", "./client", "Client")
    page = golang.PAGE.read_text(encoding="utf-8")
    return [name for name in names if f") {name}(" not in methods or f"`{name}(" not in page]


def main() -> None:
    if unformatted := run("gofmt", "-l", "."):
        sys.exit(f"to be formatted by gofmt: {unformatted}")
    run("go", "vet", "./...")
    if lacking := missing():
        sys.exit(f"the Go client or docs/go-sdk.md lacks: {', '.join(lacking)}")
    found = golang.programs()
    assert found, "docs/go-sdk.md holds no program"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shutil.copy(HERE / f"{TASKS}.py", folder)
        with node(environ={**FREE_PORTS, "ATM_EXECUTORS": TASKS}) as started:
            told = run("go", "test", "-count=1", "-v", "./...", environ={"ATM_URL": started.url})
            assert "--- SKIP" not in told, "a test was skipped, though there is a node"
            for number, code in enumerate(found):
                try_program(Path(folder, f"program{number}"), code, started.url)
            assert started.end() == 0


def try_program(folder: Path, code: str, url: str) -> None:
    """As the page tells: a module of its own that finds the client in this folder."""
    golang.write(folder, code, url)
    if run("gofmt", "-l", ".", folder=folder):
        sys.exit(f"a program of docs/go-sdk.md is to be formatted by gofmt: {folder.name}")
    for command in (*golang.SET_UP, ("go", "run", ".")):
        run(*command, folder=folder)


if __name__ == "__main__":
    main()
