"""Log lines: readable on a terminal, JSON otherwise, and in a file that does not grow for ever."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import logging.handlers
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atm import logs
from atm.config import Log
from atm.errors import StartError
from atm.logs import JsonFormatter, TextFormatter

logger = logging.getLogger("atm.worker")
ABOUT = {"task_id": "0199", "task_type": "echo", "attempt": 2}


class Terminal(io.StringIO):
    def __init__(self, *, is_one: bool = True) -> None:
        super().__init__()
        self._is_one = is_one

    def isatty(self) -> bool:
        return self._is_one


@contextlib.contextmanager
def logging_to(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[Terminal]:
    """Lines go to ``terminal`` and, unless the settings name one, to no file."""
    monkeypatch.setattr(sys, "stderr", terminal)
    handlers = logs.set_up(Log(**{"file": None, **settings}))
    try:
        yield terminal
    finally:
        logs.tear_down(handlers)


def entries(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def failure(message: str = "no") -> tuple[type[BaseException], BaseException, Any]:
    try:
        raise ValueError(message)
    except ValueError as error:
        return type(error), error, error.__traceback__


def record(message: str, *args: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("atm.worker", logging.WARNING, __file__, 1, message, args, None)
    made.created, made.msecs = 1_700_000_000.25, 250.0
    vars(made).update(fields)
    return made


# how lines look


def test_a_text_line_tells_when_how_bad_who_what_and_about_which_task() -> None:
    line = TextFormatter().format(record("task %s", "FAILED", **ABOUT))
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d warning +worker +task FAILED  task_id=0199  task_type=echo  attempt=2", line
    )


def test_a_text_line_of_an_error_is_followed_by_its_traceback() -> None:
    first, *rest = TextFormatter().format(record("failed", exc_info=failure())).splitlines()
    assert first.endswith("failed")
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "ValueError: no"


def test_a_json_line_holds_the_same_in_utc() -> None:
    line = JsonFormatter().format(record("task %s", "FAILED", **ABOUT))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "atm.worker",
        "message": "task FAILED",
        **ABOUT,
    }


def test_whatever_is_logged_a_json_entry_is_one_line() -> None:
    fields = {"incident": "abc", "attempt": Path("odd"), "exc_info": failure("a\nb")}
    line = JsonFormatter().format(record("先\n后 %s", '"', **fields))
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["message"] == '先\n后 "'
    assert entry["attempt"] == "odd"
    assert entry["incident"] == "abc"
    assert entry["exception"].endswith("ValueError: a\nb")


# where they go


@pytest.mark.parametrize(
    ("chosen", "is_terminal", "is_json"),
    [
        ("auto", True, False), ("auto", False, True), ("text", False, False), ("json", True, True),
    ],
)  # fmt: skip
def test_a_terminal_gets_text_and_a_pipe_json_unless_told(
    monkeypatch: pytest.MonkeyPatch, chosen: str, is_terminal: bool, is_json: bool
) -> None:
    with logging_to(Terminal(is_one=is_terminal), monkeypatch, format=chosen) as out:
        logger.warning("hello")
    assert out.getvalue().startswith("{") is is_json
    assert "hello" in out.getvalue()


def test_the_level_decides_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with logging_to(Terminal(), monkeypatch, level="Warning") as out:
        logger.info("not this")
        logger.warning("but this")
    assert "not this" not in out.getvalue()
    assert "but this" in out.getvalue()


def test_the_file_is_json_whatever_the_terminal_gets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "worker.log"
    with logging_to(Terminal(), monkeypatch, file=str(path), format="text") as out:
        logger.warning("你好", extra=ABOUT)
    assert "你好" in out.getvalue()
    (entry,) = entries(path.read_text(encoding="utf-8"))
    assert entry["message"] == "你好"
    assert entry["task_id"] == "0199"


def test_a_second_start_goes_on_in_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    for number in range(2):
        with logging_to(Terminal(), monkeypatch, file=str(path)):
            logger.warning("start %d", number)
    assert [entry["message"] for entry in entries(path.read_text())] == ["start 0", "start 1"]


def test_a_full_file_is_rotated_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "MAX_FILE", 200)
    path = tmp_path / "worker.log"
    with logging_to(Terminal(), monkeypatch, file=str(path)):
        for number in range(30):
            logger.warning("line %d, long enough to fill a file with two of its kind", number)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["worker.log", *(f"worker.log.{n + 1}" for n in range(logs.KEPT_FILES))]
    assert entries(path.read_text())[-1]["message"].startswith("line 29,")


def test_without_a_file_none_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with logging_to(Terminal(), monkeypatch):
        logger.error("hello")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"^log\.file: cannot write .*/file/worker\.log: "):
        logs.set_up(Log(file=str(tmp_path / "file" / "worker.log")))
    assert logging.getLogger("atm").handlers == []


def test_only_the_products_lines_are_taken_and_only_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(logging.getLogger("atm").handlers)
    with logging_to(Terminal(), monkeypatch) as out:
        logging.getLogger("somebody.else").error("theirs")
        logger.error("ours")
    logger.error("too late")
    assert "ours" in out.getvalue()
    assert "theirs" not in out.getvalue()
    assert "too late" not in out.getvalue()
    assert logging.getLogger("atm").handlers == before
    assert logging.getLogger("atm").propagate


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_once_and_the_node_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "worker.log").symlink_to("/dev/full")
    with logging_to(Terminal(), monkeypatch, file=str(tmp_path / "worker.log")) as out:
        logger.error("first")
        logger.error("second")
    told = out.getvalue()
    assert told.count("cannot write the log file") == 1
    assert "first" in told
    assert "second" in told
    assert "Traceback" not in told


def test_what_happens_with_every_request_is_told_seldom(caplog: pytest.LogCaptureFixture) -> None:
    seldom = logs.Seldom(logging.getLogger("atm.test"), interval=0.2)
    for _ in range(50):
        seldom.error("refused")
    time.sleep(0.25)
    seldom.error("refused")
    assert [record.message for record in caplog.records] == ["refused", "refused (and 49 more before)"]
