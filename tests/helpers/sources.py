"""The syntax trees of the source, each parsed once per process."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from types import ModuleType


def docstring(module: ModuleType) -> str:
    """A module's docstring; a compiled one has it in its source alone."""
    assert module.__file__ is not None
    folder, _, name = module.__file__.rpartition("/")
    return ast.get_docstring(ast.parse(Path(folder, f"{name.partition('.')[0]}.py").read_text()), clean=False) or ""


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file, in the order of `ast.walk`."""
    return tuple(ast.walk(ast.parse(file.read_text())))
