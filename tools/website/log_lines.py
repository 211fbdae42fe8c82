"""The reference of log lines: each message in the source, with its level, the process that logs it, and what it means.

Messages are found in the calls of loggers. Their meaning is that of the row of docs/operations.md that has them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .markdown import code, table

ROOT = Path(__file__).parents[2]
LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
    "log": "as it says",
}
# The packages of poolsrv, as docs/contributing.md has them, by who logs their lines.
PROCESSES = {
    "supervisor": "The supervisor",
    "dispatcher": "The dispatcher",
    "worker": "A worker",
    "net": "A worker",
}
ANY = "Any process"
TROUBLESHOOTING = "[Troubleshooting](../operations.md#troubleshooting)"
_PLACEHOLDER = re.compile(r"%(?:\(\w+\))?[-#0 +]*[\d.]*[a-z]")


class Message(NamedTuple):
    """A message of the source.

    :ivar file: relative to the project.
    """

    file: str
    line: int
    level: str
    text: str

    @property
    def shown(self) -> str:
        """The message as the log has it, with ``...`` for what differs each time."""
        return re.sub(r"\.\.\.(\.\.\.)+", "...", _PLACEHOLDER.sub("...", self.text)).strip()

    @property
    def parts(self) -> list[str]:
        """What is the same each time."""
        return [part.strip() for part in _PLACEHOLDER.sub("\0", self.text).split("\0")]


@cache
def messages() -> list[Message]:
    """Every message that poolsrv and its plugins log."""
    found = []
    for folder in ("poolsrv", "plugins"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            found += [Message(name, *rest) for rest in _calls(ast.parse(path.read_text(encoding="utf-8")))]
    return found


def _calls(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
            continue
        for text in (text for argument in node.args[:2] for text in _constants(argument)):
            yield node.lineno, LEVELS[node.func.attr], text


def _constants(node: ast.expr) -> Iterator[str]:
    """The texts that an argument may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if " " in node.value.strip():
            yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _constants(node.body)
        yield from _constants(node.orelse)


def page() -> str:
    """Every message, by the process that logs it."""
    by_process: dict[str, list[Message]] = {}
    for message in messages():
        by_process.setdefault(process_of(message.file), []).append(message)
    parts = [
        "# Log lines\n",
        "Every message in the source, without the values that differ each time. "
        "[Logs](../operations.md#logs) explains the other fields of a line, and "
        f"{TROUBLESHOOTING} what to do about messages before the server serves. "
        "Lines of level `debug` are for work on the server itself.\n",
    ]
    for process in [*dict.fromkeys(PROCESSES.values()), *sorted(by_process.keys() - set(PROCESSES.values()))]:
        rows = {
            (message.level, code(message.shown), meaning(message) or "")
            for message in by_process.get(process, [])
            if message.shown.strip(" .:#'")
        }
        if rows:
            parts.append(f"## {process}\n")
            ordered = sorted(rows, key=lambda row: (list(LEVELS.values()).index(row[0]) * -1, row[1].lower()))
            parts.append(table(("level", "message", "meaning"), ordered))
    return "\n".join(parts)


def process_of(file: str) -> str:
    """The heading below which the messages of a file are."""
    top, name, *_ = Path(file).parts
    if top == "plugins":
        return f"The plugin `{name.removeprefix('poolsrv_')}`" if name != "poolsrv_http" else "HTTP plugins"
    return PROCESSES.get(name, ANY)


@cache
def _rows() -> list[tuple[list[str], str]]:
    """The tables of docs/operations.md about messages: the messages of each row, and its last cell."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*) \| (.*?) \|$", page.partition("## Troubleshooting")[2], re.MULTILINE)
    return [(re.findall(r"`([^`]+)`", first), meaning) for first, meaning in rows]


def meaning(message: Message) -> str | None:
    """What docs/operations.md says about a message; None if it says nothing."""
    pattern = re.compile(".*".join(map(re.escape, message.parts)))
    longest = max((part.strip(" ,:;()") for part in message.parts), key=len)
    if not longest:
        return None
    whole = {text for spans, text in _rows() if any(pattern.match(span) for span in spans)}
    if len(whole) > 1:
        return f"What follows says it: {TROUBLESHOOTING}"
    part = [text for spans, text in _rows() if len(longest) > 10 and any(longest in span for span in spans)]
    found = next(iter(whole or part), None)
    if found is None:
        return None
    return re.sub(r"\]\((?![a-z]+:)", "](../", found.replace("](#", "](operations.md#"))
