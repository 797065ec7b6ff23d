"""The command line: a node (``serve``, which is also what ``python -m atm`` does), and what asks one.

    nodes.py     serve, migrate, key          tasks.py     submit, get, ls, cancel, retry
    settings.py  config check, config show    follow.py    logs, watch
    doctor.py    doctor                       cluster.py   workers, queues, types
    shells.py    completion                   bench.py     bench

    ask.py   which server, which key          say.py   tables and JSON          live.py   what moves
    exits.py codes to exit with               checks.py, checkup.py   what the doctor looks at

A command's file is imported when the command is called, and what is heavy in it when it is needed.
"""

from __future__ import annotations

from importlib import import_module

import click

from atm.cli.exits import EXIT_CONFIG, EXIT_DAMAGED, EXIT_UNAVAILABLE, guarded

__all__ = ["EXIT_CONFIG", "EXIT_DAMAGED", "EXIT_UNAVAILABLE", "main"]

COMMANDS = {
    "serve": "nodes:serve",
    "submit": "tasks:submit",
    "get": "tasks:get",
    "ls": "tasks:ls",
    "cancel": "tasks:cancel",
    "retry": "tasks:retry",
    "logs": "follow:logs",
    "watch": "follow:watch",
    "workers": "cluster:workers",
    "queues": "cluster:queues",
    "types": "cluster:types",
    "doctor": "doctor:doctor",
    "bench": "bench:bench",
    "config": "settings:config",
    "migrate": "nodes:migrate",
    "key": "nodes:key",
    "completion": "shells:completion",
}
"""Where each is, in the order of the help."""


class _Main(click.Group):
    """Without a command it is ``serve``, whose options may then stand alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = ("-h", "--help", "--version")
        # Whoever completes a line wants to know the commands, too.
        if not ctx.resilient_parsing and (not args or (args[0].startswith("-") and args[0] not in own)):
            self._refuse_early(ctx, args)
            args = ["serve", *args]
        with guarded():
            return super().parse_args(ctx, args)

    def _refuse_early(self, ctx: click.Context, args: list[str]) -> None:
        """Another command's option before that command; ``serve`` would call it unknown. Raises UsageError."""
        serve = self.get_command(ctx, "serve")
        command = next((word for word in args if word in COMMANDS), None)
        if args and command and serve and not any(args[0].split("=")[0] in option.opts for option in serve.params):
            raise click.UsageError(f"options stand behind the command: atm {command} {args[0]} …", ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"atm.cli.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        with guarded():
            return super().invoke(ctx)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="async-task-manager", prog_name="atm")
def main() -> None:
    """atm runs asynchronous tasks: durable, cancellable, on Trio. Without a command it is ``serve``."""
