"""`poolsrv completion`."""

from __future__ import annotations

import click

from ..completion import SHELLS, script


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print a script that makes the shell complete commands, options and values.

    It proposes commands, options, names of plugins, config files and log levels, as they are installed when you press
    Tab. The wheel installs the same scripts into share/, where shells find them if the prefix is one of the system's.

    \b
    Examples:
      eval "$(poolsrv completion bash)"                                    in ~/.bashrc
      eval "$(poolsrv completion zsh)"                                     in ~/.zshrc, after compinit
      poolsrv completion fish > ~/.config/fish/completions/poolsrv.fish    once
    """
    click.echo(script(shell), nl=False)
