"""Try the Go client against a node of this program's own: style, tests, and the programs of docs/go-sdk.md.

To be run by `nox -s go`. It needs a Go toolchain, and the modules of the session `tests`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = (ROOT / "docs" / "go-sdk.md",)
MODULE = "github.com/yourusername/async-task-manager"

sys.path.insert(0, str(ROOT / "tests"))

from running import node  # noqa: E402 - found by the line above


def run(*command: str, folder: Path = HERE, environ: Mapping[str, str] | None = None) -> str:
    """What the command prints; the program ends where it fails."""
    print("$", *command, flush=True)
    # Nothing is fetched: the client needs the standard library alone, and the toolchain that is there.
    given = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local", **(environ or {})}
    done = subprocess.run(command, cwd=folder, env=given, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}")
    return done.stdout


def programs() -> list[str]:
    """The whole programs on the pages."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    return [code for text in texts for code in re.findall(r"^```go\n(package main\n.*?)^```$", text, re.M | re.S)]


def main() -> None:
    if unformatted := run("gofmt", "-l", "."):
        sys.exit(f"to be formatted by gofmt: {unformatted}")
    run("go", "vet", "./...")
    found = programs()
    assert found, "docs/go-sdk.md holds no program"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with node() as started:
            run("go", "test", "-count=1", "-v", "./...", environ={"ATM_URL": started.url})
            for number, code in enumerate(found):
                try_program(Path(folder, f"program{number}"), code, started.url)
            assert started.end() == 0


def try_program(folder: Path, code: str, url: str) -> None:
    """As the page tells: a module of its own that finds the client in this folder."""
    folder.mkdir()
    (folder / "main.go").write_text(code.replace("http://localhost:8080", url), encoding="utf-8")
    run("gofmt", "-l", ".", folder=folder)
    run("go", "mod", "init", "example.com/app", folder=folder)
    run("go", "mod", "edit", f"-require={MODULE}@v0.0.0", f"-replace={MODULE}={HERE}", folder=folder)
    run("go", "run", ".", folder=folder)


if __name__ == "__main__":
    main()
