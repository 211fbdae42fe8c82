"""What commands print, and how they fail. Names in it may have bytes that are no text: these are escaped."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn

import click

from ..core.text import encodable_in, lines, one_line

EXIT_FAILED = 1  # at run time
EXIT_USAGE = 2  # wrong usage, or errors in the config


def echo(text: str) -> None:
    """Print text of several lines."""
    click.echo(lines(text))


def echo_json(value: object) -> None:
    """Print structs, lists and dicts as JSON."""
    import msgspec

    clean = encodable_in(msgspec.to_builtins(value))
    click.echo(msgspec.json.format(msgspec.json.encode(clean), indent=2))  # bytes: UTF-8, whatever the terminal has


def is_from_printing(error: OSError) -> bool:
    """Whether what was printed could not be written: a full disk, for example."""
    return any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def fail(code: int, messages: Iterable[str]) -> NoReturn:
    """Print messages to standard error, one line each, and exit."""
    with suppress(OSError):  # the exit code says it all the same
        for message in messages:
            click.echo(one_line(message), err=True)
    sys.exit(code)
