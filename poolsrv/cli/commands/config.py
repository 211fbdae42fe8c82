"""`poolsrv config`."""

from __future__ import annotations

from pathlib import Path

import click

from ..config_option import config_option
from ..loading import load
from ..output import echo
from ..suggesting import ConfigCommand


@click.command("config", cls=ConfigCommand)
@config_option("The config to show (TOML).")
def command(config: Path) -> None:
    """Print the config in effect, as TOML.

    Prints every key of the config and of its plugins' options, and marks those that the file leaves out with "default".
    Exits with 2 and one line for each error, as check does.
    """
    from .. import effective_config

    draft, server = load(config)
    echo(f"{effective_config.title(config)}\n\n{effective_config.as_toml(draft, server)}")
