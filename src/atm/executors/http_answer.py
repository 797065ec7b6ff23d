"""What a task keeps of an HTTP response, however large or odd that is. Pure: no I/O, no trio."""

from __future__ import annotations

import base64
import email.utils
import json
import math
import re
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import httpx

MAX_RESPONSE = 256 * 1024
"""Bytes of a body, decoded. As JSON text it may grow fourfold, and a result has 1 MiB."""

MAX_HEADER = 1024
"""Characters of a header's value; the rest is cut."""

KEPT_HEADERS = ("content-type", "date", "etag", "last-modified", "link", "location", "retry-after", "x-request-id")

_CHARSETS = frozenset(
    (
        *("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "iso-8859-15"),
        *("windows-1250", "windows-1251", "windows-1252", "koi8-r"),
        *("gbk", "gb2312", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr"),
    )
)
"""Others are not looked up by a name that the other side gives: not all of Python's codecs are of texts."""

_CHARSET = re.compile(r"charset=\"?([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_JSON = re.compile(r"application/(?:[a-z0-9!#$&^_.+-]+\+)?json", re.IGNORECASE)
_GZIP = 31
_GZIP_MAGIC = b"\x1f\x8b"


class Collected:
    """A body as it arrives, decoded, up to a limit; never more than that is in memory.

    Attributes:
        truncated: some of the body is missing.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        self.truncated = False
        self.is_decoded = encoding.lower() in ("", "identity", "gzip", "x-gzip")
        self._zipped = encoding.lower().endswith("gzip")
        self._unzip = zlib.decompressobj(_GZIP)
        self._data = bytearray()
        self._limit = limit
        self._received = 0

    @property
    def body(self) -> bytes:
        return bytes(self._data[: self._limit])

    def add(self, data: bytes) -> bool:
        """Whether more is wanted."""
        if self.truncated:
            return False
        self._received += len(data)
        if self._zipped:
            self._add_zipped(data)
        else:
            self._data += data[: self._room]
        # What unzips to nothing could go on for ever.
        if not self._room or self._received > 2 * self._limit + 1024:
            self.truncated = True
        return not self.truncated

    def end(self) -> None:
        """All has arrived."""
        self.truncated |= self._zipped and self._received > 0 and not self._unzip.eof

    @property
    def _room(self) -> int:
        """How much is taken yet: a byte more than is kept, to know that there is more."""
        return self._limit + 1 - len(self._data)

    def _add_zipped(self, data: bytes) -> None:
        try:
            while data and self._room:
                if self._unzip.eof:
                    if not data.startswith(_GZIP_MAGIC):
                        return
                    self._unzip = zlib.decompressobj(_GZIP)
                self._data += self._unzip.decompress(data, self._room)
                data = self._unzip.unused_data if self._unzip.eof else self._unzip.unconsumed_tail
        except zlib.error:
            self.truncated = True


def result_of(response: httpx.Response, collected: Collected, keep: Iterable[str]) -> dict[str, Any]:
    """The task's result: ``status``, ``headers``, and the body as ``json``, ``body`` (a text) or ``base64``."""
    wanted = {*KEPT_HEADERS, *keep, *(() if collected.is_decoded else ("content-encoding",))}
    result: dict[str, Any] = {
        "status": response.status_code,
        "headers": {
            name: text[:MAX_HEADER] for name in sorted(wanted) if (text := response.headers.get(name)) is not None
        },
    }
    if collected.truncated:
        result["truncated"] = True
    if collected.body or collected.truncated:
        result |= _told(collected, response.headers.get("content-type", ""))
    return result


def _told(collected: Collected, content_type: str) -> dict[str, Any]:
    text = _text_of(collected.body, content_type, collected.truncated) if collected.is_decoded else None
    if text is None:
        return {"base64": base64.b64encode(collected.body).decode()}
    if _JSON.match(content_type) and not collected.truncated:
        try:
            value = json.loads(text, parse_constant=_refuse)
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            return {"body": text}
        return {"json": value}
    return {"body": text}


def _text_of(body: bytes, content_type: str, is_cut: bool) -> str | None:
    """The body as a text that JSON takes at little cost; None when it is none."""
    named = _CHARSET.search(content_type)
    charset = named[1].lower() if named else "utf-8"
    try:
        # A cut may have gone through a character.
        text = body.decode(charset if charset in _CHARSETS else "utf-8", "ignore" if is_cut else "strict")
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def retry_after(response: httpx.Response) -> float:
    """Seconds that the response asks to wait (RFC 9110, section 10.2.3); 0 when it does not, or not clearly.

    A date is compared with the response's own, so that nobody's clock needs to be right.
    """
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    until = _date(text)
    if until is None:
        return 0.0
    now = _date(response.headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, math.ceil((until - now).total_seconds()))


def _date(text: str) -> datetime | None:
    try:
        found = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
