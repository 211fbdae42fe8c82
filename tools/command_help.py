"""The help of every command of ``poolsrv``, taken apart: man pages and the site are made of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

import click

PROGRAM = "poolsrv"


class Block(NamedTuple):
    """A paragraph of a help text.

    :ivar title: the first line of a preformatted block that ends in a colon, such as ``Examples``; else empty.
    :ivar text: a paragraph on one line, or the lines of a preformatted block.
    """

    title: str
    text: str
    preformatted: bool

    def columns(self) -> tuple[list[tuple[str, str]], list[str]] | None:
        """The rows of a block with two columns, and the notes in parentheses below; None: it is another block."""
        rows: list[tuple[str, str]] = []
        notes: list[str] = []
        for line in self.text.split("\n"):
            found = re.fullmatch(r"(\S.*?) {2,}(\S.*)", line)
            if found and not notes:
                rows.append((found[1], found[2]))
            elif line.startswith("(") and line.endswith(")") and rows:
                notes.append(line[1:-1])
            else:
                return None
        return rows, notes


class Help(NamedTuple):
    """The help of one command.

    :ivar path: ``poolsrv`` or ``poolsrv check``.
    :ivar summary: the first sentence.
    :ivar usage: ``[OPTIONS] NAME``.
    :ivar options: each option with its metavar, and what it means; arguments that have a help text too.
    :ivar variables: environment variables, and the option that each stands for.
    :ivar commands: the paths and summaries of its own commands, by the title of their group.
    """

    path: str
    summary: str
    usage: str
    blocks: tuple[Block, ...]
    options: tuple[tuple[str, str], ...]
    variables: tuple[tuple[str, str], ...]
    commands: tuple[tuple[str, str], ...]

    @property
    def page(self) -> str:
        """The name of the man page: ``poolsrv-check``."""
        return self.path.replace(" ", "-")


def all_commands() -> list[Help]:
    """Describe ``poolsrv`` and each of its commands, in the order of ``--help``."""
    from poolsrv.cli.main import cli

    return list(_walk(cli, cli.make_context(PROGRAM, [], resilient_parsing=True)))


def _walk(command: click.Command, context: click.Context) -> Iterator[Help]:
    children = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                children.append((child, child.make_context(name, [], parent=context, resilient_parsing=True)))
    parameters = command.get_params(context)
    records = [parameter.get_help_record(context) for parameter in parameters]
    blocks = (*_blocks(command.help or ""), *_blocks(command.epilog or ""))
    yield Help(
        path=context.command_path,
        summary=blocks[0].text if isinstance(command, click.Group) else command.get_short_help_str(1000),
        usage=" ".join(command.collect_usage_pieces(context)),
        blocks=blocks,
        options=tuple((names, " ".join(meaning.split())) for names, meaning in filter(None, records) if meaning),
        variables=tuple(
            (parameter.envvar, parameter.opts[0]) for parameter in parameters if isinstance(parameter.envvar, str)
        ),
        commands=tuple((inner.command_path, child.get_short_help_str(1000)) for child, inner in children),
    )
    for child, inner in children:
        yield from _walk(child, inner)


def _blocks(text: str) -> Iterator[Block]:
    """The paragraphs of a help text of click, where ``\\b`` alone on a line begins a preformatted one."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        first, *lines = paragraph.strip("\n").split("\n")
        if not paragraph.strip():
            continue
        if first.strip() != "\b":
            yield Block("", " ".join(paragraph.split()), preformatted=False)
        elif len(lines) > 1 and lines[0].endswith(":"):
            yield Block(lines[0].removesuffix(":"), inspect.cleandoc("\n".join(["", *lines[1:]])), preformatted=True)
        else:
            yield Block("", "\n".join(lines), preformatted=True)
