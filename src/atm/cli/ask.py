"""Which server the commands ask, and with which key.

The address: ``--url``, else ATM_URL, else what the config says of a node's own address. The key: that in
``--api-key-file``, else ATM_API_KEY. There is no option for the key itself: who may list processes reads
their arguments.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from atm import config as configuration
from atm.config import Config
from atm.errors import ConfigError

if TYPE_CHECKING:
    from atm.client import Client

F = TypeVar("F", bound=Callable[..., Any])

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}  # noqa: S104 - an address to ask instead

RETRIES, RETRY_FOR = 3, 5.0
"""For who waits at a terminal: a server that is away is told within a second."""

PATIENT_RETRIES, PATIENT_FOR = 100, 30.0
"""For what waits or follows, once a server has answered: as often as it takes, for as long as a restart may."""


class Asker:
    """What the options say about the server."""

    def __init__(self, url: str | None, api_key_file: str | None, config_path: str | None) -> None:
        self._given = url
        self._api_key_file = api_key_file
        self.config_path = config_path

    @property
    def is_told(self) -> bool:
        """Whether the address was said, and not taken from the config."""
        return bool(self._given or os.environ.get("ATM_URL"))

    def config(self) -> Config:
        """Raises ConfigError."""
        return configuration.load(self.config_path)

    def url(self) -> str:
        """Raises ConfigError, click.UsageError."""
        from atm.client.http import reason_against

        if self._given:
            if reason := reason_against(self._given):
                raise click.BadParameter(reason, param_hint="--url")
            return self._given
        if told := os.environ.get("ATM_URL"):
            if reason := reason_against(told):
                raise ConfigError("ATM_URL", reason)
            return told
        return url_of(self.config())

    def api_key(self) -> str | None:
        """Raises ConfigError, click.UsageError."""
        key = os.environ.get("ATM_API_KEY", "").strip()
        where = "ATM_API_KEY"
        if self._api_key_file:
            where = f"--api-key-file {self._api_key_file}"
            try:
                key = Path(self._api_key_file).read_text(encoding="ascii").strip()
            except (OSError, ValueError) as error:
                raise ConfigError(
                    where, f"cannot be read: {getattr(error, 'strerror', None) or 'not ASCII'}"
                ) from None
            if not key:
                raise ConfigError(where, "is empty")
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(where, "the key must be printable ASCII without blanks")
        return key or None

    def client(self, *, patient: bool = False) -> Client:
        """A client of that server; a ``patient`` one, for a server that has answered, outlasts its restart."""
        from atm.client import Client

        retries, retry_for = (PATIENT_RETRIES, PATIENT_FOR) if patient else (RETRIES, RETRY_FOR)
        # Empty, not None: None would have the client look into the environment.
        return Client(self.url(), api_key=self.api_key() or "", retries=retries, retry_for=retry_for)


def url_of(config: Config) -> str:
    """Where the node of this config serves its API. Raises ConfigError."""
    server = config.server
    hint = "give its address by --url or ATM_URL"
    if not server.enabled:
        raise ConfigError("server.enabled", f"the node of this config serves no API; {hint}")
    if server.port == 0:
        raise ConfigError("server.port", f"0 is a port that nobody knows before; {hint}")
    host = WILDCARDS.get(server.host, server.host)
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


def config_option(command: F) -> F:
    option = click.option(
        "--config", "config_path", type=click.Path(), help="The config file (default ./config.yaml)."
    )
    return option(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="JSON, and nothing else, on stdout.")(command)


def asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that asks a server; it gets an Asker first, then ``as_json``."""

    def wrapped(
        *args: Any, url: str | None, api_key_file: str | None, config_path: str | None, **kwargs: Any
    ) -> Any:
        return command(Asker(url, api_key_file, config_path), *args, **kwargs)

    update_wrapper(wrapped, command)
    for option in (
        json_option,
        config_option,
        partial(_option, "--api-key-file", type=click.Path(), help="Holds the API key (default: ATM_API_KEY)."),
        partial(_option, "--url", help="The server (default: ATM_URL, else as the config says)."),
    ):
        wrapped = option(wrapped)
    return wrapped


def _option(name: str, command: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    return click.option(name, **settings)(command)
