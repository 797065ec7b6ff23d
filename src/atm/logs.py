"""Where log lines go: readable on a terminal, JSON lines otherwise and in the file."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import math
import sys
import time
from pathlib import Path
from typing import Any

from atm.config import Log
from atm.errors import StartError

MAX_FILE = 50 * 1024 * 1024
"""Bytes of one log file; then it is rotated."""

KEPT_FILES = 5

_EXTRAS = ("task_id", "task_type", "attempt", "incident")


class TextFormatter(logging.Formatter):
    """``10:00:00 warning  worker  task FAILED: …  task_id=… attempt=1``"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        extras = "".join(f"  {name}={value}" for name, value in _extras(record).items())
        name = record.name.removeprefix("atm.")
        line = f"{clock} {record.levelname.lower():8} {name:7} {record.getMessage()}{extras}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _EXTRAS if hasattr(record, name)}


def set_up(settings: Log) -> list[logging.Handler]:
    """Send the product's log lines where the settings say; to be undone by ``tear_down``.

    Raises: StartError when the file cannot be written.
    """
    terminal = logging.StreamHandler(sys.stderr)
    readable = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    terminal.setFormatter(TextFormatter() if readable else JsonFormatter())
    handlers: list[logging.Handler] = [terminal]
    if settings.file is not None:
        handlers.append(_file_handler(Path(settings.file)))
    root = logging.getLogger("atm")
    root.setLevel(settings.level.upper())
    root.propagate = False
    for handler in handlers:
        root.addHandler(handler)
    return handlers


def tear_down(handlers: list[logging.Handler]) -> None:
    root = logging.getLogger("atm")
    root.propagate = True
    for handler in handlers:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk; the handler has told it
            handler.close()


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log file that cannot be written is told once, in one line; the node goes on."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        if not self._told:
            self._told = True
            reason = sys.exc_info()[1]
            sys.stderr.write(f"atm: cannot write the log file {self.baseFilename}: {reason}\n")


def _file_handler(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, maxBytes=MAX_FILE, backupCount=KEPT_FILES, encoding="utf-8")
    except OSError as error:
        raise StartError(f"log.file: cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    handler.setFormatter(JsonFormatter())
    return handler


class Seldom:
    """Keeps what happens with every request from flooding the log: at most one line in ``interval`` seconds."""

    def __init__(self, logger: logging.Logger, interval: float = 1.0) -> None:
        self._logger = logger
        self._interval = interval
        self._last = -math.inf
        self._kept_back = 0

    def error(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last < self._interval:
            self._kept_back += 1
            return
        more = f" (and {self._kept_back} more before)" if self._kept_back else ""
        self._last, self._kept_back = now, 0
        self._logger.error("%s%s", text, more)
