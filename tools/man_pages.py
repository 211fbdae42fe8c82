"""Man pages of ``poolsrv`` and each of its commands, made of their ``--help``; see man(7).

``python -m tools.man_pages FOLDER`` writes them. The wheel gets them from build_hook.py.
"""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from .command_help import PROGRAM, Block, Help, all_commands

# Titles of blocks that have a customary name in man pages.
_SECTIONS = {"Exit codes": "EXIT STATUS"}
_OPTION = re.compile(r"--?\w[\w-]*")
_WIDTH = 70  # of the source: escapes make lines longer, and mandoc wants at most 80


def pages(version: str, at: int) -> dict[str, str]:
    """Make every page.

    :param version: poolsrv's.
    :param at: the Unix time that dates them.
    :returns: the text of each, by its file name.
    """
    commands = all_commands()
    date = time.strftime("%Y-%m-%d", time.gmtime(at))
    return {f"{command.page}.1": _page(command, commands, date, version) for command in commands}


def _page(command: Help, commands: list[Help], date: str, version: str) -> str:
    lines = [
        f'.TH "{command.page.upper()}" "1" "{date}" "poolsrv {version}" "User Commands"',
        ".nh",  # a word that is broken can't be copied
        ".ad l",
        ".SH NAME",
        *_text(f"{command.page} - {_as_name(command.summary)}"),
        ".SH SYNOPSIS",
        f".B {_escaped(command.path)}",
        *_usage(command),
        ".SH DESCRIPTION",
        *_description(command.blocks),
    ]
    if command.options:
        lines.append(".SH OPTIONS")
        for names, meaning in command.options:
            lines += [".TP", _option(names), *_text(meaning)]
    if command.commands:
        lines.append(".SH COMMANDS")
        for path, summary in command.commands:
            lines += [".TP", f".BR {_literal(path.replace(' ', '-'))} (1)", *_text(summary)]
    if command.variables:
        lines.append(".SH ENVIRONMENT")
        for variable, option in command.variables:
            lines += [".TP", f".B {variable}", f"The value of \\fB{_literal(option)}\\fR if the option is left out."]
    lines += _titled(command.blocks)
    lines += [".SH SEE ALSO", *_references(other.page for other in commands if other is not command)]
    return "\n".join(lines) + "\n"


def _usage(command: Help) -> Iterator[str]:
    if command.usage:
        yield f"\\fI{_escaped(command.usage)}\\fR"


def _as_name(summary: str) -> str:
    """A summary as the NAME section has it: no capital, no full stop."""
    return (summary[:1].lower() + summary[1:]).rstrip(".")


def _description(blocks: Iterable[Block]) -> Iterator[str]:
    """The blocks without a title. Paragraphs are separated, and none begins with an empty line."""
    first = True
    for block in blocks:
        if block.title:
            continue
        if not first:
            yield ".PP"
        first = False
        yield from _verbatim(block.text) if block.preformatted else _text(block.text)


def _titled(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        if not block.title:
            continue
        yield f'.SH "{_escaped(_SECTIONS.get(block.title, block.title).upper())}"'
        columns = block.columns()
        if columns is None:
            yield from _verbatim(block.text)
            continue
        rows, notes = columns
        for term, meaning in rows:
            yield ".TP"
            yield f"\\fB{_copied(term)}\\fR"
            yield from _text(meaning)
        for note in notes:
            yield ".PP"
            yield from _text(note)


def _option(names: str) -> str:
    """``-c, --config FILE``: what is typed is bold, what it takes is in italics."""
    name_end = max((found.end() for found in _OPTION.finditer(names)), default=0)
    typed = _OPTION.sub(lambda found: f"\\fB{_literal(found[0])}\\fR", names[:name_end])
    taken = names[name_end:].strip()
    return f"{typed} \\fI{_escaped(taken)}\\fR" if taken else typed


def _verbatim(text: str) -> list[str]:
    return [".nf", *(_guarded(_copied(line)) for line in text.split("\n")), ".fi"]


def _references(pages: Iterable[str]) -> Iterator[str]:
    names = list(pages)
    for name in names:
        yield f".BR {_literal(name)} (1){',' if name != names[-1] else ''}"


def _text(text: str) -> list[str]:
    """Prose, as lines."""
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [_guarded(_escaped(line)) for line in lines]


def _guarded(line: str) -> str:
    """A line of text that begins like a request."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def _escaped(text: str) -> str:
    """Escape prose. Hyphens that belong to options, or stand alone, can be copied; others may be typographic."""
    escaped = text.replace("\\", "\\e")
    escaped = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", escaped)
    return re.sub(r"(?<!\w)-+", lambda found: _literal(found[0]), escaped)


def _literal(text: str) -> str:
    return text.replace("-", "\\-")


def _copied(text: str) -> str:
    """Text that users copy: hyphens and quotes stay what they are."""
    escaped = re.sub(r"(?<!\\)-", r"\\-", _escaped(text))
    return escaped.replace("'", "\\(aq").replace("`", "\\(ga")


def main() -> None:
    """Write the pages into a folder."""
    from importlib.metadata import version

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(version(PROGRAM), int(time.time())).items():
        (folder / name).write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
