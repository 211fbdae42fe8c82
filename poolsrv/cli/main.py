"""The command line: what ``poolsrv`` does by itself, and the table of its commands.

A command is imported when it is called, and imports what it needs: ``--help`` and ``check`` do not import the engine.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from ..core import logs
from ..core.words import did_you_mean, quoted
from . import version
from .config_option import config_option, is_from_command_line
from .output import EXIT_FAILED, EXIT_USAGE, fail, is_from_printing
from .suggesting import is_config, meant_config

WITHOUT_CONFIG = "Serving without a config"
# In the order of --help. `poolsrv NAME` is `command` in commands/NAME.py.
COMMANDS = {
    WITHOUT_CONFIG: ("run", "cgi"),
    "Configs and plugins": ("check", "config", "explain", "plugins", "new", "import"),
    "A running server": ("status", "top", "runs", "replay", "reload", "stop"),
    "Your shell": ("completion",),
}

HELP = """
Run a server from a config file: a pool of worker processes, with a plugin for every address.

The server runs in the foreground and logs to standard error, or to a file ([log]). When every worker serves, it logs
one line with the word "ready" and every address, including the ports that the kernel chose for port 0.

\b
Examples:
  poolsrv run echo --bind :7007             serve one plugin, without a config
  poolsrv cgi site                          serve programs and files over HTTP, without a config
  poolsrv --config poolsrv.toml             run the server
  poolsrv check --config poolsrv.toml       find every error in the config, without serving
  poolsrv config --config poolsrv.toml      print the config in effect, with every default
  poolsrv status --config poolsrv.toml      show what the server does now (needs pool.control)
  poolsrv status --check                    one line and an exit code, for monitoring
  poolsrv top --config poolsrv.toml         live view of status, refreshed every second
  poolsrv runs --failed                     the latest programs that have failed, and why
  poolsrv replay k3v9x2mq                   run such a program again with the same input (needs capture of cgi)
  poolsrv reload --config poolsrv.toml      load config and code again (needs pool.pidfile)
  poolsrv stop --config poolsrv.toml        stop the server (needs pool.pidfile)
  poolsrv plugins                           list the installed plugins with their hooks and options
  poolsrv plugins cgi                       explain one plugin and each of its options
  poolsrv explain http://127.0.0.1:8080/    explain what would answer, without running anything
  poolsrv new shout                         make a new plugin with tests, in poolsrv-shout
  poolsrv import /etc/xinetd.conf           print a config for the services of xinetd, inetd or systemd
  printf 'hello\\n' | nc -N 127.0.0.1 7007   talk to the echo server of the sample config

Without --config, a command that needs one takes $POOLSRV_CONFIG, or else poolsrv.toml in the current directory.

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
                   (with pool.drain_notice, connections are accepted for that time before; a signal ends it)
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
Documentation:
  man poolsrv-COMMAND                  what --help says about a command
  https://poolsrv.github.io/poolsrv/   every key, running a server, writing a plugin; docs/ in the source distribution
"""


class _Group(click.Group):
    """Imports a command when it is called.

    Suggests the nearest command for a misspelt one, and ``--config`` for a config file in its place.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in COMMANDS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f".commands.{cmd_name}", __package__).command
        assert isinstance(command, click.Command)
        command.short_help = command.get_short_help_str(1000)  # the whole sentence: click would cut it in completion
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for title, names in COMMANDS.items():
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                assert command is not None
                rows.append((name.ljust(width), command.get_short_help_str()))
            with formatter.section(title):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            hint = did_you_mean(name, self.list_commands(ctx))
            if is_config(name):
                hint = meant_config(name)
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
@click.option("--dev", is_flag=True, help="Reload when the config or files of its plugins change (needs watchfiles).")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=version.show,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context, config: Path | None, log_level: str | None, dev: bool) -> None:
    logs.set_up(log_level or "info")
    if ctx.invoked_subcommand is not None:
        name = ctx.invoked_subcommand
        if is_from_command_line(ctx):
            if name in COMMANDS[WITHOUT_CONFIG]:
                ctx.fail(f"poolsrv {name} serves without a config, expected no --config")
            ctx.fail(f"--config goes after the command: poolsrv {name} --config {config}")
        if dev:
            ctx.fail(f"--dev goes after the command: poolsrv {name} --dev")
        return
    if config is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(EXIT_USAGE)
    if dev:
        from . import dev_mode

        dev_mode.start_for_config(config)
    from ..supervisor.start import run

    run(os.fspath(config), log_level)


def main() -> NoReturn:
    """Run the command line in ``sys.argv``. Always raises SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape what the terminal can't encode
            stream.reconfigure(errors="backslashreplace")
    if "_POOLSRV_COMPLETE" in os.environ:  # a shell asks, see completion.py
        from . import completion

        completion.register()
    try:
        cli.main(prog_name="poolsrv")
    except OSError as error:
        if not is_from_printing(error):
            raise
        fail(EXIT_FAILED, [f"poolsrv: the output can't be written: {error.strerror}"])
    raise AssertionError  # click exits by itself
