"""A Linux server that runs a pool of pre-forked workers, and lets plugins supply the protocol.

These are the names for plugins; see docs/plugins.md. Each is imported when it is first asked for: ``poolsrv check``
and ``poolsrv --version`` import this package too, and have no use for the engine.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing, and importlib below, would be imported before the first pool is started
if TYPE_CHECKING:
    from .core.event_loop import Timer
    from .core.safe_names import open_for_appending, open_private_folder
    from .core.sandbox import Sandbox
    from .errors import ConfigError, FrameTooLong, LineTooLong
    from .ipc.captures import Capture, CapturedSandbox
    from .ipc.runs import Run
    from .net.programs import PIPE, Child
    from .net.stream import Stream
    from .net.tls import ClientTls
    from .worker.capture_folder import CaptureFolder
    from .worker.connection import Connection
    from .worker.hookspecs import hookimpl
    from .worker.metrics import Counter, Gauge, Histogram, Metrics
    from .worker.status_client import ServerReport
    from .worker.worker import Handle, Worker

__all__ = [
    "PIPE",
    "Capture",
    "CaptureFolder",
    "CapturedSandbox",
    "Child",
    "ClientTls",
    "ConfigError",
    "Connection",
    "Counter",
    "FrameTooLong",
    "Gauge",
    "Handle",
    "Histogram",
    "LineTooLong",
    "Metrics",
    "Run",
    "Sandbox",
    "ServerReport",
    "Stream",
    "Timer",
    "Worker",
    "hookimpl",
    "open_for_appending",
    "open_private_folder",
]

_MODULES = {
    "PIPE": "net.programs",
    "Capture": "ipc.captures",
    "CapturedSandbox": "ipc.captures",
    "CaptureFolder": "worker.capture_folder",
    "Child": "net.programs",
    "ClientTls": "net.tls",
    "ConfigError": "errors",
    "Connection": "worker.connection",
    "Counter": "worker.metrics",
    "FrameTooLong": "errors",
    "Gauge": "worker.metrics",
    "Handle": "worker.worker",
    "Histogram": "worker.metrics",
    "LineTooLong": "errors",
    "Metrics": "worker.metrics",
    "Run": "ipc.runs",
    "Sandbox": "core.sandbox",
    "ServerReport": "worker.status_client",
    "Stream": "net.stream",
    "Timer": "core.event_loop",
    "Worker": "worker.worker",
    "hookimpl": "worker.hookspecs",
    "open_for_appending": "core.safe_names",
    "open_private_folder": "core.safe_names",
}

if not TYPE_CHECKING:  # to a type checker this would give the package every name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        # A repr shows where a plugin imports the class from. A struct keeps its module, because msgspec looks up the
        # names of its annotations there.
        if isinstance(value, type) and not hasattr(value, "__struct_fields__"):
            value.__module__ = __name__
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
