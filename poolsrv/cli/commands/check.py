"""`poolsrv check`."""

from __future__ import annotations

from pathlib import Path

import click

from ...core.text import one_line
from ...core.words import counted
from ..config_option import config_option
from ..loading import load
from ..output import echo
from ..suggesting import ConfigCommand


@click.command("check", cls=ConfigCommand)
@config_option("The config to check (TOML).")
def command(config: Path) -> None:
    """Find every error in a config, without serving.

    Imports the plugins that the config names and validates their options, but opens no socket. Exits with 0 and a
    summary, or with 2 and one line for each error. Prints warnings to standard error.
    """
    from ...config import exposure, program_users
    from ...config.model import why_dispatched
    from ..tables import table

    draft, server = load(config)
    pool = server.config.pool
    for warning in (*exposure.warnings(server.config), *program_users.warnings(draft)):
        click.echo(one_line(f"{config}: warning: {warning}"), err=True)
    echo(f"{one_line(str(config))}: ok")
    echo(f"{counted(pool.workers, 'worker')}, {pool.dispatch}")
    rows = []
    for listener in server.config.listeners:
        plugins = " > ".join((*listener.plugins, listener.handler))
        rows.append((listener.name, plugins, ", ".join(map(str, listener.bind))))
    echo(table(("<listener", "<plugins", "<addresses"), rows))
    for listener in server.config.listeners if pool.dispatch == "kernel" else ():
        for address in listener.bind:
            if why := why_dispatched(listener, address):
                echo(f"{listener.name}: the dispatcher accepts on {address}, not the workers: {why}")
