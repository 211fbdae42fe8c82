"""Test support for plugin authors; see docs/testing.md.

Each name is imported when it is first asked for: pytest imports this package in every run, for its fixtures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config.errors import ConfigErrors
    from .client import Client
    from .harness import Fault, Harness, NeverRests
    from .loading import load_options
    from .server import Server, ServerFailed

__all__ = [
    "Client",
    "ConfigErrors",
    "Fault",
    "Harness",
    "NeverRests",
    "Server",
    "ServerFailed",
    "load_options",
]

_MODULES = {
    "Client": ".client",
    "ConfigErrors": "..config.errors",
    "Fault": ".harness",
    "Harness": ".harness",
    "NeverRests": ".harness",
    "Server": ".server",
    "ServerFailed": ".server",
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
