"""`poolsrv top`."""

from __future__ import annotations

from pathlib import Path

import click

from ..config_option import config_option
from ..failures import reporting_failures
from ..suggesting import ConfigCommand


@click.command("top", cls=ConfigCommand)
@config_option("The config of the running server (TOML).")
def command(config: Path) -> None:
    """Live view of `status`, refreshed every second.

    Shows the busiest workers first. Press q or Ctrl-C to quit. The exit codes are those of status.
    """
    with reporting_failures():
        from ..top import run

        run(config)
