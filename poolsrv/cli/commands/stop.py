"""`poolsrv stop`."""

from __future__ import annotations

from pathlib import Path

import click

from ..config_option import config_option
from ..failures import reporting_failures
from ..suggesting import ConfigCommand


@click.command("stop", cls=ConfigCommand)
@config_option("The config of the running server (TOML).")
@click.option("--now", "at_once", is_flag=True, help="End at once: open connections get no time to finish.")
def command(config: Path, at_once: bool) -> None:
    """Stop a running server, and wait for its end.

    Finds the server by pool.pidfile and sends it TERM: open connections get pool.graceful_timeout seconds.
    If pool.drain_notice is set, new connections are accepted for that time before.
    """
    from .. import lifecycle

    with reporting_failures():
        pid = lifecycle.stop(config, at_once)
    click.echo(f"stopped (it was pid {pid})")
