"""The command line. Each command imports what it needs: ``check`` has no use for the engine, ``--help`` for neither."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..config.errors import ConfigErrors
from ..core import logs
from ..core.text import encodable_in, one_line
from ..core.text import lines as lines_of
from ..core.words import counted, did_you_mean, quoted

if TYPE_CHECKING:
    from ..worker.spec import ServerSpec


EXIT_FAILED = 1  # at run time
EXIT_USAGE = 2  # usage or config

HELP = """
Serve what a config file describes: a pool of workers, and a plugin behind every address.

Runs in the foreground, and logs to standard error, or a file ([log]). When every worker serves, one line with the
word "ready" names every address; with port 0, the port that the kernel chose.

\b
Examples:
  poolsrv --config poolsrv.toml             serve
  poolsrv check --config poolsrv.toml       find every error of the file, serve nothing
  poolsrv status --config poolsrv.toml      what the server does now ([pool] control)
  poolsrv top --config poolsrv.toml         the same, ever anew
  poolsrv reload --config poolsrv.toml      have a running server take over config and code ([pool] pidfile)
  poolsrv stop --config poolsrv.toml        have it stop
  poolsrv plugins                           what a config may name, with hooks and options
  printf 'hello\\n' | nc -N 127.0.0.1 7007   talk to the echo of the sample config

\b
A config:
  [pool]
  workers = 4                  # "auto" without it: the CPUs that may be used
  [listeners.hello]
  bind = "127.0.0.1:7007"
  handler = "echo"             # the name of a plugin
"""

EPILOG = """
\b
Signals:
  TERM, INT, QUIT  stop: open connections get pool.graceful_timeout seconds; a second one ends at once
  HUP              reload: a new pool with the config and code on disk takes over, or nothing changes
  USR1             open the log files anew, after they have been renamed
  TTIN, TTOU       one worker more, one fewer, until the next reload
  (TERM to a single worker: it finishes what it has and is replaced)

\b
Exit codes:
  0  stopped as asked, or nothing wrong found
  1  failed at run time: an address in use, workers that can't start
  2  wrong usage, or errors in the config, each as FILE: key.path: what is wrong, what was expected

\b
Documentation: docs/ in the source distribution
  configuration.md every key, operations.md running it, plugins.md writing a protocol
"""


class _Group(click.Group):
    """Answers a misspelt command with the nearest one, and a config file in its place with what was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            hint = did_you_mean(name, self.list_commands(ctx))
            if name.endswith(".toml") or os.path.isfile(name):
                hint = f" (did you mean --config {name}?)"
            ctx.fail(f"no command {quoted(name)}{hint}")
        return super().resolve_command(ctx, args)


def _config_option(help_text: str, required: bool) -> Callable[[Any], Any]:
    return click.option(
        "--config", "-c", metavar="FILE", type=click.Path(path_type=Path), required=required, help=help_text
    )


@click.group(
    cls=_Group,
    invoke_without_command=True,
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)
@_config_option("The config to serve (TOML).", required=False)
@click.option(
    "--log-level", type=click.Choice(logs.LEVELS), help="The least that is logged; without it as [log] says, or info."
)
@click.version_option(package_name="poolsrv", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, log_level: str | None) -> None:
    logs.set_up(log_level or "info")
    if ctx.invoked_subcommand is not None:
        if config is not None:
            ctx.fail(f"--config goes after the command: poolsrv {ctx.invoked_subcommand} --config {config}")
        return
    if config is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(EXIT_USAGE)
    from ..supervisor.process import run

    run(os.fspath(config), log_level)


@cli.command()
@_config_option("The config to check (TOML).", required=True)
def check(config: Path) -> None:
    """Find every error of a config, and serve nothing.

    Imports the plugins that the config names and validates their options, but opens no socket. Exits with 0 and a
    summary, or with 2 and one line for each error.
    """
    server = _load(config)
    pool = server.config.pool
    _echo(f"{one_line(str(config))}: ok")
    _echo(f"{counted(pool.workers, 'worker')}, {pool.dispatch}")
    rows = [("listener", "plugins", "addresses")]
    for listener in server.config.listeners:
        plugins = " > ".join((*listener.plugins, listener.handler))
        rows.append((listener.name, plugins, ", ".join(map(str, listener.bind))))
    _echo(_table(rows))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def plugins(as_json: bool) -> None:
    """List the installed plugins.

    Of each: its name (what a config calls it), where it comes from, the hooks that it fills, and its options with
    types and defaults. One that can't be used is shown with its error.
    """
    from . import plugin_list

    entries = plugin_list.entries()
    if as_json:
        _echo_json(entries)
    else:
        _echo(plugin_list.as_text(entries))


