"""A worker's process: it takes connections from its channel, dispatches events to plugins, drains, and ends.

``Intake._take`` receives a connection from the dispatcher, ``Service.open`` makes a ``Connection`` of it, the event
loop calls ``Stream._on_event`` for each of its events, and that calls the plugin.

A worker's life: starting (``on_worker_start``), serving, draining (TERM: what is open may finish, nothing new), and
its end (``on_worker_stop``, programs ended). With the dispatcher's ``DRAIN_POOL_SIGNAL`` all workers drain, and take
what is left. Its ``STOP_NOW_SIGNAL`` skips what is left of draining, and so does the end of the dispatcher, which shows
as end of file on the channel. A second TERM changes nothing: a TERM to the whole process group, as a shell and systemd
send it, reaches each worker twice.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from ..core import forked_copies, logs, processes, signals
from ..core.event_loop import READ, EventLoop
from ..core.hang_signal import HANG_SIGNAL
from ..ipc.told_once import ToldOnce
from ..ipc.worker_channel import (
    DRAIN_POOL_SIGNAL,
    DRAINING,
    EXIT_DISPATCHER_GONE,
    EXIT_OK,
    EXIT_START_FAILED,
    SERVING,
    STOP_NOW_SIGNAL,
    DispatcherEnd,
    WorkerEnd,
)
from ..net import programs
from ..net.descriptor import Descriptor
from ..net.relay import Relay
from .admission_client import AdmissionClient
from .blocking_threads import BlockingThreads
from .culprits import add_culprit, running_plugin
from .descriptor_room import DescriptorRoom
from .engine_metrics import WorkerMetrics
from .intake import Intake
from .kernel_acceptor import OwnSocket
from .metrics import Metrics
from .reporter import Reporter
from .run_sources import RunSources
from .service import Service
from .spare_memory import SpareMemory, share_one_heap
from .status_client import StatusClient
from .time_watch import TimeWatch
from .worker import Worker
from .worker_programs import WorkerPrograms

if TYPE_CHECKING:
    from ..ipc.metrics import MetricsReport
    from ..net.programs import Child
    from .spec import ServerSpec


log = logging.getLogger("poolsrv.worker")
SIGNALS: Final = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1),
    *(DRAIN_POOL_SIGNAL, STOP_NOW_SIGNAL),
)

# What a copy of this process that a plugin has made must not use.
_GUARDED: Final = (
    *(WorkerEnd, Intake, Reporter, AdmissionClient, EventLoop, Descriptor, Relay),
    *(BlockingThreads, WorkerPrograms, Service, StatusClient),
)


class WorkerProcess:
    """The process: its loop, its channel to the dispatcher, and how it ends. ``worker`` is what plugins see of it.

    The dispatcher makes one before it forks, and never runs it. In each child, it becomes the child's: of what is
    made before the fork, all processes have the same memory, until one of them writes to it.

    :param told: errors of starts that have been logged.
    :param asks: whether it asks the dispatcher about admission.
    """

    def __init__(self, server: ServerSpec, told: ToldOnce, asks: bool) -> None:
        self.loop = loop = EventLoop()
        loop.close()
        self.reaper = programs.Reaper(loop)
        self.threads = BlockingThreads(loop, self._guarded)
        self.room = DescriptorRoom(loop, self._descriptors_of_connections)
        self.told = told
        self.metrics = metrics = WorkerMetrics(listener.config.name for listener in server.listeners)
        pool = server.config.pool
        runs = RunSources(are_kept=pool.control is not None and pool.runs > 0)
        self.graceful_timeout = server.config.pool.graceful_timeout
        self.start_failed = False
        self._channel = channel = WorkerEnd()
        self._hang_file = -1
        self._reopen_logs: list[Callable[[], object]] = []
        self._programs = WorkerPrograms(self.reaper, self._program_exited, self.room.doubt)
        self._status: StatusClient | None = None
        self.worker = Worker(
            0,
            loop,
            reaper=self.reaper,
            threads=self.threads,
            programs=self._programs,
            guarded=self._guarded,
            reopen_logs=self._reopen_logs,
            metrics=Metrics(metrics.registry, lambda: running_plugin(self._served)),
            status=lambda: self._status,
            runs=runs,
        )
        self._signals: signals.SignalPipe | None = None
        self._exit_code = EXIT_OK
        self._reporter = Reporter(
            loop,
            channel,
            urgent=pool.dispatch == "least-connections"
            or any(listener.config.max_connections or listener.config.max_per_source for listener in server.listeners),
            hang_timeout=pool.hang_timeout,
            counters=self._counters,
            metrics=self._collect_metrics,
            runs=runs.collect,
        )
        # Where the PROXY protocol says which client has connected, and limits go by that.
        self.admission_client = AdmissionClient(loop, channel, self._reporter) if asks else None
        self._services = [Service(self, listener, server.base) for listener in server.listeners]
        self._served: list[Service] = []
        share_one_heap()
        self._spare_memory = SpareMemory(loop, self._services)
        self._watch = TimeWatch(loop, self._served, metrics.engine, pool.slow_hook)
        self._intake = Intake(
            loop,
            channel,
            self._services,
            self._reporter,
            self.room,
            give_way=self._drain,
            gone=self._dispatcher_gone,
        )
        self._program_grace = programs.PROGRAM_GRACE

    # --- its life

    def become(
        self,
        slot: int,
        channel: DispatcherEnd,
        hang_file: int,
        questions: socket.socket | None,
        own_sockets: Sequence[OwnSocket],
    ) -> None:
        """In a forked child: be its worker.

        :param slot: the worker's number in the pool, from 0; or ``APART``.
        :param hang_file: the descriptor of the file that says where it hangs.
        :param questions: of the worker apart: a socket on which the dispatcher answers.
        :param own_sockets: those at which it accepts by itself.
        """
        self.loop.reopen()
        channel.become(self._channel)
        self._hang_file = self.room.probe = hang_file
        self.worker.slot = slot
        for service in self._services:
            service.begin()
            if service.config.is_for(slot):
                self._served.append(service)
        self._intake.acceptor.sockets.extend(own_sockets)
        if questions is not None:
            self._status = StatusClient(self.loop, questions, self._guarded)
        if self.admission_client is not None:
            self.admission_client.begin()

    def run(self) -> int:
        """Serve until drained; the exit code."""
        self._signals = signals.SignalPipe(SIGNALS)
        signals.handle(signal.SIGCHLD, None)
        hang_file, hooks = self._hang_file, [service.hooks for service in self._served]
        signals.handle(HANG_SIGNAL, lambda _, frame: add_culprit(hang_file, frame, hooks))
        faulthandler.register(HANG_SIGNAL, file=hang_file, all_threads=True, chain=True)
        signals.unblock()
        processes.become_subreaper()
        processes.signal_when_parent_dies(signal.SIGCONT)  # a stopped worker could not notice it
        loop = self.loop
        loop.register(self._signals.fileno(), READ, self._on_signal)
        forked_copies.guard((WorkerProcess, Worker, *_GUARDED), self._close_inherited)
        self.threads.open()
        for service in self._served:
            if service.hooks.on_worker_start is not None:
                self._guarded_hook(service, "on_worker_start")
        if self.start_failed:
            self._exit_code = EXIT_START_FAILED
        else:
            loop.register(self._channel.fileno(), READ, self._intake.on_channel)
            reporter = self._reporter
            loop.after_turn = reporter.after_turn_of_acceptor if self._intake.acceptor.sockets else reporter.after_turn
            reporter.begin(SERVING)
            self._watch.begin()
            gc.freeze()
            loop.run()
        self._end()
        return self._exit_code

    def _close_inherited(self) -> None:
        """In a copy that a plugin has made: close what is shared with the worker."""
        self.loop.abandon(partial(forked_copies.end_copy, "the loop"))
        self._intake.close_inherited()
        if self._signals is not None:
            self._signals.abandon()
        if self._status is not None:
            self._status.close_inherited()
        for service in self._services:
            service.close_inherited()
        self._programs.close_inherited()

    def _on_signal(self, mask: int) -> None:
        assert self._signals is not None
        for number in self._signals.take():
            # INT and HUP go to every process of a terminal: the dispatcher's to act on.
            if number in (signal.SIGTERM, DRAIN_POOL_SIGNAL):
                if not self.worker.draining:
                    self._drain()
                if number == DRAIN_POOL_SIGNAL:
                    self._intake.take_late()
            elif number == signal.SIGUSR1:
                logs.reopen()
                for callback in list(self._reopen_logs):
                    self._guarded("on_reopen_logs", callback)
            elif number == STOP_NOW_SIGNAL:
                self._program_grace = 0.0
                self.reaper.kill_all()
                self._stop_now("worker stop")

    def _drain(self) -> None:
        """Take what is in the channel, and nothing after it; let open connections finish. The dispatcher reclaims what
        there is no room for."""
        self._intake.drain()
        if self._exit_code == EXIT_DISPATCHER_GONE or self.worker.draining:
            return
        self.worker.draining = True
        self._reporter.state = DRAINING
        self.loop.call_later(self.graceful_timeout, partial(self._stop_now, "drain timeout"))
        for service in self._services:
            service.drain()
        self._stop_when_empty()

    def _dispatcher_gone(self) -> None:
        log.warning("the dispatcher is gone: ending")
        self._exit_code = EXIT_DISPATCHER_GONE
        self._stop_now("worker stop")

    def _stop_now(self, reason: str) -> None:
        self.worker.draining = True
        self._intake.stop()
        for service in self._services:
            service.abort_all(reason)
        self._stop_when_empty()

    def _stop_when_empty(self) -> None:
        if self.worker.draining and not self._has_connections():
            self.loop.at_end_of_turn(self._stop_if_still_empty)

    def _stop_if_still_empty(self) -> None:
        """Stop, unless there is room again for what waits in the channel."""
        while not self._has_connections():
            if not self._intake.take_rest():
                self.loop.stop()
                return

    def _has_connections(self) -> bool:
        return any(service.connections for service in self._services)

    def _end(self) -> None:
        """Have plugins close what they have opened, end their programs, and send the last report."""
        for service in self._served:
            if service.hooks.on_worker_stop is not None:
                self._guarded_hook(service, "on_worker_stop")
        self._reporter.tell(counters=True)
        self._end_programs()
        self._reporter.tell(counters=True)  # of what has been ended now
        self.threads.close()

    def _end_programs(self) -> None:
        """End all that this process has started or adopted."""
        self.loop.after_turn = None
        self.reaper.end_all(self._program_grace)
        if self._exit_code == EXIT_DISPATCHER_GONE:
            # Otherwise the dispatcher adopts and ends what is left.
            processes.kill_until_none(self.loop, 1.0, processes.reap_all)

    def _program_exited(self, child: Child) -> None:
        """A program that belongs to no connection has been reaped."""
        for service in self._served:
            service.child_exited(child, None)

    # --- its connections

    def connection_closed(self, number: int) -> None:
        """Report, at the end of the iteration, that a connection's descriptor has been closed."""
        self._reporter.closed.append(number)
        if self.worker.draining:
            self._stop_when_empty()

    def _counters(self) -> tuple[int, int, int, int, int]:
        totals = [service.totals() for service in self._services]
        still_open = sum(len(service.connections) for service in self._services)
        return (
            self._intake.accepted + self._intake.acceptor.accepted,
            still_open,
            self.loop.events,
            sum(total[0] for total in totals),
            sum(total[1] for total in totals),
        )

    def _collect_metrics(self) -> list[MetricsReport]:
        self.metrics.engine.update(self.loop, self.room.lost)
        for service in self._services:
            service.metrics.update(*service.totals(), service.failed_handshakes)
        self._spare_memory.look()
        return self.metrics.registry.collect()

    def _descriptors_of_connections(self) -> int:
        return len(self.reaper.running) + sum(service.descriptors() for service in self._services)

    # --- the fault boundary

    def _guarded(self, what: str, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:
            self.room.doubt(error)
            log.exception("a plugin's callback failed (%s)", what)

    def _guarded_hook(self, service: Service, hook: str) -> None:
        try:
            getattr(service.hooks, hook)(self.worker)
        except BaseException as error:  # noqa: BLE001 - a wrapper around the notification has raised
            service.log_fault(hook, None, error)
            self.start_failed = self.start_failed or hook == "on_worker_start"
