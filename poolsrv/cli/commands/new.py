"""`poolsrv new`."""

from __future__ import annotations

from pathlib import Path

import click

from ..output import EXIT_FAILED, EXIT_USAGE, echo, fail


@click.command("new", no_args_is_help=True)
@click.argument("name")
@click.option("--http", is_flag=True, help="Make an HTTP service, built on poolsrv_http.")
def command(name: str, http: bool) -> None:
    """Make the distribution of a new plugin.

    NAME consists of small letters, digits and hyphens. Makes the directory poolsrv-NAME in the current one, with a
    typed module with options, tests that pass, a config, a README and a pyproject.toml. `pytest` and `poolsrv run` work
    in it at once, without an installation.

    \b
    Examples:
      poolsrv new shout              a plugin that answers lines, in poolsrv-shout
      poolsrv new hello --http       a plugin that answers HTTP requests

    Nothing is overwritten: exits with 2 if the directory exists, or if no plugin can have that name.
    """
    from .. import new_plugin

    try:
        names = new_plugin.names_for(name)
        files = new_plugin.make(names, Path(), http)
    except new_plugin.BadName as error:
        fail(EXIT_USAGE, [f"poolsrv: {error}"])
    except FileExistsError:
        fail(EXIT_USAGE, [f"poolsrv: {names.distribution} exists already, expected a new directory"])
    except OSError as error:
        fail(EXIT_FAILED, [f"poolsrv: can't make {names.distribution}: {error.strerror or error}"])
    for file in files:
        echo(str(file))
    echo(f"\ncd {names.distribution}\npytest\n{new_plugin.command_to_run(names)}")
