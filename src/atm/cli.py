"""The command line. ``serve`` runs a node; it is what ``python -m atm`` does."""

from __future__ import annotations

import json
import sys
from functools import partial

import click
import trio

from atm import config as configuration
from atm.api import keys
from atm.errors import AtmError, ConfigError, StoreDamaged, WorkerIdTaken
from atm.node import Node

EXIT_UNAVAILABLE = 69
EXIT_DAMAGED = 74
EXIT_CONFIG = 78
"""sysexits.h: what is needed is not to be had (port, file, lock); the data is damaged; the settings are wrong."""


class _ServeByDefault(click.Group):
    """Without a command it is ``serve``, whose options may then stand alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = ("-h", "--help", "--version")
        if not args or (args[0].startswith("-") and args[0] not in own):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ServeByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="async-task-manager", prog_name="atm")
def main() -> None:
    """atm runs asynchronous tasks: durable, cancellable, on Trio. Without a command it is ``serve``."""


@main.command()
@click.option("--config", "config_path", type=click.Path(), help="The config file (default ./config.yaml).")
@click.option("--host", help="Address of the API.")
@click.option("--port", type=int, help="Port of the API.")
@click.option("--metrics-port", type=int, help="Port of the metrics.")
@click.option("--data", help="The embedded store's file.")
@click.option("--capacity", type=int, help="Tasks that run at a time.")
@click.option("--log-level", help="debug, info, warning or error.")
def serve(
    config_path: str | None = None,
    host: str | None = None,
    port: int | None = None,
    metrics_port: int | None = None,
    data: str | None = None,
    capacity: int | None = None,
    log_level: str | None = None,
) -> None:
    """Run a node."""
    flags = {
        "server.host": host,
        "server.port": port,
        "metrics.port": metrics_port,
        "database.path": data,
        "worker.capacity": capacity,
        "log.level": log_level,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        node = Node(configuration.load(config_path, flags=given))
        trio.run(partial(node.run, task_status=_Announcement(node)))
    except AtmError as error:
        sys.exit(_report(error))


@main.command()
@click.option("--config", "config_path", type=click.Path(), help="The config file (default ./config.yaml).")
def migrate(config_path: str | None) -> None:
    """Bring the cluster's database to this version's schema. Every node does so by itself when it starts."""
    try:
        found = trio.run(Node(configuration.load(config_path)).migrate)
    except AtmError as error:
        sys.exit(_report(error))
    click.echo(f"the schema is up to date; before, it had version {found}" if found else "the schema is made")


@main.command()
@click.argument("name")
@click.option("--scopes", default="read,submit,cancel", show_default=True, help="Any of read,submit,cancel,admin.")
def key(name: str, scopes: str) -> None:
    """Make an API key, and its lines for the config. It is shown this once and kept nowhere."""
    made = keys.new_key()
    entry = {"name": name, "hash": keys.hash_of(made), "scopes": [scope.strip() for scope in scopes.split(",")]}
    try:
        (checked,) = configuration.parse({"server": {"api_keys": [entry]}}).server.api_keys
    except ConfigError as error:
        raise click.UsageError(f"{error.key.partition('].')[2]}: {error.reason}") from None
    click.echo(f"""\
The key, for those who ask (shown only now):

  {made}

Its lines for config.yaml:

server:
  api_keys:
    - name: {json.dumps(checked.name)}
      hash: "{checked.hash}"
      scopes: [{", ".join(checked.scopes)}]""")


class _Announcement(trio.TaskStatus[None]):
    """Prints the banner when the node says that it has started."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def started(self, value: None = None) -> None:
        click.echo(self._node.banner())


def _report(error: AtmError) -> int:
    click.echo(f"atm: {error}", err=True)
    if isinstance(error, ConfigError | WorkerIdTaken):
        return EXIT_CONFIG
    return EXIT_DAMAGED if isinstance(error, StoreDamaged) else EXIT_UNAVAILABLE