@cli.command()
@_config_option("The config of the server to ask (TOML).", required=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def status(config: Path, as_json: bool) -> None:
    """Show what a running server does.

    Workers, listeners, running programs, refused connections; rates are those of the last seconds. It asks the control
    socket: pool.control in the config. Exits with 0, with 1 where the server does not run, does not answer, or may not
    be asked by this user, or with 2 where the config has no control socket.
    """
    from .control_client import ask
    from .status import as_text

    with _told():
        answer = ask(config)
    if as_json:
        _echo_json(answer)
    else:
        _echo(as_text(answer))


@cli.command()
@_config_option("The config of the server to watch (TOML).", required=True)
def top(config: Path) -> None:
    """The same as status, in the terminal and ever anew.

    The busiest workers first. Ends with q or Ctrl-C. Exit codes are those of status.
    """
    with _told():
        from .top import run

        run(config)


@cli.command()
@_config_option("The config of the server (TOML).", required=True)
def reload(config: Path) -> None:
    """Have a running server take over its config and code, and wait for the outcome.

    Finds the server by pool.pidfile, and sends it HUP. With pool.control in the config it waits until the new pool
    serves, and exits with 0; or with 1, and every reason, where the reload has failed and nothing has changed.
    """
    from . import lifecycle

    with _told():
        outcome = lifecycle.reload(config)
    if outcome is None:
        click.echo("the server has been asked to; its log has the outcome (with pool.control, this would wait for it)")
    elif outcome.ok:
        click.echo("reloaded")
    else:
        _fail(EXIT_FAILED, [*outcome.errors, "poolsrv: the reload has failed; nothing has changed"])


@cli.command()
@_config_option("The config of the server (TOML).", required=True)
@click.option("--now", "at_once", is_flag=True, help="Give open connections no time to finish.")
def stop(config: Path, at_once: bool) -> None:
    """Have a running server stop, and wait for its end.

    Finds the server by pool.pidfile, and sends it TERM: open connections get pool.graceful_timeout seconds.
    """
    from . import lifecycle

    with _told():
        pid = lifecycle.stop(config, at_once)
    click.echo(f"stopped (it was pid {pid})")


def main() -> NoReturn:
    """The command line, from ``sys.argv``. Always raises SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal can't show is escaped
            stream.reconfigure(errors="backslashreplace")
    cli.main(prog_name="poolsrv")
    raise AssertionError  # click exits by itself


def _load(config: Path) -> ServerSpec:
    """Load a config, and its plugins as the user that the pool is to run as."""
    from ..config import reader
    from ..core import privileges
    from ..errors import StartError
    from ..plugins import loader

    try:
        draft = reader.read(config)
        if (identity := loader.identity_for(draft)) is not None:
            privileges.become_for_imports(identity)
        return loader.load_plugins(draft)
    except ConfigErrors as errors:
        _fail(EXIT_USAGE, map(str, errors.problems))
    except StartError as error:
        _fail(EXIT_FAILED, [f"poolsrv: {error}"])


@contextmanager
def _told() -> Iterator[None]:
    """Why a server can't be asked, or told, as a message and an exit code."""
    from .control_client import NoAnswer

    try:
        yield
    except ConfigErrors as errors:
        _fail(EXIT_USAGE, map(str, errors.problems))
    except NoAnswer as error:
        _fail(error.exit_code, [f"poolsrv: {error}"] if error.exit_code == EXIT_FAILED else [str(error)])


def _fail(code: int, lines: Iterable[str]) -> NoReturn:
    for line in lines:
        click.echo(one_line(line), err=True)
    sys.exit(code)


def _echo(text: str) -> None:
    """Names in it may be no text."""
    click.echo(lines_of(text))


def _echo_json(value: object) -> None:
    import msgspec

    clean = encodable_in(msgspec.to_builtins(value))
    click.echo(msgspec.json.format(msgspec.json.encode(clean), indent=2))  # as bytes, in UTF-8 whatever the terminal


def _table(rows: list[tuple[str, str, str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
