"""``poolsrv --version``: the version, and on a line of its own whether the hot path is compiled."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

import click

# Stands for the modules of the hot path, which are compiled together or not at all. It is found, not imported.
_ONE_OF_THEM = "poolsrv.core.event_loop"


def kind() -> str:
    """Whether this installation is ``compiled`` or ``pure Python``: which of both would run."""
    spec = find_spec(_ONE_OF_THEM)
    assert spec is not None
    return "compiled" if (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES)) else "pure Python"


def show(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print it and exit, for the option."""
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"poolsrv {version('poolsrv')}\n{kind()}")
        ctx.exit()
