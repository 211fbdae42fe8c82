"""What the commands that serve without a config have in common: their options, and how they serve or print."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from ..config.model import MOST_WORKERS
from ..core import logs
from .output import EXIT_FAILED, echo, fail

if TYPE_CHECKING:
    from ..config.arguments import Arguments, Setting

_MOST: Final = 100_000  # bytes of arguments as JSON: they have to fit into one message to each pool


class _SettingType(click.ParamType):  # type: ignore[type-arg]
    """``KEY=VALUE``."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Setting:
        from ..config.arguments import OWN_FLAGS, parse_setting

        try:
            setting = parse_setting(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if (own := OWN_FLAGS.get(setting.key[0])) is not None:
            self.fail(f"{setting.key[0]} has an argument of its own, expected {own}", param, ctx)
        return setting


def serving_options(default_bind: str) -> Callable[[Any], Any]:
    """Add the options, which the command gets as ``bind``, ``settings``, ``workers`` and so on."""
    options = (
        click.option(
            "--bind",
            "-b",
            metavar="ADDR",
            multiple=True,
            default=(default_bind,),
            help='An address to listen on: "[::1]:7007", ":7007" (every address), "unix:hello.sock". May be repeated.'
            f" Default: {default_bind}.",
        ),
        click.option(
            "--set",
            "-s",
            "settings",
            metavar="KEY=VALUE",
            type=_SettingType(),
            multiple=True,
            help="Set a key of the listener, or an option of a plugin. May be repeated.",
        ),
        click.option(
            "--workers",
            "-w",
            metavar="N",
            type=click.IntRange(1, MOST_WORKERS),
            help="The number of worker processes. Default: one for each usable CPU.",
        ),
        click.option("--print-config", is_flag=True, help="Print the config file that does the same, and exit."),
        click.option("--log-level", type=click.Choice(logs.LEVELS), help="The lowest level that is logged."),
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def listener_name(plugin: str) -> str:
    """A name for the listener that a plugin answers on."""
    return re.sub("[^A-Za-z0-9_-]+", "-", plugin).strip("-") or "run"


def current_directory() -> str:
    """The directory that relative paths are relative to."""
    try:
        return os.getcwd()
    except OSError as error:
        fail(EXIT_FAILED, [f"poolsrv: the current directory can't be found: {error.strerror}"])


def said(options: Mapping[str, Any]) -> dict[str, Any]:
    """The members of ``Arguments`` that come from the common options."""
    return {name: options[name] for name in ("bind", "settings", "workers")}


def serve(ctx: click.Context, arguments: Arguments, options: Mapping[str, Any]) -> None:
    """Serve what the arguments say, or print it; serving never returns.

    :param options: the common options of the command.
    """
    if options["print_config"]:
        from .loading import load_arguments
        from .printed_config import NotText, as_toml

        draft, _ = load_arguments(arguments)
        try:
            echo(as_toml(draft, arguments))
        except NotText as error:
            fail(EXIT_FAILED, [f"{arguments.command}: {error}"])
        return
    _run(ctx, arguments, options.get("dev", False), options["log_level"])


def _run(ctx: click.Context, arguments: Arguments, dev: bool, log_level: str | None) -> NoReturn:
    from ..config.arguments import to_fields
    from ..supervisor.start import run

    fields = to_fields(arguments)
    if (size := len(json.dumps(fields))) > _MOST:
        ctx.fail(f"the arguments take {size} bytes, expected at most {_MOST}: write a config (--print-config)")
    level = log_level or (ctx.parent.params.get("log_level") if ctx.parent is not None else None)
    logs.set_up(level or "info")
    if dev:
        from . import dev_mode

        dev_mode.start_for_arguments(arguments)
    run(arguments.command, level, fields)
