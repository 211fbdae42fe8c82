"""The floors of docs/contributing.md: a file imports only from lower ones, and plugins only from poolsrv."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "poolsrv").glob("*.py"))
PLUGIN_FILES = sorted((ROOT / "plugins").glob("*/*.py"))


def floors() -> dict[str, int]:
    """File name to floor, as the table says."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT / "docs" / "contributing.md").read_text(), re.MULTILINE)
    return {name: int(floor) for floor, names in rows for name in re.findall(r"`poolsrv/(\w+\.py)`", names)}


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import, those inside functions included; but none for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for branch in node.orelse:
                yield from imports(branch)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        else:
            yield from imports(node)


def imported(file: Path) -> set[str]:
    """The files of poolsrv that a file of poolsrv imports."""
    found: set[str] = set()
    for node in imports(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found.update(f"{name.partition('.')[0]}.py" for name in names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert (node.module or "").partition(".")[0] != "poolsrv", "inside the package imports are relative"
        else:
            assert not any(alias.name.partition(".")[0] == "poolsrv" for alias in node.names)
    return found


def test_the_table_has_every_file() -> None:
    assert set(floors()) == {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_imports_only_from_lower_floors(file: Path) -> None:
    table = floors()
    too_high = {name: table[name] for name in imported(file) if table[name] >= table[file.name]}
    assert not too_high, f"{file.name} is on floor {table[file.name]}"


@pytest.mark.parametrize("file", PLUGIN_FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_bundled_plugins_import_only_from_poolsrv(file: Path) -> None:
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):  # for the type checker too: they are to be like anybody's
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "poolsrv":
            assert node.module == "poolsrv"
            assert not any(alias.name.startswith("_") for alias in node.names)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.partition(".")[0] == "poolsrv" for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            package = node.module.partition(".")[0]
            assert not package.startswith("poolsrv_") or package == file.parent.name
