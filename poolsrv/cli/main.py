"""The command line. Each command imports what it needs, so that ``--help`` and ``check`` do not import the engine."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from ..config.errors import ConfigErrors
from ..core import logs
from ..core.text import one_line
from ..core.words import counted, did_you_mean, quoted
from .config_option import config_option, is_from_command_line, missing
from .output import EXIT_FAILED, EXIT_USAGE, echo, echo_json, fail

if TYPE_CHECKING:
    from ..config.draft import Draft
    from ..worker.spec import ServerSpec

HELP = """
Run a server from a config file: a pool of worker processes, with a plugin for every address.

The server runs in the foreground and logs to standard error, or to a file ([log]). When every worker serves, it logs
one line with the word "ready" and every address, including the ports that the kernel chose for port 0.

\b
Examples:
  poolsrv --config poolsrv.toml             run the server
  poolsrv check --config poolsrv.toml       find every error in the config, without serving
  poolsrv config --config poolsrv.toml      print the config in effect, with every default
  poolsrv status --config poolsrv.toml      show what the server does now (needs pool.control)
  poolsrv status --check                    one line and an exit code, for monitoring
  poolsrv top --config poolsrv.toml         live view of status, refreshed every second
  poolsrv reload --config poolsrv.toml      load config and code again (needs pool.pidfile)
  poolsrv stop --config poolsrv.toml        stop the server (needs pool.pidfile)
  poolsrv plugins                           list the installed plugins with their hooks and options
  poolsrv plugins cgi                       explain one plugin and each of its options
  printf 'hello\\n' | nc -N 127.0.0.1 7007   talk to the echo server of the sample config

Without --config, every command takes $POOLSRV_CONFIG, or else poolsrv.toml in the current directory.

\b
A config:
  [pool]
  workers = 4                  # the default is "auto": one for each usable CPU
  [listeners.hello]
  bind = "127.0.0.1:7007"
  handler = "echo"             # the name of a plugin
"""

EPILOG = """
\b
Signals:
  TERM, INT, QUIT  stop: open connections get pool.graceful_timeout seconds; a second signal ends at once
  HUP              reload: a new pool with the config and code on disk takes over, or nothing changes
  USR1             reopen the log files, after they have been renamed
  TTIN, TTOU       one worker more, one fewer, until the next reload
  (TERM to a single worker: it finishes its connections and is replaced)

\b
Exit codes:
  0  stopped as asked, or no error found
  1  failed at run time: an address in use, workers that can't start
  2  wrong usage, or errors in the config, each as FILE: key.path: what is wrong, what was expected

\b
Documentation: docs/ in the source distribution
  configuration.md (every key), operations.md (running a server), plugins.md (writing a plugin)
