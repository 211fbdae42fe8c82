"""Plugins that a config names as ``module:Class``, without a distribution: found beside the config, or installed.

The module is looked for in the config's directory first, as Python does with a script's. So that directory goes to the
front of ``sys.path``, and modules that the plugin imports may be beside it too.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.words import did_you_mean, quoted
from ..worker import hookspecs
from .discovery import Installed, PluginError


class Uninstalled(Installed, frozen=True, kw_only=True):
    """A plugin that is named by its class.

    :ivar base: the directory in which its module may be.
    """

    base: Path

    def __str__(self) -> str:
        return f"the plugin {self.target}"


@contextmanager
def importable(plugin: Uninstalled) -> Iterator[None]:
    """Let the plugin's module be imported in the block. No byte code is written there.

    A file with byte code counts as up to date if source has the same second and size: an edit might be missed.

    :raises PluginError: there is no such module, or one of that name has been imported from another place.
    """
    name = plugin.target.partition(":")[0].partition(".")[0]
    if not has_module(plugin.base, name):
        _require(name, plugin)
        yield
        return
    loaded = sys.modules.get(name)
    if loaded is not None and not _is_from(loaded, plugin.base):
        raise PluginError(
            f"can't be imported: a module {quoted(name)} of Python or poolsrv is loaded already, expected another name"
            f" for that in {plugin.base}"
        )
    if sys.path[:1] != [str(plugin.base)]:
        sys.path.insert(0, str(plugin.base))
    importlib.invalidate_caches()
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _require(name: str, plugin: Uninstalled) -> None:
    import importlib.util

    try:
        found = name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        hint = did_you_mean(name, _modules_in(plugin.base))
        where = f"there is no module {quoted(name)} in {plugin.base}{hint}"
        if not os.access(plugin.base, os.R_OK | os.X_OK, effective_ids=True):
            where = f"the user that it would run as can't read {plugin.base}, where the module {quoted(name)} may be"
        raise PluginError(f"can't be imported: {where}, and none is installed")


def has_module(base: Path, name: str) -> bool:
    """Whether a directory has a module or package of this name."""
    return os.path.isfile(base / f"{name}.py") or os.path.isfile(base / name / "__init__.py")


def suggestion(base: Path, name: str) -> str | None:
    """What was meant by the name of a plugin that is not installed: a module in this directory, with its plugin.

    :returns: None if there is no such module.
    """
    module, _, attribute = name.partition(".")
    if not has_module(base, module):
        return None
    classes = _plugins_in(base, module)
    chosen = attribute if attribute in classes or not classes else classes[0]
    return f"{module}:{chosen or 'CLASS'}"


def _modules_in(base: Path) -> list[str]:
    try:
        entries = list(os.scandir(base))
    except OSError:
        return []
    names = [entry.name.removesuffix(".py") for entry in entries]
    return sorted(name for name in set(names) if has_module(base, name))


def _plugins_in(base: Path, module: str) -> list[str]:
    """The classes of a module that have a hook, without importing it."""
    import ast  # only a config with an error needs it

    file = base / f"{module}.py"
    try:
        tree = ast.parse((file if file.is_file() else base / module / "__init__.py").read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    hooks = {name for name in vars(hookspecs) if name.startswith("on_")}
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(member, ast.FunctionDef) and member.name in hooks for member in node.body)
    ]


def _is_from(module: object, base: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is None or Path(file).is_relative_to(base)
