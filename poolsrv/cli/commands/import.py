"""`poolsrv import`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..output import EXIT_FAILED, EXIT_USAGE, echo, fail


@click.command("import", no_args_is_help=True)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write to this new file instead of standard output.",
)
@click.option("--user", metavar="NAME", help="Only the services of this user.")
def command(files: tuple[Path, ...], output: Path | None, user: str | None) -> None:
    """Print a config for the services of inetd, xinetd or systemd.

    FILE is xinetd.conf or a folder like xinetd.d, an inetd.conf, or a .socket unit with Accept=yes (with its
    NAME@.service beside it, or in systemd's folders). Several files make one config.

    Settings without a counterpart become comments, and so do services that can't be served, with their old lines.
    `poolsrv check` accepts the result on this machine. Exits with 0; with 1 if no service is left; or with 2 and
    FILE:LINE for each mistake in the files.
    """
    from ..importing.document import Document
    from ..importing.files import read_services
    from ..importing.service import BadSource
    from ..importing.trial import accepted_text

    try:
        services = read_services(files)
        document = Document(services, user)
        text = accepted_text(document, [str(file) for file in files])
    except BadSource as error:
        fail(EXIT_USAGE, error.lines)
    if not services:
        fail(EXIT_FAILED, ["poolsrv: no service in these files"])
    if output is None:
        echo(text.removesuffix("\n"))
    else:
        try:
            with open(output, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            reason = "exists already, expected a new file" if isinstance(error, FileExistsError) else error.strerror
            fail(EXIT_USAGE, [f"{output}: {reason}"])
    for line in document.summary():
        click.echo(line.encode("utf-8", "backslashreplace").decode(), err=True)
    if not document.served:
        fail(EXIT_FAILED, ["poolsrv: no service is left that can be served: the comments say why"])
    sys.exit(0)
