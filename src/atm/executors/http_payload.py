"""What an HTTP task asks for, and what of the answer becomes its result. Pure: no I/O, no trio."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import httpx

from atm.errors import NonRetryable

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FIELDS = (
    *("method", "url", "headers", "json", "body"),
    *("timeout", "expected_status", "redirects", "idempotency_header"),
)

MAX_URL = 8192
"""Characters of a URL."""

MAX_REDIRECTS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")
_OF_THE_CONNECTION = frozenset(
    (
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer"),
        *("expect", "proxy-authorization", "proxy-connection", "accept-encoding"),
    )
)
"""Set by the transport alone: by another Host, or a second length, one reaches what was not asked for."""

_FOR_ANYBODY = frozenset({"accept", "accept-language", "content-type", "user-agent"})
"""Headers that a redirect may take along to another host; any other may be a secret."""


class Order:
    """A request that a task asks for.

    Attributes:
        url: http or https, with a host.
        headers: as given; names may repeat in different case.
        content: the body.
        timeout: seconds that the whole of it may take; None leaves it to the task's timeout.
        expected: the statuses that are a success; None: 200 to 299.
        redirects: how many are followed.
        key_header: the header of the idempotency key, None for none.
    """

    def __init__(self, payload: Mapping[str, Any], *, method: str, key_header: str | None) -> None:
        """Raises NonRetryable, naming the field."""
        for name in payload:
            if name not in FIELDS:
                raise NonRetryable(f"payload.{name} is unknown; there are {', '.join(FIELDS)}")
        self.method = _method(payload.get("method", method))
        self.url = url_of(payload.get("url"))
        self.headers = _headers(payload.get("headers", {}))
        self.content = _content(payload, self.headers)
        self.timeout = _timeout(payload.get("timeout"))
        self.expected = _expected(payload.get("expected_status"))
        self.redirects = _redirects(payload.get("redirects", 0))
        self.key_header = _key_header(payload.get("idempotency_header", key_header))
        if self.url.userinfo:
            token = base64.b64encode(f"{self.url.username}:{self.url.password}".encode()).decode()
            self.headers.setdefault("authorization", f"Basic {token}")

    def expects(self, status: int) -> bool:
        return 200 <= status < 300 if self.expected is None else status in self.expected

    def request(self, key: str) -> httpx.Request:
        """The request as it is sent. ``key`` is the idempotency key."""
        headers = {"accept": "*/*", "user-agent": "async-task-manager"} | self.headers
        headers |= {"accept-encoding": "gzip", "connection": "close"}
        if self.key_header is not None:
            headers.setdefault(self.key_header.lower(), key)
        return httpx.Request(self.method, self.url, headers=headers, content=self.content)

    def follow(self, status: int, location: str) -> None:
        """Become the request that a redirect asks for (RFC 9110, section 15.4). Raises NonRetryable."""
        try:
            url = _checked(self.url.join(location))
        except (httpx.InvalidURL, ValueError):
            raise NonRetryable("a redirect leads to what is no URL of http or https") from None
        if self.url.scheme == "https" and url.scheme == "http":
            raise NonRetryable("a redirect leads from https to http, which is not followed")
        if origin_of(url) != origin_of(self.url):
            self.headers = {name: value for name, value in self.headers.items() if name in _FOR_ANYBODY}
        if (status == 303 and self.method != "HEAD") or (status in (301, 302) and self.method == "POST"):
            self.method, self.content = "GET", None
            self.headers.pop("content-type", None)
        self.url = url


def origin_of(url: httpx.URL) -> str:
    """What errors and logs tell of a URL; path and query may be secrets."""
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"


def url_of(value: object) -> httpx.URL:
    """Raises NonRetryable, which does not repeat the URL."""
    if not isinstance(value, str) or len(value) > MAX_URL:
        raise NonRetryable(f"payload.url must be a text, a URL of {MAX_URL} characters at the most")
    try:
        return _checked(httpx.URL(value))
    except (httpx.InvalidURL, ValueError):
        raise NonRetryable("payload.url must be a URL of http or https with a host") from None


def _checked(url: httpx.URL) -> httpx.URL:
    port = 1 if url.port is None else url.port
    if url.scheme not in ("http", "https") or not url.raw_host or not 1 <= port <= 65535:
        raise ValueError
    return url


def _method(value: object) -> str:
    if not isinstance(value, str) or value.upper() not in METHODS:
        raise NonRetryable(f"payload.method must be one of {', '.join(METHODS)}")
    return value.upper()


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise NonRetryable('payload.headers must be an object of texts, as in {"Accept": "text/plain"}')
    found: dict[str, str] = {}
    for name, text in value.items():
        # A name that is none is not repeated: someone may have put a value there.
        if not _TOKEN.fullmatch(name):
            raise NonRetryable("payload.headers has a name that can be none of a header")
        if name.lower() in _OF_THE_CONNECTION:
            raise NonRetryable(f"payload.headers.{name} cannot be set")
        if name.lower() in found:
            raise NonRetryable(f"payload.headers.{name} is there twice")
        if not isinstance(text, str) or not _VALUE.fullmatch(text.strip(" \t")):
            raise NonRetryable(f"payload.headers.{name} must be a text of printable ASCII characters in one line")
        found[name.lower()] = text.strip(" \t")
    return found


def _content(payload: Mapping[str, Any], headers: dict[str, str]) -> bytes | None:
    body = payload.get("body")
    if "json" in payload:
        if body is not None:
            raise NonRetryable("payload.body and payload.json exclude each other")
        headers.setdefault("content-type", "application/json")
        return json.dumps(payload["json"], ensure_ascii=False, separators=(",", ":")).encode()
    if body is None:
        return None
    if not isinstance(body, str):
        raise NonRetryable("payload.body must be a text; give other values as payload.json")
    headers.setdefault("content-type", "text/plain; charset=utf-8")
    return body.encode()


def _timeout(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise NonRetryable("payload.timeout must be a number of seconds above 0")
    return float(min(value, 1e9))


def _expected(value: object) -> frozenset[int] | None:
    if value is None:
        return None
    found = value if isinstance(value, list) else [value]
    if not found or not all(type(status) is int and 200 <= status <= 599 for status in found):
        raise NonRetryable("payload.expected_status must be a status from 200 to 599, or a list of them")
    return frozenset(found)


def _redirects(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_REDIRECTS:
        raise NonRetryable(f"payload.redirects must be a number from 0 to {MAX_REDIRECTS}")
    return value


def _key_header(value: object) -> str | None:
    if value is not None and not is_header(value):
        raise NonRetryable("payload.idempotency_header must be the name of a header, or null for none")
    return value if isinstance(value, str) else None


def is_header(name: object) -> bool:
    """Whether a request may have a header of this name."""
    return isinstance(name, str) and bool(_TOKEN.fullmatch(name)) and name.lower() not in _OF_THE_CONNECTION
