"""Go programs that use the client in this repository, each a module of its own, as docs/go-sdk.md tells."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

CLIENT = Path(__file__).parent.parent / "clients" / "go"
PAGE = CLIENT.parents[1] / "docs" / "go-sdk.md"
MODULE = "github.com/yourusername/async-task-manager"

# Nothing is fetched: the client needs the standard library alone, and the toolchain that is there.
ENVIRON = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}

SET_UP = (
    ("go", "mod", "init", "example.com/app"),
    ("go", "mod", "edit", f"-require={MODULE}@v0.0.0", f"-replace={MODULE}={CLIENT}"),
)
"""What makes a module of a folder."""


def missing() -> list[str]:
    """The programs of the toolchain that are not here."""
    return [program for program in ("go", "gofmt") if shutil.which(program) is None]


def programs() -> list[str]:
    """The whole programs on the page."""
    return re.findall(r"^```go\n(package main\n.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def write(folder: Path, code: str, url: str) -> None:
    """The program, in a new folder, for the node at this address."""
    folder.mkdir()
    (folder / "main.go").write_text(code.replace("http://localhost:8080", url), encoding="utf-8")
