"""The pool: the main loop of the dispatcher's process, what the supervisor says to it, and its end.

A fork happens in one place, below ``DispatcherProcess.run``, and the child leaves that loop by returning: nothing of
the parent is below it on its stack. Signals only set what the loop then acts on. Stopping is a state with a
deadline in this same loop. The workers are those of worker_manager.py.

This process has the kernel's policy SCHED_BATCH (sched(7)): when it is woken it does not interrupt a worker that is
running on its CPU, but runs once that one waits, or has used up its time slice. It then finds several connections in
the kernel's queue, and hands them over together, where it would otherwise have both processes switch for each single
one. On a CPU that is idle it runs at once.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import logging
import os
import signal
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..core import forked_copies, logs, privileges, processes, signals
from ..core.event_loop import READ, EventLoop, Timer
from ..core.guarded_loop import GuardedLoop
from ..core.stack_dump import HANG_SIGNAL
from ..core.words import counted
from ..ipc.pool_link import Message, PoolLink, send_lines
from ..ipc.worker_channel import MAX_IN_FLIGHT, STOP_NOW_SIGNAL
from ..worker.process import Worker
from .acceptor import Acceptor
from .control_server import ControlServer
from .descriptor_limits import SPARE_DESCRIPTORS, _descriptors_per_worker, _free_descriptors
from .dispatcher import Dispatcher
from .listener import Listener
from .startup import Place
from .stats_collector import StatsCollector
from .worker_manager import WorkerManager
from .worker_slot import WorkerSlot

if TYPE_CHECKING:
    from ..worker.spec import ServerSpec


log = logging.getLogger("poolsrv.pool")

STOP_MARGIN: Final = 5.0  # seconds after graceful_timeout that workers have to end by themselves
SAY_AGAIN: Final = 0.1  # seconds until a supervisor that does not listen is told once more
STOP_NOW_MARGIN: Final = 1.0  # the same after a second signal to stop
IDS_OF_A_GENERATION: Final = 10**12  # connections are numbered from here, so that no number comes twice
IGNORED: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU)


class DispatcherProcess:
    """Runs in the dispatcher's process. ``run`` returns an exit code, or in each forked child its ``Worker``."""

    def __init__(
        self, server: ServerSpec, place: Place, link: PoolLink, start: Mapping[str, Any], hang_file: int
    ) -> None:
        bound, control = place.bound, place.control
        self._server = server
        self._link = link
        self._hang_file = hang_file
        self._has_served = False
        self._alive_every = place.alive_every
        self._config = server.config.pool
        # INT, HUP and the like are for the supervisor, but a terminal sends them to all.
        self._signals = signals.SignalPipe((signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, *IGNORED))
        self._bound = bound
        self._loop = GuardedLoop(log)
        # What a worker has not taken must have room here when it is taken back.
        max_waiting = min(_descriptors_per_worker(server.config), MAX_IN_FLIGHT)
        slots = [WorkerSlot(index, max_waiting) for index in range(self._config.workers)]
        listeners = [Listener(i, listener.config, bound[i], slots) for i, listener in enumerate(server.listeners)]
        first_id = (start["generation"] - 1) * IDS_OF_A_GENERATION + 1
        self._dispatcher = Dispatcher(self._loop, listeners, slots, self._config.dispatch, first_id)
        self._workers = WorkerManager(
            server,
            self._loop,
            self._dispatcher,
            slots,
            on_ready=self._serve,
            on_boot_failed=self._drop,
            shed=self._shed,
        )
        self._scheduled_in_batches = False
        self._stopping = 0  # how many times it has been asked to
        self._exit_code = 0
        self._kill_timer: Timer | None = None
        self._observer: StatsCollector | None = None
        self._control: ControlServer | None = None
        self._control_socket = control
        if control is not None:
            self._observer = StatsCollector(
                self._loop, self._workers, self._dispatcher, listeners, place.path, start["generation"], start["about"]
            )
            self._control = ControlServer(self._loop, control.socket, {"status": self._observer.answer})

    # --- the main loop

    def run(self) -> int | Worker:
        """Until all workers have ended; in a forked child, its worker."""
        loop = self._loop
        processes.become_subreaper()
        self._scheduled_in_batches = _schedule(os.SCHED_OTHER, os.SCHED_BATCH)
        loop.register(self._signals.fileno(), READ, self._on_signal)
        loop.register(self._link.fileno(), READ, self._on_link)
        signals.unblock()
        forked_copies.guard(
            (DispatcherProcess, WorkerManager, Dispatcher, Acceptor, EventLoop, ControlServer, StatsCollector),
            self._abandon,
        )
        self._say_alive()
        self._workers.begin()
        if self._observer is not None and self._control is not None:
            self._observer.begin()
            if self._observer.about.serving is None:
                self._control.open()  # else who serves answers
        gc.freeze()  # what the workers share with this process stays out of their collections, and so shared
        gc.enable()
        while True:
            worker = self._workers.start_due()
            if worker is not None:
                return worker
            if self._stopping and not self._workers.by_pid:
                self._finish()
                return self._exit_code
            loop.turn()

    def _serve(self) -> None:
        """Every worker serves: begin to accept."""
        self._dispatcher.open()
        self._has_served = True
        self._say("serves")
        if self._observer is not None and self._control is not None:
            self._observer.state = "serving"
            self._control.open()
        addresses = ", ".join(f"{bound.listener} on {bound}" for group in self._bound for bound in group)
        log.info("ready: %s (%s)", addresses, counted(len(self._workers.slots), "worker"))

    def _drop(self, why: str) -> None:
        try:
            send_lines(self._link, "failed", [why], exit_code=1)
        except OSError as error:
            log.warning("the supervisor does not listen: %s", error.strerror)
        self._exit_code = 1
        self._stop("start-up")

    def _abandon(self) -> None:
        """In a copy that a plugin has made: close what is the dispatcher's."""
        self._workers.abandon()
        self._loop.after_turn = partial(forked_copies.end_copy, "the loop")
        for listener in self._server.listeners:
            listener.hooks.abandon()

    def _shed(self) -> None:
        """In a forked child: undo and close what is the dispatcher's alone."""
        if self._scheduled_in_batches:
            _schedule(os.SCHED_BATCH, os.SCHED_OTHER)
        faulthandler.unregister(HANG_SIGNAL)  # signals are blocked
        os.close(self._hang_file)
        self._signals.abandon()
        if self._control is not None:
            self._control.abandon()
        self._close_sockets()
        self._link.close()

    def _close_sockets(self) -> None:
        """This process's copies of the listening sockets."""
        for group in self._bound:
            for bound in group:
                bound.socket.close()
        if self._control_socket is not None:
            self._control_socket.socket.close()

    # --- signals, and what the supervisor says

    def _on_signal(self, mask: int) -> None:
        for number in self._signals.take():
            self._loop.guarded(self._act_on, number)

    def _act_on(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            self._workers.reap()
        elif number == signal.SIGUSR1:
            self.reopen_logs()
        elif number == signal.SIGTERM and not self._stopping:
            if self._has_served:
                self._say("leaves")
            self._stop("SIGTERM")

    def _on_link(self, mask: int) -> None:
        try:
            while (message := self._link.receive()) is not None:
                self._loop.guarded(self._on_message, message)
        except EOFError:
            self._loop.unregister(self._link.fileno())
            log.error("the supervisor is gone")
            if not self._stopping:
                self._stop("supervisor gone")

    def _on_message(self, message: Message) -> None:
        if message.kind == "stop" and not self._stopping:
            self._stop(message.fields["why"])
        elif message.kind == "stop_now":
            while self._stopping < 2:
                self._stop("at once")
        elif message.kind == "reopen_logs":
            self.reopen_logs()
        elif message.kind == "about" and self._observer is not None:
            self._observer.set_about(message.fields["about"])
        elif message.kind == "workers" and not self._stopping:
            if message.fields["by"] > 0:
                size = len(self._workers.slots)
                self._workers.add(room=_free_descriptors(self._server.config, size + 1) > SPARE_DESCRIPTORS + size)
            else:
                self._workers.remove()

    def reopen_logs(self) -> None:
        """Here and in every worker."""
        logs.reopen()
        self._workers.reopen_logs()

    def _say_alive(self) -> None:
        try:
            self._link.send("alive")
        except OSError:
            pass  # the supervisor is held up, and has more of these to read already
        self._loop.call_later(self._alive_every, self._say_alive)

    def _say(self, kind: str) -> None:
        """Tell the supervisor. One that is held up has to be told later."""
        try:
            self._link.send(kind)
        except OSError as error:
            log.warning("the supervisor does not listen: %s", error.strerror)
            self._loop.call_later(SAY_AGAIN, partial(self._say, kind))

    # --- stopping

    def _stop(self, why: str) -> None:
        """The first time: drain. The second time: end at once."""
        self._stopping += 1
        self._workers.stop()
        if self._stopping > 2:
            return
        if self._stopping == 1:
            still_open = counted(self._dispatcher.open_connections(), "connection is", "connections are")
            log.info("%s: stopping, %s open", why, still_open, extra={"reason": why})
            self._dispatcher.close()
            if self._control is not None:
                self._control.close()
            self._close_sockets()
        else:
            log.info("%s: ending at once", why, extra={"reason": why})
        self._workers.signal_all(signal.SIGTERM if self._stopping == 1 else STOP_NOW_SIGNAL)
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        patience = self._config.graceful_timeout + STOP_MARGIN if self._stopping == 1 else STOP_NOW_MARGIN
        self._kill_timer = self._loop.call_later(patience, self._workers.kill_all)

    def _finish(self) -> None:
        """All workers have ended: see that nothing of theirs is left, and close everything."""
        self._dispatcher.drop_unassigned()
        deadline = self._loop.now + STOP_NOW_MARGIN
        while processes.kill_children() and self._loop.now < deadline:
            self._loop.turn(0.02)
            self._workers.reap()
        self._loop.close()


def run_server(server: ServerSpec, place: Place, link: PoolLink, start: Mapping[str, Any], hang_file: int) -> int:
    """Run a pool until it is told to stop.

    :param start: what the supervisor has said at the start.
    :param hang_file: the descriptor into which this process says where it hangs.
    :returns: the exit code: 0 after a stop, 1 when the workers can't start.
    :raises StartError: the working directory can't be entered.
    """
    if server.config.pool.identity is not None:
        # Workers need it when a plugin first asks for a thread: that user may not be able to read Python's own files.
        importlib.import_module("concurrent.futures.thread")
    privileges.stop_reading()
    privileges.enter(server.config.pool.chdir)
    link.setblocking(False)
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
        # Neither the parent's exit handlers nor threads that are still busy in a plugin are to run or to hold it up.
        os._exit(code)


def _schedule(former: int, policy: int) -> bool:
    """Have the kernel schedule this process by another policy, where it has the former one (sched_setscheduler(2)).

    :returns: False where it has another one, which whoever has started it wants, or where this is forbidden.
    """
    try:
        if os.sched_getscheduler(0) != former:
            return False
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:
        return False
    return True
