"""`poolsrv plugins`."""

from __future__ import annotations

import sys

import click

from ..completers import plugin_names
from ..output import EXIT_FAILED, EXIT_USAGE, echo, echo_json, fail


@click.command("plugins")
@click.argument("name", required=False, shell_complete=plugin_names)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(name: str | None, as_json: bool) -> None:
    """List the installed plugins, or explain one.

    Each is shown with its name in a config, the package that it comes from, its hooks, and its options with types and
    defaults. A plugin that can't be used is shown with its error.

    With NAME, shows only that plugin, and explains each of its options. Exits with 1 if it can't be used, or with 2 if
    it is not installed. NAME may be module:Class, in the current directory or installed.
    """
    from .. import plugin_list

    if name is not None:
        try:
            entry = plugin_list.entry(name)
        except plugin_list.UnknownPlugin as error:
            fail(EXIT_USAGE, [f"poolsrv: {error}"])
        if as_json:
            echo_json(entry)
        else:
            echo(plugin_list.explanation(entry))
        sys.exit(EXIT_FAILED if entry.error else 0)
    entries = plugin_list.entries()
    if as_json:
        echo_json(entries)
    else:
        echo(plugin_list.as_text(entries))
