"""A plugin in the test's own process: real connections, no other process, and time that the test moves.

Theory. Worker, connections and programs are the engine's own. The network is a pair of unix sockets for each client:
what one side sends is there for the other at once. So a test need not wait: after each step the harness turns the loop
until it has nothing left to do, and then what the client has received is what it gets.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from socket import AF_UNIX, socketpair
from time import monotonic
from types import TracebackType
from typing import Any, Final

from ..config.errors import ConfigErrors
from ..plugins.loader import class_of
from ..worker.spec import ServerSpec
from ..worker.worker import Worker
from .client import Client
from .clock import ClockedLoop
from .in_process import Fault, InProcessWorker
from .loading import load

__all__ = ["ConfigErrors", "Fault", "Harness", "NeverRests"]

MOST_TURNS: Final = 1_000_000  # more than these: the plugin postpones its work for ever
_SLICE: Final = 0.05  # seconds of one wait for events outside the loop
_ROUNDING: Final = 1e-6  # seconds: 59.9 + 0.1 must reach a minute
_NO_HARNESS: Final = ("tls", "proxy_protocol")  # a harness's clients speak neither
_FIRST_PORT: Final = 50001


class NeverRests(AssertionError):
    """The loop always has something to do: a callback that calls ``call_later(0)`` or ``call_soon`` for ever."""


class Harness:
    """A worker with one listener, and its clients. A context manager; ``close`` ends it too.

    :param handler: the plugin: its class, an instance, or the name of an installed one.
    :param options: its table of the config, as ``load_options`` takes it; None: there is none.
    :param plugins: further plugins, called before the handler; each as ``handler``.
    :param plugin_options: the tables of further plugins, by name; the name of a class is its own in lower case.
    :param folder: relative paths in the config are relative to it; None: to the current directory.
    :param raise_faults: whether an exception of the plugin is raised again by the method of the harness or the client
        that has brought it about. If not, it is only in ``faults``, and in the log as always.
    :param listener: further keys of the listener: ``idle_timeout=5.0``.
    :raises ConfigErrors: every error of the config, as ``poolsrv check`` reports it.
    :ivar faults: what plugins have raised.
    :ivar clients: all clients so far.
    """

    def __init__(
        self,
        handler: object,
        options: Mapping[str, Any] | None = None,
        *,
        plugins: Sequence[object] = (),
        plugin_options: Mapping[str, Mapping[str, Any]] | None = None,
        folder: Path | None = None,
        raise_faults: bool = True,
        **listener: Any,
    ) -> None:
        for key in _NO_HARNESS:
            if listener.get(key):
                raise ValueError(f"{key} needs a real server, expected none in a harness")
        self.faults: list[Fault] = []
        self.clients: list[Client] = []
        self._raise_faults = raise_faults
        self._listener = listener
        self._raised = 0  # how many faults have been raised
        self._load: Callable[[object], ServerSpec] = lambda handler: load(
            handler,
            options,
            plugins=plugins,
            plugin_options=plugin_options,
            listener=listener,
            folder=folder,
        )
        self._handler = handler
        self._workers: list[InProcessWorker] = []
        server = self._load(handler)
        self._loop = ClockedLoop()
        try:
            self._start(server)
        except BaseException:
            self.close()
            raise

    # --- its parts

    @property
    def worker(self) -> Worker:
        """The worker that new clients come to, as plugins see it."""
        return self._current.worker

    @property
    def plugin(self) -> Any:
        """The handler's instance in that worker."""
        return self._current.plugin

    @property
    def open_connections(self) -> int:
        """How many connections are open, in all workers."""
        self.run()
        return sum(len(worker.service.connections) for worker in self._workers)

    def metric(self, name: str, **labels: object) -> float:
        """What the plugin has counted, in all workers: of a counter or a gauge its value, of a histogram the number of
        values.

        :param labels: values of its labels; of those that are not named, all count.
        :raises KeyError: there is no such series.
        """
        values = []
        for worker in self._workers:
            with suppress(KeyError):
                values.append(worker.registry.value(name, **labels))
        if not values:
            raise KeyError(f"no metric {name} {labels or ''}".rstrip())
        return sum(values)

    @property
    def busy(self) -> bool:
        """Whether anything outside of the loop is under way: a program, a thread, or something that the plugin waits
        for while it holds a connection."""
        self.run()
        return any(worker.is_busy() for worker in self._workers)

    @property
    def _current(self) -> InProcessWorker:
        return self._workers[-1]

    @property
    def half_close(self) -> str:
        """What a client's half-close means here: the listener's key, or the plugin's default."""
        return self._current.service.half_close

    def _start(self, server: ServerSpec) -> None:
        slot = len(self._workers)
        worker = InProcessWorker(slot, server, self._loop, self.faults)
        self._workers.append(worker)
        worker.start()
        self.run()

    # --- clients

    def connect(self, peer: tuple[str, int] | None = None, *, slot: int | None = None) -> Client:
        """Connect a client.

        :param peer: its address, as plugins see it in ``conn.peer``; None: one of 127.0.0.1.
        :param slot: the worker that gets it, from 0; None: the latest.
        """
        ours, theirs = socketpair(AF_UNIX)
        number = len(self.clients) + 1
        worker = self._current if slot is None else self._workers[slot]
        client = Client(ours, worker, number, self.run)
        self.clients.append(client)
        client.connection = worker.open(theirs, number, peer or ("127.0.0.1", _FIRST_PORT + number))
        self.run()
        return client

    # --- time

    def advance(self, seconds: float) -> None:
        """Let time pass at once. Timers and timeouts that fall due run in order, each at its time.

        ``time.monotonic()`` and ``time.time()`` move along until the harness is closed. Nothing is waited for.
        """
        loop = self._loop
        until = loop.now + seconds
        self.run()
        while (due := loop.next_due()) is not None and due <= until + _ROUNDING:
            loop.move_to(due)
            self.run()
        loop.move_to(until)
        self.run()

    def advance_to_timer(self, longest: float) -> bool:
        """Let time pass until the next timer is due, for ``longest`` seconds at most. Returns whether one was due."""
        self.run()
        due = self._loop.next_due()
        found = due is not None and due <= self._loop.now + longest
        if found and due is not None:
            self._loop.move_to(due)
            self.run()
        return found

    # --- the worker's end

    def drain(self) -> None:
        """Tell the worker to end, as on a stop or a reload: ``on_drain`` is called. Open connections may
        finish for 30 seconds, which ``advance`` moves."""
        self._current.drain()
        self.run()

    def reload(self) -> None:
        """As on a reload: a new worker, with an instance of its own, takes all new clients, and the old one drains.

        The class's package is imported again for it: what the old worker keeps in the module or in the instance is not
        there in the new one. The old worker's ``on_worker_stop`` is called once its last connection is closed.
        """
        old = self._current
        if self._is_exclusive(old):
            old.drain()
            self.run()
            if old.service.connections:
                self.advance(old.graceful_timeout)
            old.stop()
            self.add_worker()
        else:
            self.add_worker()
            old.drain()
            self.run()

    def _is_exclusive(self, worker: InProcessWorker) -> bool:
        return bool(getattr(worker.plugin, "exclusive", False) or self._listener.get("exclusive"))

    def add_worker(self) -> None:
        """Start a second worker, with an instance of its own; new clients come to it."""
        self._start(self._load(reimported(self._handler)))

    def close(self) -> None:
        """End the workers: connections are aborted, ``on_worker_stop`` is called, programs are ended.

        :raises BaseException: what the plugin has raised and nothing has raised again so far.
        """
        for worker in self._workers:
            worker.stop()
        for client in self.clients:
            client.drop()
        self._loop.close()
        self._raise_fault()

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._raise_faults = False  # the test has failed already
        self.close()

    # --- running

    def run(self, until: Callable[[], object] | None = None, timeout: float = 10.0) -> bool:
        """Run the loop until it has nothing left to do. Every method does so by itself.

        :param until: then wait until it returns true: for programs, threads and other servers.
        :param timeout: seconds to wait for it.
        :returns: whether it is so.
        :raises NeverRests: the plugin always has something to do.
        """
        self._settle()
        if until is not None:
            deadline = monotonic() + timeout
            while not until() and (left := deadline - monotonic()) > 0:
                self._loop.turn(min(left, _SLICE))
                self._settle()
        self._raise_fault()
        return until is None or bool(until())

    def _settle(self) -> None:
        loop = self._loop
        for _ in range(MOST_TURNS):
            moved = [client.push() for client in self.clients]
            events = loop.wait(0.0)
            loop.dispatch(events)
            moved += [client.pull() for client in self.clients]
            if not events and not any(moved) and not loop.has_work:
                break
        else:
            raise NeverRests(f"the loop still has something to do after {MOST_TURNS} iterations")
        self._stop_drained()

    def _stop_drained(self) -> None:
        for worker in self._workers[:-1]:
            if worker.worker.draining and not worker.stopped and not worker.service.connections:
                worker.stop()

    def _raise_fault(self) -> None:
        if not self._raise_faults:
            return
        new, self._raised = self.faults[self._raised :], len(self.faults)
        for fault in new:
            fault.error.add_note(str(fault))
            if isinstance(fault.error, SystemExit):
                raise RuntimeError(str(fault)) from fault.error
            raise fault.error


