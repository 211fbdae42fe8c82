"""`poolsrv runs`."""

from __future__ import annotations

from pathlib import Path

import click

from ..config_option import config_option
from ..failures import reporting_failures
from ..output import EXIT_FAILED, echo, echo_json, fail
from ..suggesting import ConfigCommand


@click.command("runs", cls=ConfigCommand)
@click.argument("run_id", metavar="[ID]", required=False)
@config_option("The config of the running server (TOML).")
@click.option("--failed", is_flag=True, help="Only runs that have failed.")
@click.option(
    "--slow",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    is_flag=False,
    flag_value=1.0,
    help="Only runs that took at least so long; without a number, 1.",
)
@click.option("--follow", is_flag=True, help="Go on, and print runs as they end, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def command(
    ctx: click.Context,
    run_id: str | None,
    config: Path,
    failed: bool,
    slow: float | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Show the programs that have run, or one run with its environment and the end of its standard error.

    Lists the latest runs (pool.runs), and apart from them the latest that have failed or took more than a second, the
    newest last. A run shows up about a second after its end. With an ID, or its beginning, shows everything that is
    known of that run; values that are secrets are masked.

    A run has failed if the program could not be started, exited with another status than 0, was ended by a signal or
    for a timeout, or printed no valid response. Asks the server's control socket (pool.control). Exits with 0; with 1
    if the server does not run, does not answer, does not let this user ask, or has no such run; or with 2 if the config
    has no control socket.

    \b
    Examples:
      poolsrv runs --failed
      poolsrv runs --slow 0.5 --json
      poolsrv runs k3v9x2mq
    """
    if run_id == "":
        ctx.fail("an empty ID, expected one of the list, or none")
    if run_id and (failed or slow is not None or follow):
        ctx.fail("--failed, --slow and --follow are for the list, expected no ID with them")
    if follow and as_json:
        ctx.fail("--follow prints a table that goes on, expected it without --json")
    from .. import runs

    with reporting_failures():
        if run_id:
            run = runs.find(config, run_id)
            if run is None:
                fail(EXIT_FAILED, [runs.not_found(config, run_id)])
            if as_json:
                echo_json(run)
            else:
                echo(runs.details(run))
            return
        wanted = runs.Filter(failed=failed, slow=slow)
        if follow:
            runs.follow(config, wanted)
        found = wanted.apply(runs.all_of(config))
    if as_json:
        echo_json(found)
    else:
        echo(runs.as_table(found) if found else runs.nothing(wanted))
