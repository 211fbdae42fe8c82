"""`poolsrv run`."""

from __future__ import annotations

from typing import Any

import click

from ..completers import plugin_names
from ..serve import current_directory, listener_name, said, serve, serving_options
from ..suggesting import ServingCommand


@click.command("run", cls=ServingCommand)
@click.argument("handler", shell_complete=plugin_names)
@click.option(
    "--plugin",
    "plugins",
    metavar="NAME",
    multiple=True,
    shell_complete=plugin_names,
    help="A further plugin, called before HANDLER. May be repeated.",
)
@click.option("--dev", is_flag=True, help="Reload when files of the plugins change (needs watchfiles).")
@serving_options("127.0.0.1:7007")
@click.pass_context
def command(ctx: click.Context, /, handler: str, plugins: tuple[str, ...], **options: Any) -> None:
    """Serve one plugin.

    HANDLER is the name of an installed plugin, or module:Class. The module is looked for in the current directory
    first, so a plugin under development needs no installation. HUP loads it again, and so does --dev whenever one of
    its files is saved. Ctrl-C stops the server; a second one does not wait for open connections.

    --set takes every key of [listeners.NAME] (idle_timeout=5), [pool] and [log] (pool.user=nobody), and every option of
    HANDLER (root=cgi-bin) and of other plugins (NAME.key=value). The value is a TOML value; text needs no quotes.

    \b
    Examples:
      poolsrv run echo                                  echo on 127.0.0.1:7007
      poolsrv run echo --bind :7007 --workers 2         on every address
      poolsrv run my_protocol:Shout --dev               the class Shout of ./my_protocol.py
      poolsrv run cgi --set protocol=line --set root=cgi-bin --set idle_timeout=5
      poolsrv run echo --print-config > poolsrv.toml    make a config of the arguments

    The exit codes are those of `poolsrv --config FILE`: 2 for wrong arguments.
    """
    from ...config.arguments import Arguments
    from ...config.plugin_reference import name_of

    arguments = Arguments(
        command="poolsrv run",
        directory=current_directory(),
        listener=listener_name(name_of(handler)),
        handler=handler,
        plugins=plugins,
        **said(options),
    )
    serve(ctx, arguments, options)
