"""A worker in the test's process: the real ``Worker``, ``Service`` and ``Connection``, on a loop that the test turns.

What is left out is the process around them: the channel to the dispatcher, signals, and what ends with the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from socket import SO_LINGER, SOL_SOCKET, socket
from typing import Any, Final, NamedTuple

from ..core.event_loop import EventLoop
from ..ipc.told_once import ToldOnce
from ..net.programs import PROGRAM_GRACE, Child, Reaper
from ..worker.admission_client import AdmissionClient
from ..worker.blocking_threads import BlockingThreads
from ..worker.connection import Connection
from ..worker.culprits import running_plugin
from ..worker.descriptor_room import DescriptorRoom
from ..worker.engine_metrics import WorkerMetrics
from ..worker.host import Host
from ..worker.metrics import Metrics
from ..worker.run_sources import RunSources
from ..worker.service import Service
from ..worker.spec import ServerSpec
from ..worker.worker import Worker
from ..worker.worker_programs import WorkerPrograms
from .clock import ClockedLoop
from .harness_status import Figures, HarnessStatus

log = logging.getLogger("poolsrv.worker")

LOCAL: Final = ("127.0.0.1", 7007)  # where clients have connected to, as plugins see it
_LINGER_SIZE: Final = 8  # of struct linger


class Fault(NamedTuple):
    """What a plugin has raised.

    :ivar plugin: the plugin's name; empty if a callback of the worker has raised it.
    :ivar hook: the hook or the callback: ``"on_readable"``, ``"a timer"``.
    :ivar connection: the id of the connection that it has ended, if any.
    :ivar error: the exception.
    """

    plugin: str
    hook: str
    connection: int | None
    error: BaseException

    def __str__(self) -> str:
        by = f"plugin {self.plugin!r}" if self.plugin else "a callback of the worker"
        return f"{by} failed in {self.hook}: {type(self.error).__name__}: {self.error}"


class WatchedConnection(Connection):
    """A connection that records how it has ended.

    :ivar dropped_timers: calls of ``call_later`` that were not made because it had ended.
    """

    __slots__ = ("dropped_timers",)

    def __init__(self, host: Host[Connection], fd: int, number: int, peer: tuple[str, int]) -> None:
        Connection.__init__(self, host, fd, number, peer)
        self._local = LOCAL
        self.dropped_timers = 0

    @property
    def end(self) -> str:
        """Why it was closed; empty while it is open."""
        return "" if self._is_open() else self._reason or "closed"

    def _on_ended(self) -> None:
        self.dropped_timers = sum(timer.callback is not None for timer in self._timers or ())
        Connection._on_ended(self)

    def is_held(self) -> bool:
        """Whether something keeps it open: a program, a thread, another stream, the plugin."""
        return self._is_open() and self._is_held()


class _Service(Service):
    def _log_fault(self, plugin: str, hook: str, connection: Connection | None, error: BaseException) -> None:
        assert isinstance(self._owner, InProcessWorker)
        self._owner.faults.append(Fault(plugin, hook, None if connection is None else connection.id, error))
        super()._log_fault(plugin, hook, connection, error)


class _AlwaysNew(ToldOnce):
    """Logs every failed start in full; there is no other process to tell."""

    def __init__(self) -> None:
        return

    def is_new(self, source: str, error: BaseException) -> bool:
        return True


class _Threads(BlockingThreads):
    """Knows how many calls are under way."""

    under_way = 0

    def submit(self, function: Callable[[], Any], done: Callable[[Any], object]) -> None:
        def has_returned(future: Any) -> None:
            self.under_way -= 1
            done(future)

        self.under_way += 1
        super().submit(function, has_returned)


class InProcessWorker:
    """A worker, as ``WorkerProcess`` is one; the owner of its service.

    :param faults: what plugins raise is appended.
    """

    def __init__(self, slot: int, server: ServerSpec, loop: ClockedLoop, faults: list[Fault]) -> None:
        self.loop: EventLoop = loop
        self._clock = loop
        self.faults = faults
        self.reaper = Reaper(loop)
        self._threads = _Threads(loop, self._guarded)
        self.threads: BlockingThreads = self._threads
        self.room = DescriptorRoom(loop, lambda: 0)
        self.told: ToldOnce = _AlwaysNew()
        self.admission_client: AdmissionClient | None = None
        self.graceful_timeout = server.config.pool.graceful_timeout
        self.start_failed = False
        self.metrics = WorkerMetrics(listener.config.name for listener in server.listeners)
        self.registry = self.metrics.registry
        self.reopen_logs: list[Callable[[], object]] = []
        status = self._status_of(server)
        programs = WorkerPrograms(self.reaper, self._program_exited, self.room.doubt)
        self.worker = Worker(
            slot,
            loop,
            reaper=self.reaper,
            threads=self.threads,
            programs=programs,
            guarded=self._guarded,
            reopen_logs=self.reopen_logs,
            metrics=Metrics(self.registry, lambda: running_plugin([self.service])),
            runs=RunSources(),
            status=lambda: status,
        )
        self.accepted = 0
        self.plugin = server.listeners[0].hooks.plugins[-1].instance
        self.service = _Service(self, server.listeners[0], server.base, WatchedConnection)
        self.service.begin()
        self.resets: set[int] = set()  # ids of connections that the server has reset
        self.stopped = False
        self._witnesses: dict[int, socket] = {}  # of each open connection, a copy of the server's side

    # --- its life

    def start(self) -> None:
        """Have plugins open what they need; where one can't, ``start_failed`` is set."""
        self.threads.open()
        self._call_hook("on_worker_start")

    def open(self, sock: socket, number: int, peer: tuple[str, int]) -> Connection | None:
        """Serve a connection; None if it has ended already."""
        self.accepted += 1
        self._witnesses[number] = sock.dup()
        self.service.open(sock.detach(), number, peer, self.loop.now)
        return self.service.connections.get(number)

    def witness(self, number: int) -> socket | None:
        """A copy of the server's side of a connection; None once it is closed."""
        return self._witnesses.get(number)

    def drain(self) -> None:
        """As when a worker is told to end: it gets no new connections, and open ones finish."""
        if not self.worker.draining:
            self.worker.draining = True
            self.loop.call_later(self.graceful_timeout, lambda: self.service.abort_all("drain timeout"))
            self.service.drain()

    def stop(self) -> None:
        """End all connections, have plugins close what they have opened, and end its programs."""
        if self.stopped:
            return
        self.stopped = True
        self.worker.draining = True
        self.service.abort_all("worker stop")
        while self.service.connections:
            self.loop.turn(0.0)
        self._call_hook("on_worker_stop")
        self.reaper.end_all(PROGRAM_GRACE)
        self.threads.close(wait=True)

    def is_busy(self) -> bool:
        """Whether something outside of the loop is under way: a program, a thread, another stream; or what holds a
        connection, unless there is a timer, which may be what the plugin waits for."""
        connections = self.service.connections.values()
        if self.reaper.running or self._threads.under_way or any(one._count_descriptors() > 1 for one in connections):
            return True
        held = any(isinstance(one, WatchedConnection) and one.is_held() for one in connections)
        return held and self._clock.next_due() is None

    # --- as the owner of the service

    def _status_of(self, server: ServerSpec) -> HarnessStatus | None:
        listener = server.listeners[0]
        return HarnessStatus(self.loop, listener, self._guarded, self._figures) if listener.config.apart else None

    def _figures(self) -> Figures:
        is_draining, connections = self.worker.draining, len(self.service.connections)
        return Figures(self.worker.slot, is_draining, connections, self.accepted, len(self.reaper.running))

    def connection_closed(self, number: int) -> None:
        """The descriptor of the connection with this id has been closed."""
        witness = self._witnesses.pop(number)
        if witness.getsockopt(SOL_SOCKET, SO_LINGER, _LINGER_SIZE)[0]:
            self.resets.add(number)  # a pair of unix sockets knows no resets: the client is told in this way
        witness.close()

    def _program_exited(self, child: Child) -> None:
        self.service.child_exited(child, None)

    def _guarded(self, what: str, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:
            self.faults.append(Fault("", what, None, error))
            log.exception("a plugin's callback failed (%s)", what)

    def _call_hook(self, hook: str) -> None:
        call = getattr(self.service.hooks, hook)
        if call is not None:
            try:
                call(self.worker)
            except BaseException as error:  # noqa: BLE001 - a wrapper around the notification has raised
                self.service.log_fault(hook, None, error)
                self.start_failed = self.start_failed or hook == "on_worker_start"
