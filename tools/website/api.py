"""The reference of what plugins use: hooks, members, and the libraries, made of docstrings by mkdocstrings."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import poolsrv
from poolsrv.worker.hooks import HOOK_NAMES

# Members without an underscore that are for the engine alone.
HIDDEN = {
    **{name: {"collect"} for name in ("Counter", "Gauge")},
    "Histogram": {"collect", "new", "settle"},
    "Child": {"kill", "reaped"},
    "Client": {"drop", "pull", "push"},
    "ClientTls": {"wrap"},
    "Sandbox": {"arguments", "start"},
    "Timer": {"callback", "due"},
}


def hooks() -> str:
    """Every hook, with its contract."""
    parts = [
        "# Hooks\n",
        "Each place where a plugin is called. [Writing a plugin](../plugins.md#hooks) introduces them, "
        "and says where plugins run.\n",
    ]
    for name in HOOK_NAMES:
        parts.append(_directive(f"poolsrv.worker.hookspecs.{name}"))
    return "\n".join(parts)


def members() -> str:
    """Every name that a plugin imports from poolsrv."""
    return _library(
        "# Members\n\n"
        "Every name that plugins import from `poolsrv`, with its members. "
        "[Writing a plugin](../plugins.md) explains them in the order in which they are needed, with recipes.\n",
        "poolsrv",
        poolsrv.__all__,
    )


def http() -> str:
    """The HTTP library."""
    return _library(
        "# HTTP library\n\nEvery name that plugins import from `poolsrv_http`. "
        "[HTTP for plugins](../http.md) introduces it.\n",
        "poolsrv_http",
    )


def testing() -> str:
    """Test support."""
    return _library(
        "# Test support\n\nEvery name of `poolsrv.testing`. [Testing a plugin](../testing.md) introduces it.\n",
        "poolsrv.testing",
    )


def _library(introduction: str, module: str, names: Iterable[str] | None = None) -> str:
    if names is None:
        names = importlib.import_module(module).__all__
    ordered = sorted(names, key=lambda name: (not name[0].isupper() or name.isupper(), name.lower()))
    parts = [introduction, ", ".join(f"[`{name}`](#{module}.{name})" for name in ordered) + "\n"]
    parts += [_directive(f"{module}.{name}", HIDDEN.get(name, ())) for name in ordered]
    return "\n".join(parts)


def _directive(path: str, hidden: Iterable[str] = ()) -> str:
    filters = ["!^_", *(f"!^{name}$" for name in sorted(hidden))]
    return (
        f"::: {path}\n    options:\n      heading_level: 2\n      inherited_members: true\n      filters: {filters!r}\n"
    )
