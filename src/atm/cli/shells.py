"""completion: what a shell has to read so that it completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_ATM_COMPLETE"
"""Click's own name for it; the shell's function sets it when it asks."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion of a shell.

    \b
    bash:  eval "$(atm completion bash)"                          in ~/.bashrc
    zsh:   eval "$(atm completion zsh)"                           in ~/.zshrc
    fish:  atm completion fish > ~/.config/fish/completions/atm.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "atm", VARIABLE).source())
