"""`poolsrv completion`."""

from __future__ import annotations

import click

from ..completion import SHELLS, script


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print a script that makes the shell complete commands, options and values.

    The shell then completes commands, options, names of installed plugins, config files and log levels. The wheel
    installs the same scripts into share/. Shells find them there if poolsrv is installed under a system prefix.

    \b
    Examples:
      eval "$(poolsrv completion bash)"                                    in ~/.bashrc
      eval "$(poolsrv completion zsh)"                                     in ~/.zshrc, after compinit
      poolsrv completion fish > ~/.config/fish/completions/poolsrv.fish    once
    """
    click.echo(script(shell), nl=False)
