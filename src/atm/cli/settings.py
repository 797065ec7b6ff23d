"""config check and config show: what a node would make of its settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from atm import config as configuration
from atm.cli.ask import config_option, json_option
from atm.cli.exits import EXIT_CONFIG
from atm.config import Config
from atm.errors import ConfigError


@click.group("config")
def config() -> None:
    """Look at the settings, without starting a node."""


def file_of(path: str | None) -> Path | None:
    """The config file that counts; None when there is none."""
    file = Path(named(path))
    return file if file.exists() else None


def named(path: str | None) -> str:
    """The config file that is looked for."""
    return path or os.environ.get("ATM_CONFIG") or configuration.DEFAULT_FILE


def are_said(path: str | None) -> bool:
    """Whether anything here says how a node is to be: a file, or the environment."""
    said = {name for name in os.environ if name.startswith(configuration.ENV_PREFIX)} - configuration.ENV_OTHERS
    return file_of(path) is not None or bool(said)


def source_of(key: str, path: str | None) -> str:
    """Where a setting stands, as far as it can be told: the variable, or the file. No key: all of the file."""
    if not key:
        return named(path)
    # Of a list the key names the member, of a section that is none the section.
    whole = key.partition("[")[0].replace(".", "__").upper()
    variable = whole if whole.startswith(configuration.ENV_PREFIX) else f"{configuration.ENV_PREFIX}{whole}"
    if variable in os.environ:
        return variable
    inner = [name for name in os.environ if name.startswith(f"{variable}__")]
    file = file_of(path)
    return inner[0] if inner else str(file) if file else "the defaults"


def load_all(config: Config) -> list[str]:
    """Load what the settings name, as a node does; the task types that it would run. Raises ConfigError."""
    from atm.executors import loading
    from atm.nursery import balance
    from atm.registry import Registry

    registry = Registry()
    loading.load_shipped(registry)
    loading.load_entry_points(registry)
    loading.load_configured(registry, config.executors)
    if config.worker.supported_types:
        registry.restrict(config.worker.supported_types)
    balance.load(config.scheduler.load_balance_strategy)
    return sorted(registry.by_type)


@config.command()
@config_option
@json_option
def check(config_path: str | None, as_json: bool) -> None:
    """Say whether a node would accept the settings; if not, which key is wrong, and where it stands.

    Executors are loaded, too; nothing is connected to (that is what `atm doctor` does).
    """
    from atm.cli import say

    try:
        loaded = configuration.load(config_path)
        types = load_all(loaded)
    except ConfigError as error:
        where = source_of(error.key, config_path)
        if as_json:
            say.document({"ok": False, "file": where, "key": error.key or None, "reason": error.reason})
        else:
            say.note(f"atm: {error}" + (f" (in {where})" if where not in str(error) else ""))
        raise SystemExit(EXIT_CONFIG) from None
    file = file_of(config_path)
    driver = loaded.database.effective_driver
    if as_json:
        say.document({"ok": True, "file": str(file) if file else None, "driver": driver, "task_types": types})
        return
    kind = "embedded" if driver == "sqlite" else "cluster"
    say.line(f"ok: {file or 'no config file, the defaults'} ({kind}; runs {', '.join(types) or 'nothing'})")


@config.command()
@config_option
@json_option
def show(config_path: str | None, as_json: bool) -> None:
    """Print all settings as they count, defaults and environment included; secrets as stars."""
    from atm.cli import say

    settings: dict[str, Any] = configuration.masked(configuration.load(config_path))
    if as_json:
        say.document(settings)
    else:
        say.line(configuration.to_yaml(settings).rstrip())
