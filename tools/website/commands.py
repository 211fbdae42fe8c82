"""The reference of the command line, made of ``--help``."""

from __future__ import annotations

from collections.abc import Iterator

from ..command_help import Block, Help, all_commands
from .markdown import cell, code, fenced, table


def page() -> str:
    """Every command, with what its ``--help`` says."""
    commands = all_commands()
    parts = [
        "# Commands\n",
        "What `--help` says, and the man pages: `man poolsrv`, `man poolsrv-check`. "
        "How commands exit is summed up in [Exit codes](exit-codes.md).\n",
        table(
            ("command", "does"),
            ((f"[{code(one.path)}](#{one.page})", cell(one.summary)) for one in commands),
        ),
    ]
    for one in commands:
        parts += _command(one)
    return "\n".join(parts)


def _command(command: Help) -> Iterator[str]:
    yield f"## `{command.path}` {{ #{command.page} }}\n"
    yield fenced(f"{command.path} {command.usage}", "text")
    for block in command.blocks:
        yield from _block(block)
    if command.options:
        yield table(("option", "meaning"), ((code(names), cell(_prose(text))) for names, text in command.options))
    for variable, option in command.variables:
        yield f"The environment variable `{variable}` stands for {code(option)} where that is left out.\n"


def _block(block: Block) -> Iterator[str]:
    if not block.preformatted:
        yield _prose(block.text) + "\n"
        return
    if block.title:
        yield f"{block.title}:\n"
    yield fenced(block.text, "text")


def _prose(text: str) -> str:
    """Plain text as Markdown."""
    for special in "\\*_<[":
        text = text.replace(special, f"\\{special}")
    return text
