"""`poolsrv cgi`."""

from __future__ import annotations

import os
from typing import Any

import click

from ..serve import current_directory, said, serve, serving_options
from ..suggesting import Directory, ServingCommand

PROGRAMS = ("cgi-bin", "htbin")


@click.command("cgi", cls=ServingCommand)
@click.argument("directory", metavar="[DIR]", default=".", type=Directory())
@serving_options("127.0.0.1:8000")
@click.pass_context
def command(ctx: click.Context, /, directory: str, **options: Any) -> None:
    """Serve a directory's programs and files over HTTP.

    Executable files below DIR/cgi-bin and DIR/htbin run as CGI programs; their source is never sent. Everything else
    below DIR is sent as a file; for a directory, its index.html, or else a listing. Names that begin with a dot are
    never sent, nor is anything outside DIR. Each request is a line on standard output. DIR defaults to the current
    directory.

    This replaces `python -m http.server --cgi`, and serves many requests at a time, with limits and timeouts. --set
    takes every option of the plugin cgi (`poolsrv plugins cgi` explains them) and every key of [listeners.NAME], [pool]
    (pool.KEY) and [log] (log.KEY).

    \b
    Examples:
      poolsrv cgi                                       the current directory, on 127.0.0.1:8000
      poolsrv cgi site --bind :8080                     another directory, on every address
      poolsrv cgi --set timeout=10 --set warm=true      Python programs run without starting an interpreter
      poolsrv cgi --set pool.user=nobody                as root: programs run as another user
      poolsrv cgi --print-config > poolsrv.toml         make a config of the arguments

    The exit codes are those of `poolsrv --config FILE`: 2 for wrong arguments.
    """
    from ...config.arguments import Arguments

    folders = {f"/{name}": os.path.normpath(os.path.join(directory, name)) for name in PROGRAMS}
    warnings = []
    if not any(map(os.path.isdir, folders.values())):
        warnings.append(f"{directory} has neither {' nor '.join(PROGRAMS)}: no programs, only files")
    if os.geteuid() == 0 and not any(setting.key == ("pool", "user") for setting in options["settings"]):
        warnings.append("programs run as root; with --set pool.user=NAME they run as that user")
    arguments = Arguments(
        command="poolsrv cgi",
        directory=current_directory(),
        listener="www",
        handler="cgi",
        options={
            "roots": folders,
            "files": directory,
            "file_index": ["index.html", "index.htm"],
            "listings": True,
            "access_log": "/dev/stdout",
        },
        flags={"roots": "DIR", "files": "DIR"},
        warnings=tuple(warnings),
        **said(options),
    )
    serve(ctx, arguments, options)
