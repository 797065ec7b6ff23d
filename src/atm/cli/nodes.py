"""Commands of who runs nodes: serve, migrate, key. What makes a node is imported when one is made."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import click
import trio

from atm import config as configuration
from atm.cli.ask import config_option, json_option
from atm.errors import ConfigError

if TYPE_CHECKING:
    from atm.node import Node


@click.command()
@config_option
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
    from atm.node import Node

    node = Node(configuration.load(config_path, flags=given))
    trio.run(partial(node.run, task_status=_Announcement(node)))


@click.command(short_help="Make or update the tables of a cluster's database.")
@config_option
@json_option
def migrate(config_path: str | None, as_json: bool) -> None:
    """Bring the cluster's database to this version's schema. Every node does so by itself when it starts."""
    from atm.node import Node

    found = trio.run(Node(configuration.load(config_path)).migrate)
    if as_json:
        click.echo(json.dumps({"ok": True, "version_before": found}))
        return
    click.echo(f"the schema is up to date; before, it had version {found}" if found else "the schema is made")


@click.command()
@click.argument("name")
@click.option("--scopes", default="read,submit,cancel", show_default=True, help="Any of read,submit,cancel,admin.")
@json_option
def key(name: str, scopes: str, as_json: bool) -> None:
    """Make an API key, and its lines for the config. It is shown this once and kept nowhere."""
    from atm.api import keys

    made = keys.new_key()
    entry = {"name": name, "hash": keys.hash_of(made), "scopes": [scope.strip() for scope in scopes.split(",")]}
    try:
        (checked,) = configuration.parse({"server": {"api_keys": [entry]}}).server.api_keys
    except ConfigError as error:
        raise click.UsageError(f"{error.key.partition('].')[2]}: {error.reason}") from None
    if as_json:
        told = {"key": made, "name": checked.name, "hash": checked.hash, "scopes": list(checked.scopes)}
        click.echo(json.dumps(told))
        return
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
