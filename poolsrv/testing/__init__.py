"""Test support for plugin authors; see docs/testing.md.

Each name is imported when it is first asked for: pytest imports this package in every run, for its fixtures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config.errors import ConfigErrors
    from .client import Client
    from .conforming import assert_conforms, conformance
    from .dialogue import Dialogue
    from .findings import Finding, NotConforming
    from .harness import Fault, Harness, NeverRests
    from .loading import load_options
    from .logged_process import ServerFailed
    from .server import Server

__all__ = [
    "Client",
    "ConfigErrors",
    "Dialogue",
    "Fault",
    "Finding",
    "Harness",
    "NeverRests",
    "NotConforming",
    "Server",
    "ServerFailed",
    "assert_conforms",
    "conformance",
    "load_options",
]

_MODULES = {
    "Client": ".client",
    "ConfigErrors": "..config.errors",
    "Dialogue": ".dialogue",
    "Fault": ".harness",
    "Finding": ".findings",
    "Harness": ".harness",
    "NeverRests": ".harness",
    "NotConforming": ".findings",
    "Server": ".server",
    "ServerFailed": ".logged_process",
    "assert_conforms": ".conforming",
    "conformance": ".conforming",
    "load_options": ".loading",
}

if not TYPE_CHECKING:  # to a type checker this would give the package every name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name], __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
