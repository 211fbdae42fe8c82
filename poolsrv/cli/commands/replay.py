"""`poolsrv replay`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...core.text import one_line
from ..config_option import config_option, missing
from ..output import EXIT_USAGE, echo, fail
from ..suggesting import ConfigCommand

if TYPE_CHECKING:
    from ...ipc.captures import Capture
    from ..replaying import Replayed

_MARKS = {True: "differs", False: "same", None: ""}


@click.command("replay", cls=ConfigCommand)
@click.argument("capture", metavar="CAPTURE")
@config_option("The config of the server (TOML).", required=False)
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="A variable of its environment.")
@click.option("--dry-run", is_flag=True, help="Print what would be run, and run nothing.")
@click.option("--as-root", is_flag=True, help="Run it as root, as a server does that has no pool.user.")
@click.pass_context
def command(
    ctx: click.Context,
    capture: str,
    config: Path | None,
    settings: tuple[str, ...],
    dry_run: bool,
    as_root: bool,
) -> None:
    """Run a program again that has failed, with the same input, and show what differs.

    CAPTURE is the ID of a run that `poolsrv runs` shows with a capture, or the beginning of it, or the path of a
    capture's file. The program runs with the arguments, the environment, the body, the directory, the limits and
    the sandbox that it had, as a process of its own. It does everything that it does for a client: it writes to
    databases, sends mail, and so on. Nothing runs without this command.

    Runs as the current user. As root, becomes the user of the config (pool.user) first. It does not become the
    listener's own user for programs, and says so. Values that were masked in the capture are left out; --set gives
    them. Exits with 0 if the program ended as before, with the same status, header and standard error; with 1 if
    something differs; with 2 if it could not be run.

    \b
    Examples:
      poolsrv replay k3v9x2mq --dry-run
      poolsrv replay k3v9x2mq --set HTTP_COOKIE=session=17
      poolsrv replay /var/lib/poolsrv/captures/k3v9x2mq.run
    """
    from .. import replay, replaying

    given: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not name or not equals:
            ctx.fail(f"--set {setting}: expected NAME=VALUE")
        given[name] = value
    try:
        path = _path(ctx, capture, config, as_root or dry_run)
        found = replay.read(path)
    except replay.NoCapture as error:
        fail(EXIT_USAGE, [f"poolsrv: {error}"])
    environment = replay.environment_of(found, given)
    for warning in replay.warnings(found, given):
        click.echo(one_line(f"poolsrv: {warning}"), err=True)
    if dry_run:
        rows = replay.plan(found, environment)
        width = max(len(label) for label, _ in rows)
        echo("\n".join(one_line(f"{label:{width}}  {text}") for label, text in rows))
        return
    click.echo(one_line(f"poolsrv: running {found.command[0]} again, with all that it does"), err=True)
    try:
        done = replaying.run(found, environment)
    except (OSError, ValueError) as error:
        fail(EXIT_USAGE, [f"poolsrv: can't run {found.command[0]}: {getattr(error, 'strerror', None) or error}"])
    _show(found, done)


def _path(ctx: click.Context, capture: str, config: Path | None, may_be_root: bool) -> str:
    """Find the file, and become the server's user."""
    from ...core import privileges
    from .. import replay
    from ..loading import load

    is_path = "/" in capture or capture.endswith(".run")
    folders: list[str] = []
    if config is not None and (os.geteuid() == 0 or not is_path):
        from ...plugins.capture_folders import capture_folders

        _, server = load(config)
        privileges.stop_reading()
        folders = capture_folders(server)
    elif not is_path:
        raise missing(ctx)
    if os.geteuid() == 0 and not may_be_root:
        raise replay.NoCapture("refused as root: expected a config with pool.user, or --as-root")
    return capture if is_path else replay.find(capture, folders)


def _show(capture: Capture, done: Replayed) -> None:
    from .. import replay
    from ..tables import table

    rows = replay.compare(capture, done)
    cells = [(row.label, one_line(row.before), one_line(row.now), _MARKS[row.differs]) for row in rows]
    echo(table(("<", "<captured", "<now", "<"), cells))
    lines = list(replay.differences(capture, done))
    if lines:
        echo("\n".join(map(one_line, lines)))
    sys.exit(1 if any(row.differs for row in rows) else 0)
