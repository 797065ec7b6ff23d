"""What the commands print: tables for people, JSON for programs.

``--json`` prints one document a line, in UTF-8: one line for what is one thing, one a member for what is a
list. Times are RFC 3339 in UTC with milliseconds, as in the API.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Shown = RenderableType

WIDE = 10_000
"""Columns for a reader that is no terminal: nothing is cut there."""

COLOURS = {
    "SUCCESS": "green",
    "FAILED": "red",
    "TIMEOUT": "red",
    "CANCELLED": "yellow",
    "PROCESSING": "cyan",
    "ok": "green",
    "warning": "yellow",
    "error": "bold red",
    "draining": "yellow",
    "ERROR": "bold red",
}


@cache
def _console(stream: Any, error: bool) -> Console:
    # Of a stream that is no terminal the width would be 80, and the rest cut off. Rich knows NO_COLOR by itself.
    width = None if stream.isatty() else WIDE
    return Console(stderr=error, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def console() -> Console:
    return _console(sys.stdout, False)


def error_console() -> Console:
    return _console(sys.stderr, True)


def clean(value: object, *, lines: bool = False) -> str:
    """As text that cannot steer a terminal; ``lines``: line ends stay."""
    keep = "\n" if lines else ""
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in str(value)
    )


def styled(value: object) -> Text:
    """A status or level in its colour."""
    return Text(clean(value), style=COLOURS.get(str(value), ""))


def cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(f"{value:g}")
    return styled(value) if str(value) in COLOURS else Text(clean(value))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()) -> Table:
    """A table without lines; the first column, which tells things apart, is never cut.

    ``spare``: columns that are left out, in this order, while the terminal is too narrow for all of them.
    """
    screen, cells = console(), [[cell(value) for value in row] for row in rows]
    columns = {heading: [row[at] for row in cells] for at, heading in enumerate(headings)}
    made = _table(columns)
    for heading in spare:
        if Measurement.get(screen, screen.options.update(max_width=WIDE), made).maximum <= screen.width:
            break
        del columns[heading]
        made = _table(columns)
    return made


def _table(columns: Mapping[str, Sequence[Text]]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for at, heading in enumerate(columns):
        made.add_column(heading, no_wrap=at == 0, overflow="fold")
    for row in zip(*columns.values(), strict=True):
        made.add_row(*row)
    return made


def facts(pairs: Mapping[str, object]) -> Table:
    """Names and values, one a line."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        made.add_row(name, cell(value))
    return made


def parts(*pieces: tuple[object, str]) -> Text:
    """One line, from texts with their styles; line ends within them stay."""
    return Text.assemble(*((clean(text, lines=True), style) for text, style in pieces))


def stack(*things: RenderableType) -> RenderableType:
    """One below the other."""
    return Group(*things)


def show(content: RenderableType) -> None:
    screen = console()
    if screen.is_terminal:
        screen.print(content)
        return
    with screen.capture() as capture:
        screen.print(content)
    # Cells are filled up with blanks, which only a terminal does not show.
    line("\n".join(text.rstrip() for text in capture.get().rstrip("\n").split("\n")))


def line(text: str) -> None:
    click.echo(text)


def note(text: str) -> None:
    """A word to the person, beside what was asked for."""
    click.echo(text, err=True)


# JSON


def plain(value: Any) -> Any:
    """The models as values of JSON."""
    return msgspec.to_builtins(value, builtin_types=(datetime,))


def document(value: Any) -> None:
    """One line of JSON."""
    text = json.dumps(plain(value), ensure_ascii=False, default=_when, separators=(", ", ": "))
    click.echo(text.encode())


def short(value: Any) -> str:
    """JSON within a table."""
    return json.dumps(plain(value), ensure_ascii=False, default=_when)


def _when(value: object) -> str:
    assert isinstance(value, datetime)
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
