"""`poolsrv reload`."""

from __future__ import annotations

from pathlib import Path

import click

from ..config_option import config_option
from ..failures import reporting_failures
from ..output import EXIT_FAILED, fail
from ..suggesting import ConfigCommand


@click.command("reload", cls=ConfigCommand)
@config_option("The config of the running server (TOML).")
def command(config: Path) -> None:
    """Load the config and code of a running server again.

    Finds the server by pool.pidfile and sends it HUP. If the config has pool.control, waits until the new pool serves
    and exits with 0. If the reload fails, nothing changes: exits with 1 and every reason.
    """
    from .. import lifecycle

    with reporting_failures():
        outcome = lifecycle.reload(config)
    if outcome is None:
        click.echo("the server reloads; its log has the outcome (with pool.control, this command would wait for it)")
    elif outcome.ok:
        click.echo("reloaded")
    else:
        fail(EXIT_FAILED, [*outcome.errors, "poolsrv: the reload has failed; nothing has changed"])
