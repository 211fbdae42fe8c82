"""The dispatcher's process: its main loop, what the supervisor tells it, and its end.

The process forks in one place, below ``DispatcherProcess.run``, and a child leaves that loop by returning: nothing of
the parent is left on its stack. Signals only set what the loop then acts on. Stopping is a state with a deadline in
this same loop. worker_manager.py keeps the workers.

The process runs with the kernel's policy SCHED_BATCH (sched(7)). When it is woken it does not interrupt a worker that
runs on its CPU, but runs once that one waits or has used up its time slice. It then finds several connections in the
kernel's queue and passes them on together, where otherwise both processes would switch for each single one. On an idle
CPU it runs at once.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from ..config.model import APART, SERVED_APART
from ..core import forked_copies, logs, privileges, processes, reserve, signals
from ..core.event_loop import READ, EventLoop, Timer
from ..core.guarded_loop import GuardedLoop
from ..core.hang_signal import HANG_SIGNAL
from ..core.words import counted
from ..ipc.pool_link import Message, PoolLink, send_lines
from ..ipc.worker_channel import DRAIN_POOL_SIGNAL, MAX_IN_FLIGHT, STOP_NOW_SIGNAL
from ..worker.process import WorkerProcess
from ..worker.spec import ServerSpec
from .acceptor import Acceptor
from .bound import addresses_of, dispatched
from .control_server import ControlServer
from .descriptor_limits import SPARE_DESCRIPTORS, connections_per_worker, free_descriptors
from .dispatcher import Dispatcher
from .kernel_dispatch import KernelDispatch
from .ledger_link import LedgerLink
from .listener import Listener
from .run_book import RunBook
from .startup import Place, stop_reading
from .stats_collector import StatsCollector
from .worker_manager import WorkerManager
from .worker_slot import WorkerSlot

log = logging.getLogger("poolsrv.pool")

STOP_MARGIN: Final = 5.0  # seconds after graceful_timeout in which workers have to end by themselves
STOP_NOW_MARGIN: Final = 1.0  # the same after a second signal to stop
RETRY_DELAY: Final = 0.1  # seconds until a message is sent again that the supervisor had no room for
IDS_PER_GENERATION: Final = 10**12  # a pool numbers its connections from a multiple of it, so that no number repeats
IGNORED: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU)


class DispatcherProcess:
    """The dispatcher of a pool. ``run`` returns an exit code, or in each forked child its ``WorkerProcess``.

    :param start: the supervisor's message at the start.
    :param hang_file: the descriptor into which this process dumps its stack when it is asked to.
    """

    def __init__(
        self, server: ServerSpec, place: Place, link: PoolLink, start: Mapping[str, Any], hang_file: int
    ) -> None:
        # Which handlers are served apart was perhaps not known when the sockets were bound.
        bound = [
            dispatched(group, SERVED_APART) if listener.config.apart else group
            for group, listener in zip(place.bound, server.listeners, strict=True)
        ]
        control = place.control
        self._server = server
        self._link = link
        self._spawner = place.spawner
        self._hang_file = hang_file
        self._has_served = False
        self._alive_interval = place.alive_interval
        self._config = server.config.pool
        # INT, HUP and the like are for the supervisor, but a terminal sends them to all.
        self._signals = signals.SignalPipe((signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, *IGNORED))
        self._bound = bound
        self._loop = GuardedLoop(log)
        # There must be room here for what a worker has not taken, when it is reclaimed.
        max_waiting = min(connections_per_worker(server.config), MAX_IN_FLIGHT)
        slots = [WorkerSlot(index, max_waiting) for index in range(self._config.workers)]
        has_apart = any(listener.config.apart for listener in server.listeners)
        apart = [WorkerSlot(APART, max_waiting)] if has_apart else []
        listeners = [
            Listener(self._loop, i, listener.config, bound[i], [*slots, *apart], self._config.dispatch)
            for i, listener in enumerate(server.listeners)
        ]
        self._listeners = listeners
        self._apart_stays = False  # it serves on while the others drain
        first_id = (start["generation"] - 1) * IDS_PER_GENERATION + 1
        self._dispatcher = Dispatcher(self._loop, listeners, [*slots, *apart])
        self._acceptor = Acceptor(self._loop, self._dispatcher, listeners, first_id)
        if any(bound.share is not None for group in bound for bound in group):
            self._dispatcher.kernel = KernelDispatch(
                self._loop, listeners, self._acceptor.callback, self._acceptor.allocate
            )
        self._workers = WorkerManager(
            server,
            self._loop,
            self._dispatcher,
            slots,
            apart,
            on_ready=self._serve,
            on_boot_failed=self._boot_failed,
            claim=lambda plugins: self._send("claims", plugins=plugins),
            released=lambda number: self._send("released", number=number),
            close_inherited=self._close_inherited,
            connect=self._connect,
        )
        self._has_batch_policy = False
        self._stopping = 0  # how many times it was asked to stop
        self._exit_code = 0
        self._kill_timer: Timer | None = None
        self._stats: StatsCollector | None = None
        self._control: ControlServer | None = None
        self._control_socket = control
        self._ledger_link = LedgerLink(
            self._loop,
            link,
            self._dispatcher.ledger,
            update=self._update_ledger,
            on_complete=self._open_control,
            is_supported=bool(start["about"].get("counts")),
        )
        self._runs = RunBook(self._config.runs, link if start["about"].get("counts") else None)
        self._dispatcher.on_runs = self._runs.take
        if control is not None or apart:
            self._stats = StatsCollector(
                self._loop, self._workers, self._dispatcher, listeners, place.path, start["generation"], start["about"]
            )
            self._stats.drain_notice = self._config.drain_notice
            self._stats.before_answer = self._tell_counts
            self._stats.spawner = place.spawner
            self._control = ControlServer(
                self._loop,
                control.socket if control is not None else None,
                {"status": self._stats.answer, "runs": self._runs.answer},
                {"run": self._runs.answer_one},
            )

    # --- the main loop

    def run(self) -> int | WorkerProcess:
        """Run until all workers have ended; in a forked child, return its worker."""
        self._begin()
        while True:
            worker = self._workers.start_due()
            if worker is not None:
                return worker
            if self._stopping and not self._workers.by_pid:
                self._finish()
                return self._exit_code
            if self._apart_stays and self._workers.apart_is_last():
                self._end_apart()
            self._loop.turn()

    def _begin(self) -> None:
        processes.become_subreaper()
        reserve.keep()
        self._has_batch_policy = _schedule(os.SCHED_OTHER, os.SCHED_BATCH)
        self._loop.register(self._signals.fileno(), READ, self._on_signal)
        self._loop.register(self._link.fileno(), READ, self._on_link)
        signals.unblock()
        forked_copies.guard(
            (DispatcherProcess, WorkerManager, Dispatcher, Acceptor, EventLoop, ControlServer, StatsCollector),
            self._close_in_copy,
        )
        self._send_alive()
        if self._spawner is not None:
            self._workers.spared.add(self._spawner.pid)
            self._spawner.watch(self._loop, self._spawner_gone)
        self._workers.begin()
        if self._stats is not None:
            self._stats.begin()
        self._ledger_link.begin()
        gc.freeze()  # what the workers share with this process stays out of their collections, and so shared
        gc.enable()

    def _serve(self) -> None:
        """Begin to accept, for every worker serves."""
        self._acceptor.open()
        if self._dispatcher.kernel is not None:
            try:
                self._dispatcher.kernel.open()
            except OSError as error:
                self._boot_failed(f"can't listen: {error.strerror}")
                return
        self._has_served = True
        self._send("serves")
        if self._stats is not None:
            self._stats.state = "serving"
        self._open_control()
        self._ledger_link.wait()
        addresses = ", ".join(f"{group[0].listener} on {one}" for group in self._bound for one in addresses_of(group))
        log.info("ready: %s (%s)", addresses, counted(len(self._workers.slots), "worker"))

    def _open_control(self) -> None:
        """Answer questions, once it is known what other pools have counted, and unless another pool serves."""
        if self._stats is None or self._control is None or self._stopping or not self._ledger_link.is_complete:
            return
        self._control.answer_workers()
        if self._has_served or self._stats.about.serving is None:
            self._control.open()

    def _connect(self) -> socket.socket:
        assert self._control is not None
        return self._control.connect()

    def _update_ledger(self) -> None:
        """Enter what is counted elsewhere, for the supervisor is about to be told; tell it of runs too."""
        self._dispatcher.update_ledger()
        self._workers.update_ledger()
        self._runs.tell()

    def _tell_counts(self) -> None:
        """Have the supervisor know what is about to be shown: should this process crash, no counter goes back."""
        self._update_ledger()
        self._ledger_link.tell()

    def _boot_failed(self, why: str) -> None:
        """Stop, for the workers can't start."""
        try:
            send_lines(self._link, "failed", [why], exit_code=1)
        except OSError as error:
            log.warning("the supervisor does not listen: %s", error.strerror)
        self._exit_code = 1
        self._stop("start-up")

    def _close_in_copy(self) -> None:
        """In a copy of this process that a plugin has forked: close what belongs to the dispatcher."""
        self._workers.close_inherited()
        self._loop.after_turn = partial(forked_copies.end_copy, "the loop")
        for listener in self._server.listeners:
            listener.hooks.abandon()

    def _close_inherited(self) -> None:
        """In a forked worker: undo and close what belongs to the dispatcher alone."""
        if self._has_batch_policy:
            _schedule(os.SCHED_BATCH, os.SCHED_OTHER)
        faulthandler.unregister(HANG_SIGNAL)  # signals are blocked
        os.close(self._hang_file)
        self._signals.abandon()
        if self._control is not None:
            self._control.close_inherited()
        self._close_sockets()
        self._link.close()

    def _close_sockets(self) -> None:
        """Close this process's copies of the listening sockets."""
        for group in self._bound:
            for bound in group:
                bound.socket.close()
        if self._control_socket is not None:
            self._control_socket.socket.close()

    # --- signals, and the supervisor's messages

    def _on_signal(self, mask: int) -> None:
        for number in self._signals.take():
            self._loop.guarded(self._on_one_signal, number)

    def _on_one_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            self._workers.reap()
        elif number == signal.SIGUSR1:
            self._reopen_logs()
        elif number == signal.SIGTERM and not self._stopping:
            if self._has_served:
                self._send("leaves")
            self._stop("SIGTERM")

    def _on_link(self, mask: int) -> None:
        try:
            while (message := self._link.receive()) is not None:
                self._loop.guarded(self._on_message, message)
        except EOFError:
            self._loop.unregister(self._link.fileno())
            log.error("the supervisor is gone")
            if not self._stopping:
                self._stop("supervisor gone", gone=None)

    def _on_message(self, message: Message) -> None:
        if message.kind == "stop" and not self._stopping:
            self._stop(message.fields["why"], bool(message.fields.get("ends")), message.fields.get("gone", ()))
        elif message.kind == "stop_now":
            while self._stopping < 2:
                self._stop("at once")
        elif message.kind == "reopen_logs":
            self._reopen_logs()
        elif message.kind == "counted":
            self._ledger_link.learn(message.fields)
            self._runs.learn(message.fields)
        elif message.kind == "about" and self._stats is not None:
            self._stats.set_about(message.fields["about"])
            if "notice" in message.fields and not self._stopping:
                self._stats.give_notice(message.fields["notice"])
        elif message.kind == "workers" and not self._stopping:
            if message.fields["by"] > 0:
                size = len(self._workers.slots)
                self._workers.add(room=free_descriptors(self._server.config, size + 1) > SPARE_DESCRIPTORS + size)
            else:
                self._workers.remove()
        elif message.kind == "release":
            self._workers.release(message.fields["number"], message.fields["plugins"])
        elif message.kind == "granted":
            self._workers.granted()
        elif message.kind == "resume":
            log.info("the new pool has failed: this one starts its exclusive workers again")
            self._workers.granted()

    def _spawner_gone(self) -> None:
        """Stop, so that the supervisor starts another pool with another spawner: only root can start one."""
        log.error("the spawner has ended: another pool is needed")
        self._exit_code = 1
        self._stop("no spawner")

    def _reopen_logs(self) -> None:
        """Reopen the logs of this process and of every worker."""
        logs.reopen()
        self._workers.reopen_logs()

    def _send_alive(self) -> None:
        try:
            self._link.send("alive")
        except OSError:
            pass  # the supervisor is held up, and has more of these to read already
        self._loop.call_later(self._alive_interval, self._send_alive)

    def _send(self, kind: str, **fields: Any) -> None:
        """Send the supervisor a message, now or as soon as it has room."""
        try:
            self._link.send(kind, **fields)
        except OSError as error:
            log.warning("the supervisor does not listen: %s", error.strerror)
            self._loop.call_later(RETRY_DELAY, partial(self._send, kind, **fields))

    # --- stopping

    def _stop(self, why: str, ends: bool = False, gone: Sequence[str] | None = ()) -> None:
        """Drain; the second time, end at once.

        :param ends: the server ends. Then the worker apart serves until the others have ended: it tells how they drain.
        :param gone: keys of the sockets that are given up although the server goes on; None: all of them.
        """
        self._stopping += 1
        self._workers.stop()
        if self._stopping > 2:
            return
        if self._stopping == 1:
            if self._stats is not None and why != "reload":
                self._stats.drain()
            still_open = counted(self._dispatcher.open_connections(), "connection is", "connections are")
            log.info("%s: stopping, %s open", why, still_open, extra={"reason": why})
            if self._dispatcher.kernel is not None:
                self._dispatcher.kernel.close()
                self._dispatcher.kernel.give_up(None if ends else gone)
            self._apart_stays = ends and not self._workers.apart_is_last()
            self._close_listeners([one for one in self._listeners if not (self._apart_stays and one.config.apart)])
            if self._control is not None:
                self._control.close()
            if self._control_socket is not None:
                self._control_socket.socket.close()
            self._update_ledger()
            self._ledger_link.tell(last=True)
            self._workers.signal_all(DRAIN_POOL_SIGNAL, but_apart=self._apart_stays)
        else:
            log.info("%s: ending at once", why, extra={"reason": why})
            self._end_apart()
            self._workers.signal_all(STOP_NOW_SIGNAL)
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        timeout = self._config.graceful_timeout + STOP_MARGIN if self._stopping == 1 else STOP_NOW_MARGIN
        self._kill_timer = self._loop.call_later(timeout, self._workers.kill_all)

    def _end_apart(self) -> None:
        """Have the worker apart drain, if it was not told to when the others were."""
        if self._apart_stays:
            self._apart_stays = False
            self._close_listeners(self._listeners)
            self._workers.signal_all(DRAIN_POOL_SIGNAL)

    def _close_listeners(self, listeners: list[Listener]) -> None:
        self._acceptor.close(listeners)
        self._dispatcher.close(listeners)
        for listener in listeners:
            for bound in listener.sockets:
                bound.socket.close()

    def _finish(self) -> None:
        """End what dead workers have left, and close everything."""
        self._dispatcher.drop_unassigned()
        self._update_ledger()
        self._ledger_link.tell()
        self._runs.tell_all()
        if self._spawner is not None:
            self._spawner.end(self._loop, self._workers.reap)
        processes.kill_until_none(self._loop, STOP_NOW_MARGIN, self._workers.reap)
        self._loop.close()


def run_server(server: ServerSpec, place: Place, link: PoolLink, start: Mapping[str, Any], hang_file: int) -> int:
    """Run a pool until it is told to stop.

    :param start: the supervisor's message at the start.
    :param hang_file: the descriptor into which this process dumps its stack when it is asked to.
    :returns: the exit code: 0 after a stop, 1 if the workers can't start.
    :raises StartError: the working directory can't be entered.
    """
    stop_reading()
    privileges.enter(server.config.pool.chdir)
    link.setblocking(False)
    if place.spawner is not None:
        server = place.spawner.launch_for(server)
    outcome = DispatcherProcess(server, place, link, start, hang_file).run()
    if isinstance(outcome, int):
        return outcome
    code = 1
    try:
        code = outcome.run()
    except BaseException:
        log.exception("worker failed")
    finally:
        logging.shutdown()
        # Neither run the parent's exit handlers nor wait for threads that are busy in a plugin.
        os._exit(code)


def _schedule(former: int, policy: int) -> bool:
    """Change this process's scheduling policy if it is the former one (sched_setscheduler(2)).

    :returns: False if it is another one, which then was chosen on purpose, or if the change is forbidden.
    """
    try:
        if os.sched_getscheduler(0) != former:
            return False
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:
        return False
    return True
