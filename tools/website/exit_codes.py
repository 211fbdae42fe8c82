"""The reference of exit codes, made of the constants that have them and of ``--help``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from poolsrv.ipc.health import Health

from ..command_help import all_commands
from .markdown import cell, code, fenced, table

ROOT = Path(__file__).parents[2]
# What the health of a server means, which `status --check` exits with.
HEALTH = {
    Health.WELL: "all is well",
    Health.DEGRADED: "not every worker can serve, or the last reload has failed",
    Health.DOWN: "the server does not run, does not answer, or has no worker that serves",
    Health.UNKNOWN: "that can't be found out",
}


class Code(NamedTuple):
    """An exit code in the source.

    :ivar meaning: its comment.
    """

    file: str
    name: str
    value: int
    meaning: str


def codes() -> list[Code]:
    """The constants ``EXIT_...`` of poolsrv."""
    found = []
    for path in sorted((ROOT / "poolsrv").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "EXIT_" in text:
            found += [Code(str(path.relative_to(ROOT)), *rest) for rest in _constants(text)]
    return found


def _constants(text: str) -> Iterator[tuple[str, int, str]]:
    lines = text.splitlines()
    for node in ast.parse(text).body:
        target: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        value = getattr(node, "value", None)
        if not (isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, int)):
            continue
        if target.id.startswith("EXIT_"):
            comment = lines[node.lineno - 1].partition("#")[2].strip()
            yield target.id, value.value, comment or target.id.removeprefix("EXIT_").replace("_", " ").lower()


def page() -> str:
    """How each command and each process exits."""
    parts = ["# Exit codes\n"]
    for command in all_commands():
        sentences = [
            sentence
            for block in command.blocks
            if not block.preformatted
            for sentence in re.split(r"(?<=\.) (?=[A-Z])", block.text)
            if re.search(r"\b[Ee]xits?\b", sentence)
        ]
        tables = [block for block in command.blocks if block.title.startswith("Exit codes")]
        if sentences or tables:
            parts.append(f"## [`{command.path}`](commands.md#{command.page})\n")
            parts += [fenced(block.text, "text") for block in tables]
            parts += [" ".join(sentences) + "\n"] if sentences else []
        if command.path == "poolsrv status":
            rows = ((str(int(health)), code(health.name.lower()), HEALTH[health]) for health in Health)
            parts.append("With `--check`, the code is the first word of the line:\n")
            parts.append(table(("code", "line", "meaning"), rows))
    parts.append("## Processes of a server\n")
    parts.append(
        "A service manager sees the supervisor's. The others are in the log: `worker 0 (pid 7406) exited 3`.\n"
    )
    declared = ((str(one.value), code(one.name), cell(one.meaning), code(one.file)) for one in codes())
    parts.append(table(("code", "name", "meaning", "declared in"), declared))
    return "\n".join(parts)
