"""`poolsrv status`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ...core.text import one_line
from ..config_option import config_option, missing
from ..failures import reporting_failures
from ..output import echo
from ..suggesting import ConfigCommand


@click.command("status", cls=ConfigCommand)
@config_option("The config of the running server (TOML).", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--check", "only_check", is_flag=True, help="Print one line, and exit with the server's health.")
@click.pass_context
def command(ctx: click.Context, config: Path | None, as_json: bool, only_check: bool) -> None:
    """Show what a running server does.

    Prints workers, listeners, running programs and refused connections, with rates over the last seconds. Asks the
    server's control socket (pool.control). Exits with 0; with 1 if the server does not run, does not answer, or does
    not let this user ask; or with 2 if the config has no control socket.

    With --check, for monitoring, exits with 0 if all is well; with 1 if the server is degraded: not every worker can
    serve, or the last reload has failed; with 2 if it is down: it does not run, or does not answer; or with 3 if that
    can't be found out.
    """
    if only_check:
        if as_json:
            ctx.fail("--check prints one line, expected it without --json")
        from .. import health

        found, line = health.check(config)
        echo(one_line(line))
        sys.exit(found)
    if config is None:
        raise missing(ctx)
    from ...ipc import stats
    from ..control_client import ask
    from ..status import as_text

    with reporting_failures():
        answer = ask(config)
    if as_json:
        click.echo(stats.as_json(answer))
    else:
        echo(as_text(answer))
