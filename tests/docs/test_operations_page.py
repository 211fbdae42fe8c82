"""docs/operations.md explains every message that the server logs at level info or above."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "operations.md").read_text().split())
LOGGED = {"info", "warning", "error", "exception", "log"}


def messages() -> Iterator[tuple[str, str]]:
    """Where a message is logged, and the longest of its parts that are the same each time."""
    for path in sorted((ROOT / "poolsrv").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOGGED):
                continue
            for argument in node.args[:2]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    parts = re.split(r"%[-\d.]*[a-z]", argument.value)
                    yield f"{path.name}:{node.lineno}", max((part.strip(" ,:;()") for part in parts), key=len)


FOUND = [(place, part) for place, part in messages() if part]


def test_messages_are_found() -> None:
    assert len(FOUND) > 20


@pytest.mark.parametrize(("place", "part"), FOUND, ids=[place for place, _ in FOUND])
def test_the_page_explains_the_message(place: str, part: str) -> None:
    assert part in PAGE, f"docs/operations.md does not explain {part!r} of {place}"
