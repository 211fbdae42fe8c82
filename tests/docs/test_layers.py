"""The packages of docs/contributing.md: each imports only what its row allows, and no imports run in a circle.

Imports under ``if TYPE_CHECKING:`` count like all others: a reader follows them too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.sources import nodes

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "poolsrv"
PLUGINS = ROOT / "plugins"
ENGINE_FILES = sorted(PACKAGE.rglob("*.py"))
PLUGIN_FILES = sorted(PLUGINS.rglob("*.py"))
TOP = {"__init__", "__main__", "errors", "supervised"}  # the only modules beside the packages
# The libraries in the wheel that any plugin may import.
LIBRARIES = {"poolsrv", "poolsrv_http"}


def rows() -> dict[str, set[str]]:
    """Package to the packages that it may import, as the table in docs/contributing.md says."""
    text = (ROOT / "docs" / "contributing.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| [^|]* \| [^|]* \| ([^|]*) \|", text, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", allowed)) for name, allowed in found}


@cache
def module_of(file: Path, root: Path) -> str:
    """``dispatcher.process`` for ``poolsrv/dispatcher/process.py``; a package has its own name."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def imported(file: Path, root: Path, modules: frozenset[str]) -> frozenset[str]:
    """The modules below ``root`` that a file imports, by relative imports."""
    found: set[str] = set()
    here = file.relative_to(root).parent.parts
    for node in nodes(file):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = here[: len(here) - node.level + 1]
        target = ".".join([*base, *filter(None, [node.module])])
        for alias in node.names:
            name = f"{target}.{alias.name}".lstrip(".")
            found.add(name if name in modules else target)
    return frozenset(found - {""})


@cache
def modules_of(root: Path) -> frozenset[str]:
    return frozenset(module_of(file, root) for file in root.rglob("*.py"))


def graph(root: Path) -> dict[str, Set[str]]:
    return {module_of(file, root): imported(file, root, modules_of(root)) for file in sorted(root.rglob("*.py"))}


