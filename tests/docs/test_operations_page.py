"""docs/operations.md explains every message that the server logs at level info or above."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.sources import nodes

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "operations.md").read_text().split())
LOGGED = {"info", "warning", "error", "exception", "log"}


FILES = sorted((ROOT / "poolsrv").rglob("*.py"))


def messages() -> Iterator[tuple[str, str]]:
    """Where a message is logged, and its longest part that is the same each time."""
    for file, node in ((each, node) for each in FILES for node in nodes(each)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOGGED):
            continue
        for argument in node.args[:2]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                parts = re.split(r"%[-\d.]*[a-z]", argument.value)
                if longest := max((part.strip(" ,:;()") for part in parts), key=len):
                    yield f"{file.name}:{node.lineno}", longest


def test_messages_are_found() -> None:
    assert len(list(messages())) > 20


def test_the_page_explains_each_message() -> None:
    missing = [f"{part!r} of {place}" for place, part in messages() if part not in PAGE]
    assert not missing, f"docs/operations.md does not explain {missing}"
