"""`poolsrv explain`."""

from __future__ import annotations

from pathlib import Path

import click

from ...core.text import one_line
from ..config_option import config_option, is_from_command_line
from ..loading import load
from ..output import EXIT_USAGE, echo, fail
from ..suggesting import ConfigCommand, meant_config


@click.command("explain", cls=ConfigCommand)
@click.argument("question", default="")
@config_option("The config of the server (TOML).")
@click.option("--listener", metavar="NAME", help="The listener. Needed unless QUESTION is a URL with its address.")
@click.option("--client", metavar="ADDRESS", help="The address of a client, which allow and deny may refuse.")
@click.pass_context
def command(ctx: click.Context, question: str, config: Path, listener: str | None, client: str | None) -> None:
    """Explain what would answer a client, and why.

    Runs no program, and needs no running server. QUESTION is a URL or a path; with the protocol "line" it is a line.
    Prints the listener. For cgi, also prints the program with its SCRIPT_NAME, PATH_INFO, limits and environment, and
    whether it runs warm, or the rule that refuses the request. Exits with 0, or with 2 if there is no such listener or
    the config has errors.

    \b
    Examples:
      poolsrv explain http://127.0.0.1:8080/hello.py/more?q=1
      poolsrv explain --listener www /hello.py
      poolsrv explain --listener raw 'hello.py an-argument'
      poolsrv explain --listener www --client 192.0.2.7 /
    """
    from ...plugins.explanation import NotExplained, explain, find_listener

    _, server = load(config)
    try:
        rows = list(explain(find_listener(server, question, listener), question, client))
    except NotExplained as error:
        hint = meant_config(question) if question.endswith(".toml") and not is_from_command_line(ctx) else ""
        fail(EXIT_USAGE, [f"poolsrv: {error}{hint}"])
    width = max(len(label) for label, _ in rows)
    echo("\n".join(one_line(f"{label:{width}}  {text}") for label, text in rows))