"""


class _Group(click.Group):
    """Suggests the nearest command for a misspelt one, and ``--config`` for a config file in its place."""

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


@click.group(
    cls=_Group,
    invoke_without_command=True,
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)
@config_option("The config of the server to run (TOML).", required=False)
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS),
    help="The lowest level that is logged, in place of log.level.",
)
@click.version_option(package_name="poolsrv", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, log_level: str | None) -> None:
    logs.set_up(log_level or "info")
    if ctx.invoked_subcommand is not None:
        if is_from_command_line(ctx):
            ctx.fail(f"--config goes after the command: poolsrv {ctx.invoked_subcommand} --config {config}")
        return
    if config is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(EXIT_USAGE)
    from ..supervisor.process import run

    run(os.fspath(config), log_level)


@cli.command()
@config_option("The config to check (TOML).")
def check(config: Path) -> None:
    """Find every error in a config, without serving.

    Imports the plugins that the config names and validates their options, but opens no socket. Exits with 0 and a
    summary, or with 2 and one line for each error.
    """
    from .tables import table

    _, server = _load(config)
    pool = server.config.pool
    echo(f"{one_line(str(config))}: ok")
    echo(f"{counted(pool.workers, 'worker')}, {pool.dispatch}")
    rows = []
    for listener in server.config.listeners:
        plugins = " > ".join((*listener.plugins, listener.handler))
        rows.append((listener.name, plugins, ", ".join(map(str, listener.bind))))
    echo(table(("<listener", "<plugins", "<addresses"), rows))


@cli.command("config")
@config_option("The config to show (TOML).")
def show_config(config: Path) -> None:
    """Print the config in effect, as TOML.

    Has every key of the config and of its plugins' options. Those that the file leaves out are marked with "default".
    Exits with 2 and one line for each error, as check does.
    """
    from . import effective_config

    draft, server = _load(config)
    echo(f"{effective_config.title(config)}\n\n{effective_config.as_toml(draft, server)}")


@cli.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def plugins(name: str | None, as_json: bool) -> None:
    """List the installed plugins, or explain one.

    Each is shown with its name in a config, the package that it comes from, its hooks, and its options with types and
    defaults. A plugin that can't be used is shown with its error.

    With NAME, shows that plugin alone, and explains each of its options. Exits with 1 if it can't be used, or with 2 if
    it is not installed.
    """
    from . import plugin_list

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


@cli.command()
@config_option("The config of the running server (TOML).", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--check", "only_check", is_flag=True, help="Print one line, and exit with the server's health.")
@click.pass_context
def status(ctx: click.Context, config: Path | None, as_json: bool, only_check: bool) -> None:
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
        from . import health

        found, line = health.check(config)
        echo(one_line(line))
        sys.exit(found)
    if config is None:
        raise missing(ctx)
    from .control_client import ask
    from .status import as_text

    with _reporting_failures():
        answer = ask(config)
    if as_json:
        echo_json(answer)
    else:
        echo(as_text(answer))


@cli.command()
@config_option("The config of the running server (TOML).")
def top(config: Path) -> None:
    """Live view of `status`, refreshed every second.

    Shows the busiest workers first. Press q or Ctrl-C to quit. The exit codes are those of status.
    """
    with _reporting_failures():
        from .top import run

        run(config)


@cli.command()
@config_option("The config of the running server (TOML).")
def reload(config: Path) -> None:
    """Load the config and code of a running server again.

    Finds the server by pool.pidfile and sends it HUP. If the config has pool.control, waits until the new pool serves
    and exits with 0, or with 1 and every reason if the reload has failed and nothing has changed.
    """
    from . import lifecycle

    with _reporting_failures():
        outcome = lifecycle.reload(config)
    if outcome is None:
        click.echo("the server reloads; its log has the outcome (with pool.control, this command would wait for it)")
    elif outcome.ok:
        click.echo("reloaded")
    else:
        fail(EXIT_FAILED, [*outcome.errors, "poolsrv: the reload has failed; nothing has changed"])


@cli.command()
@config_option("The config of the running server (TOML).")
@click.option("--now", "at_once", is_flag=True, help="End at once: open connections get no time to finish.")
def stop(config: Path, at_once: bool) -> None:
    """Stop a running server, and wait for its end.

    Finds the server by pool.pidfile and sends it TERM: open connections get pool.graceful_timeout seconds.
    """
    from . import lifecycle

    with _reporting_failures():
        pid = lifecycle.stop(config, at_once)
    click.echo(f"stopped (it was pid {pid})")


def main() -> NoReturn:
    """Run the command line in ``sys.argv``. Always raises SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape what the terminal can't encode
            stream.reconfigure(errors="backslashreplace")
    cli.main(prog_name="poolsrv")
    raise AssertionError  # click exits by itself


def _load(config: Path) -> tuple[Draft, ServerSpec]:
    """Load a config, and its plugins as the user that the pool is to run as."""
    from ..config import reader
    from ..core import privileges
    from ..errors import StartError
    from ..plugins import loader

    try:
        draft = reader.read(config)
        if (identity := loader.identity_for(draft)) is not None:
            privileges.become_for_imports(identity)
        return draft, loader.load_plugins(draft)
    except ConfigErrors as errors:
        fail(EXIT_USAGE, map(str, errors.problems))
    except StartError as error:
        fail(EXIT_FAILED, [f"poolsrv: {error}"])


@contextmanager
def _reporting_failures() -> Iterator[None]:
    """Exit with a message if a server can't be asked or signalled."""
    from .control_client import NoAnswer

    try:
        yield
    except ConfigErrors as errors:
        fail(EXIT_USAGE, map(str, errors.problems))
    except NoAnswer as error:
        fail(error.exit_code, [f"poolsrv: {error}"] if error.exit_code == EXIT_FAILED else [str(error)])