def circle(edges: Mapping[str, Set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def only_those_with_any(wrong: Mapping[Path, Set[str]]) -> dict[str, list[str]]:
    """What is wrong in which file, as a failed test is to show it."""
    return {str(file.relative_to(ROOT)): sorted(names) for file, names in wrong.items() if names}


def test_the_table_has_every_package() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(rows()) == packages
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP


def test_a_package_imports_only_what_its_row_allows() -> None:
    allowed = rows()
    wrong = {}
    for file in ENGINE_FILES:
        package = file.relative_to(PACKAGE).parts[0]
        if file.parent != PACKAGE:
            used = {name.partition(".")[0] for name in imported(file, PACKAGE, modules_of(PACKAGE))}
            wrong[file] = used - allowed[package] - {package, "errors"}
    assert len(wrong) > 200
    assert only_those_with_any(wrong) == {}


def test_inside_the_package_imports_are_relative() -> None:
    absolute = {
        file: {name for name, _ in imports_from_outside(file) if name.partition(".")[0] == "poolsrv"}
        for file in ENGINE_FILES
    }
    assert only_those_with_any(absolute) == {}


def reachable(module: str, edges: Mapping[str, Set[str]]) -> set[str]:
    found: set[str] = set()
    left = {module}
    while left:
        found |= left
        left = {target for name in left for target in edges[name]} - found
    return found


def test_core_and_all_that_the_supervisor_imports_need_only_the_standard_library() -> None:
    """Imports inside functions count too: what is imported later may be of another version.

    setproctitle is optional, and imported at the start.
    """
    edges = graph(PACKAGE)
    supervisor = reachable("supervisor.start", edges)
    core = {module for module in edges if module.partition(".")[0] == "core"}
    assert {"core.event_loop", "ipc.pool_link", "ipc.pool_protocol", "supervisor.pool"} <= supervisor
    for file in ENGINE_FILES:
        if module_of(file, PACKAGE) in core | supervisor:
            used = {module.partition(".")[0] for module, _ in imports_from_outside(file)} - {"setproctitle"}
            used -= {"mypy_extensions"} if file.name == "native.py" else set()  # for type checkers alone
            assert used <= sys.stdlib_module_names, f"{file}: {used - sys.stdlib_module_names}"


def test_the_supervisor_imports_every_file_of_poolsrv_at_once() -> None:
    code = (
        "import sys, poolsrv.supervisor.start\n"
        "print(*(name.removeprefix('poolsrv.') for name in sys.modules if name.startswith('poolsrv.')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed = reachable("supervisor.start", graph(PACKAGE))
    assert needed <= set(result.stdout.split())


def test_no_imports_of_files_run_in_a_circle() -> None:
    edges = graph(PACKAGE)
    edges.pop("__init__")  # it names what plugins may use, each imported when asked for
    assert not circle(edges)


def test_no_imports_of_packages_run_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for module, targets in graph(PACKAGE).items():
        package = module.partition(".")[0]
        edges.setdefault(package, set()).update({name.partition(".")[0] for name in targets} - {package})
    edges.pop("__init__")
    assert not circle(edges)


@pytest.mark.parametrize(
    "folder", sorted(path for path in PLUGINS.iterdir() if path.is_dir()), ids=lambda path: path.name
)
def test_no_imports_of_a_plugin_run_in_a_circle(folder: Path) -> None:
    assert not circle(graph(folder))


def imports_from_outside(file: Path) -> Iterator[tuple[str, list[str]]]:
    for node in nodes(file):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


def test_bundled_plugins_import_only_public_names() -> None:
    """They are to be like anybody's: what they need of the engine, every plugin has."""
    assert len(PLUGIN_FILES) > 50
    assert only_those_with_any({file: set(imports_that_no_plugin_may_have(file)) for file in PLUGIN_FILES}) == {}


def imports_that_no_plugin_may_have(file: Path) -> Iterator[str]:
    own = file.relative_to(PLUGINS).parts[0]
    for module, names in imports_from_outside(file):
        package = module.partition(".")[0]
        if package == own or not package.startswith("poolsrv"):
            continue
        if module not in LIBRARIES:
            yield module
        if not names:
            yield f"import {module}"
        yield from (f"{module}.{name}" for name in names if name.startswith("_"))


# --- members with an underscore


def defined(file: Path) -> set[str]:
    """The members that a file's own classes have."""
    functions = {node.name for node in nodes(file) if isinstance(node, ast.FunctionDef)}
    return functions | {node.attr for node in nodes(file) if isinstance(node, ast.Attribute) and is_own(node)}


def is_own(node: ast.Attribute) -> bool:
    owner = node.value
    if isinstance(owner, ast.Call):
        owner = owner.func
    return isinstance(owner, ast.Name) and owner.id in {"self", "cls", "super"}


@cache
def for_the_engine() -> set[str]:
    """The members with an underscore that protocols have, and that docstrings list."""
    found: set[str] = set()
    for file in ENGINE_FILES:
        for node in nodes(file):
            if not isinstance(node, ast.ClassDef):
                continue
            if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
                found |= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            listed = re.search(r"For the engine.*?(?=\n\n|\Z)", ast.get_docstring(node) or "", re.DOTALL)
            if listed:
                found |= set(re.findall(r"``(_\w+)``", listed[0]))
    return found


def test_private_members_of_others_are_used_only_where_they_are_listed() -> None:
    listed = for_the_engine() | {"_exit", "_getframe", "_current_frames"}  # those of os and sys
    assert only_those_with_any({file: used_of_others(file) - listed - defined(file) for file in ENGINE_FILES}) == {}


def used_of_others(file: Path) -> set[str]:
    """The members with an underscore that a file uses, but for those of ``self``."""
    return {
        node.attr
        for node in nodes(file)
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr) and not is_own(node)
    }
