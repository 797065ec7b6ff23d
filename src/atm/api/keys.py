"""API keys: who may ask for what.

A key is a long random token, so that a plain fast hash of it is enough: nobody can go through them all. The node
knows the hashes alone. A node without keys asks for none, and is served on loopback only.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterable
from typing import NamedTuple

from atm.api.answer import NO_KEY, NO_SCOPE
from atm.config import ApiKey, KeyScope

PREFIX = "atm_"
"""So that people, and scanners for lost secrets, know a key when they see one."""

RANDOM_BYTES = 32

OPEN = frozenset({"/livez", "/readyz", "/openapi.json", "/docs"})
"""Paths whose GET needs no key: probes have none, browsers send none; the documents hold nothing secret."""

_SUBMIT = re.compile(r"/api/v1/tasks(/batch|/[^/]+/retry)?/?")
_CANCEL = re.compile(r"/api/v1/tasks/[^/]+/cancel/?")

logger = logging.getLogger("atm.api")

Headers = Iterable[tuple[bytes, bytes]]


class _Known(NamedTuple):
    name: str
    digest: bytes
    scopes: frozenset[KeyScope]


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def hash_of(key: str) -> str:
    """What the config holds instead of the key."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def scope_for(method: str, path: str) -> KeyScope | None:
    """What a key must have for this call; None where no key is needed.

    Whatever is not known here asks for ``admin``: a route that was forgotten is closed, not open.
    """
    if method in ("GET", "HEAD"):
        return None if path.removesuffix("/") in OPEN else "read"
    if method == "POST" and _SUBMIT.fullmatch(path):
        return "submit"
    if method == "POST" and _CANCEL.fullmatch(path):
        return "cancel"
    return "admin"


class Keys:
    """The keys of a node."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._known = [
            _Known(key.name, bytes.fromhex(key.hash.partition(":")[2]), frozenset(key.scopes)) for key in keys
        ]

    def __bool__(self) -> bool:
        return bool(self._known)

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """Code and message, if these headers do not entitle to this call."""
        scope = scope_for(method, path)
        if scope is None:
            return None
        shown = set(_shown(headers))
        if len(shown) != 1:
            return NO_KEY, "the headers show different API keys" if shown else "an API key is needed"
        key = self._find(shown.pop())
        if key is None:
            logger.debug("a key that is not known asked for %s", scope)
            return NO_KEY, "the API key is not known"
        if key.scopes.isdisjoint((scope, "admin")):
            logger.debug("key %s asked for %s, which it does not have", key.name, scope)
            return NO_SCOPE, f"the API key does not have the scope {scope}"
        logger.debug("key %s asks for %s", key.name, scope)
        return None

    def _find(self, shown: bytes) -> _Known | None:
        """Compares with every key, whichever it is: the time taken tells nothing about them."""
        digest = hashlib.sha256(shown).digest()
        same = [hmac.compare_digest(digest, key.digest) for key in self._known]
        return self._known[same.index(True)] if any(same) else None


def _shown(headers: Headers) -> Iterable[bytes]:
    """Keys in the headers. Credentials of other schemes are somebody else's, a proxy's perhaps."""
    for name, value in headers:
        if name == b"x-api-key":
            yield value
        elif name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield token.strip(b" ")
