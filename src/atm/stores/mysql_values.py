"""How values stand in the statements of the MySQL store."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

encode = msgspec.json.Encoder().encode
"""The value as a JSON text."""


def literal(value: object) -> bytes:
    """The value as it stands in a statement."""
    if value is None:
        return b"NULL"
    if isinstance(value, str):
        return quote(value.encode())
    if isinstance(value, bytes):
        return quote(value)
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be stored")
        return repr(value).encode()
    raise TypeError(f"{type(value).__name__} cannot be stored")


def quote(text: bytes) -> bytes:
    text = text.replace(b"\\", b"\\\\").replace(b"'", b"\\'").replace(b"\0", b"\\0")
    return b"'" + text + b"'"


def bind(sql: str, *values: object) -> bytes:
    """The statement with the values at its ``%s``."""
    return sql.encode() % tuple(map(literal, values))


def listing(values: Iterable[object]) -> bytes:
    """The values in brackets, for IN."""
    return b"(" + b",".join(map(literal, values)) + b")"