def class_named(plugin: object) -> object:
    """The class of an installed plugin; anything else as it is.

    :raises LookupError: no plugin of this name is installed.
    :raises PluginError: it can't be imported.
    """
    if not isinstance(plugin, str):
        return plugin
    from ..plugins import discovery
    from ..plugins.importing import import_class

    found = discovery.installed().get(plugin)
    if found is None:
        raise LookupError(f"no plugin {plugin!r} is installed")
    return import_class(found)


def reimported(plugin: object) -> object:
    """The plugin's class as a fresh process has it, with modules of its own; the same class if that is not possible."""
    plugin = class_named(plugin)
    cls = class_of(plugin)
    if not isinstance(plugin, type) or "<locals>" in cls.__qualname__:
        return plugin
    return _fresh(cls.__module__, cls.__qualname__) or plugin


def _fresh(module: str, attribute: str) -> object:
    """Import a module again beside the one that is there; None where it can't be imported by its name."""
    package = module.partition(".")[0]
    if module == "__main__" or package in ("poolsrv", "poolsrv_http"):
        return None
    mine = {name: found for name, found in sys.modules.items() if name.partition(".")[0] == package}
    python = {name for name, found in mine.items() if str(getattr(found, "__file__", None)).endswith(".py")}
    for name in python:
        del sys.modules[name]
    try:
        found: object = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError):
        return None
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules.update(mine)
