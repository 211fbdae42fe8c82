"""The option ``--config`` of the commands, and where the config is without it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from .completers import config_files

ENVIRONMENT_VARIABLE: Final = "POOLSRV_CONFIG"
DEFAULT: Final = "poolsrv.toml"  # in the current directory
MISSING: Final = f"It may be left out if ${ENVIRONMENT_VARIABLE} is set, or if there is a file ./{DEFAULT}."


def config_option(help_text: str, required: bool = True) -> Callable[[Any], Any]:
    """An option ``--config FILE``, which defaults to ``$POOLSRV_CONFIG``, then to ``./poolsrv.toml``.

    :param required: it is an error if there is none of the three; otherwise the command gets None.
    """

    def require(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        if value is None and required and not ctx.resilient_parsing:
            raise missing(ctx)
        return value

    return click.option(
        "--config",
        "-c",
        metavar="FILE",
        type=click.Path(path_type=Path),
        envvar=ENVIRONMENT_VARIABLE,
        default=_default,
        callback=require,
        shell_complete=config_files,
        help=f"{help_text} Default: ${ENVIRONMENT_VARIABLE}, then ./{DEFAULT}.",
    )


def missing(ctx: click.Context) -> click.MissingParameter:
    """The error of a command that needs a config, and has none."""
    param = next(param for param in ctx.command.params if param.name == "config")
    return click.MissingParameter(MISSING, ctx, param)


def is_from_command_line(ctx: click.Context) -> bool:
    """Whether the user has given ``--config`` itself."""
    return ctx.get_parameter_source("config") is click.core.ParameterSource.COMMANDLINE


def _default() -> str | None:
    return DEFAULT if os.path.exists(DEFAULT) else None
