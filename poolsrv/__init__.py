"""A Linux server that runs a pool of pre-forked workers, and lets plugins supply the protocol.

These are the names for plugins; see docs/plugins.md. Each is imported when it is first asked for: ``poolsrv check``
and ``poolsrv --version`` import this package too, and have no use for the engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .children import PIPE, Child
    from .connection import Connection
    from .errors import ConfigError, LineTooLong
    from .eventloop import Timer
    from .handle import Handle
    from .hookspecs import hookimpl
    from .safenames import open_for_appending
    from .stream import Stream
    from .worker import Worker

__all__ = [
    "PIPE",
    "Child",
    "ConfigError",
    "Connection",
    "Handle",
    "LineTooLong",
    "Stream",
    "Timer",
    "Worker",
    "hookimpl",
    "open_for_appending",
]

_MODULES = {
    "PIPE": "children",
    "Child": "children",
    "ConfigError": "errors",
    "Connection": "connection",
    "Handle": "handle",
    "LineTooLong": "errors",
    "Stream": "stream",
    "Timer": "eventloop",
    "Worker": "worker",
    "hookimpl": "hookspecs",
    "open_for_appending": "safenames",
}

if not TYPE_CHECKING:  # to a type checker this would give the package every name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
