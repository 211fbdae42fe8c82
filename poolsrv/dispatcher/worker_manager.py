"""The worker manager: forks the workers of a pool, replaces them and reaps them.

Theory. A *slot* is a place in the pool, with the worker that is there now. A worker that is to end (TERM, recycling,
one worker fewer) leaves its slot at once. A new slot with a new worker takes the place; the old worker drains with its
connections. So there is no gap. (A worker of exclusive listeners has to have ended before; see exclusive.py.)

A worker that dies while it serves is replaced at once. One that exits early, or can't start, is replaced after a delay
that grows with each time in a row (restart_delays.py). If one fails to start too often before all workers have served
for the first time, the pool gives up.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ..config.model import APART, MOST_WORKERS
from ..core import logs, processes, procfs
from ..core.event_loop import READ
from ..core.guarded_loop import GuardedLoop
from ..core.titles import set_title
from ..core.words import counted
from ..ipc import figures
from ..ipc.metrics import MetricsReport
from ..ipc.told_once import ToldOnce
from ..ipc.worker_channel import DRAINING, EXIT_START_FAILED, SERVING
from ..worker.process import WorkerProcess
from ..worker.spec import ServerSpec
from . import recycling, restart_delays
from .dispatcher import Dispatcher
from .exclusive import ExclusiveWorkers
from .hang_watchdog import HangWatchdog
from .worker_ends import WorkerEnds
from .worker_forks import WorkerFork, close_others, fork_all
from .worker_slot import EMPTY, STARTING, WorkerSlot

log = logging.getLogger("poolsrv.pool")

MOST_UNREAD: Final = 1000  # reports of a worker that has ended; the kernel keeps fewer
DRAIN_MARGIN: Final = 5.0  # seconds after graceful_timeout in which a draining worker has to end by itself


class WorkerManager:
    """The workers of a pool.

    :param slots: the slots of the pool; this changes the list.
    :param apart: the slot of the worker apart, or none; likewise.
    :param on_ready: called once, when every worker serves for the first time.
    :param on_boot_failed: called with the reason if that will never be.
    :param claim: called with the names of the plugins of exclusive listeners, when all other workers serve.
    :param released: called with the number of a request, when the workers have ended that it was about.
    :param close_inherited: in a forked child: closes what is the dispatcher's, and not known here.
    :param connect: makes a connection on which the worker apart can ask, and returns its end.
    :ivar by_pid: the workers that run, those that leave their slot included.
    :ivar spared: other children of the dispatcher that are not to be killed.
    """

    def __init__(
        self,
        server: ServerSpec,
        loop: GuardedLoop,
        dispatcher: Dispatcher,
        slots: list[WorkerSlot],
        apart: list[WorkerSlot],
        *,
        on_ready: Callable[[], object],
        on_boot_failed: Callable[[str], object],
        claim: Callable[[list[str]], object],
        released: Callable[[int], object],
        close_inherited: Callable[[], object],
        connect: Callable[[], socket.socket],
    ) -> None:
        self.slots = slots
        self.apart = apart
        self.by_pid: dict[int, WorkerSlot] = {}
        self.spared: set[int] = set()
        self._config = server.config.pool
        self._loop = loop
        self._dispatcher = dispatcher
        self._on_ready = on_ready
        self._on_boot_failed = on_boot_failed
        self._close_inherited = close_inherited
        self._connect = connect
        self._pid = os.getpid()
        dispatcher.kill_worker = partial(self._signal, number=signal.SIGKILL)
        self._to_start: list[WorkerSlot] = [*slots, *apart]
        plugins = [plugin for listener in server.listeners for plugin in listener.hooks.plugins]
        self._watchdog = HangWatchdog(loop, self.by_pid, self._config.hang_timeout, plugins)
        self._memory_check = recycling.MemoryCheck(loop, (slots, apart), self._config.max_worker_memory, self._recycle)
        self._start_errors = ToldOnce()
        self._worker = WorkerProcess(server, self._start_errors, dispatcher.is_asked)
        self._was_ready = False
        self._stopping = False
        self._ends = WorkerEnds(server.listeners, dispatcher.ledger)
        self._min_workers = max(one.config.first_worker + (one.config.workers or 1) for one in server.listeners)
        self._exclusive = ExclusiveWorkers(server.listeners, self.by_pid, self._has_leftovers, claim, released)

    def begin(self) -> None:
        """Begin to watch the workers."""
        self._watchdog.begin()
        self._memory_check.begin()
        self._exclusive.claim_if_due(self.slots)

    def stop(self) -> None:
        """Start no more workers."""
        self._stopping = True
        self._memory_check.end()

    # --- forking

    def start_due(self) -> WorkerProcess | None:
        """Fork the workers that are due.

        :returns: in a child its worker; in the parent None.
        """
        while self._to_start and not self._stopping:
            slots = [slot for slot in self._to_start if self._exclusive.may_start(slot)]
            if not slots:
                break
            self._to_start = [slot for slot in self._to_start if slot not in slots]
            forks: list[WorkerFork] = []
            try:
                worker = self._start(slots, forks)
            except Exception:
                if os.getpid() != self._pid:
                    raise  # in the child
                for one in forks:
                    if one.pid < 0:
                        one.close()
                for slot in slots:
                    if not slot.pid:
                        what = "worker %s could not be started by a fault of the server"
                        log.exception(what, slot.label, extra=slot.tags)
                        self._start_later(slot, restart_delays.LONGEST_DELAY)
                continue
            if worker is not None:
                return worker
        return None

    def _start(self, slots: Sequence[WorkerSlot], forks: list[WorkerFork]) -> WorkerProcess | None:
        """Fork workers for these slots; returns as ``start_due``. ``forks`` gets what is about to be forked."""
        for slot in slots:
            try:
                forks.append(WorkerFork(slot, self._dispatcher.is_asked, self._connect))
            except OSError as error:
                self._not_forked(slot, error)
        own = fork_all(forks) if not self._stopping else None  # it gives up if one has failed too often
        if own is not None:
            return self._become_worker(own, forks)
        for one in forks:
            if one.pid > 0:
                self._forked(one)
        for one in forks:
            if one.pid < 0:
                one.close()
            if one.error is not None:
                self._not_forked(one.slot, one.error)
        return None

    def _not_forked(self, slot: WorkerSlot, error: OSError) -> None:
        tags = {"worker": slot.label, "reason": error.strerror}
        log.error("can't fork worker %s: %s", slot.label, error.strerror, extra=tags)
        self._start_failed(slot, f"can't be forked: {error.strerror}")

    def _forked(self, one: WorkerFork) -> None:
        """Enter a worker that has been forked."""
        slot = one.slot
        slot.pid, slot.state, slot.channel = one.pid, STARTING, one.channel
        self.by_pid[slot.pid] = slot
        self._watchdog.add(slot.pid, one.dump_file)
        if one.questions is not None:
            one.questions.close()
        if self._dispatcher.kernel is not None:
            slot.own_sockets = self._dispatcher.kernel.numbers_for(slot)
        self._dispatcher.ledger.take(slot, MetricsReport(self._worker.metrics.definitions, [], []))
        slot.started_at = slot.last_report_at = self._loop.now
        slot.given = 0
        slot.recycle_at = recycling.connection_limit(self._config.recycle_after_connections)
        self._loop.register(one.channel.fileno(), READ, partial(self._on_report, slot))

    def _become_worker(self, own: WorkerFork, forks: Sequence[WorkerFork]) -> WorkerProcess:
        """In the child: close what belongs to the dispatcher, or to other workers."""
        slot, kernel = own.slot, self._dispatcher.kernel
        logs.set_role("worker", slot.label)
        set_title(f"worker {slot.label}")
        own_sockets = kernel.hand_out(kernel.numbers_for(slot)) if kernel is not None else []
        self.close_inherited()
        close_others(forks, own)
        self._worker.become(slot.index, own.channel, own.dump_file.fileno(), own.questions, own_sockets)
        return self._worker

    def close_inherited(self) -> None:
        """In a forked child: close its copies of all that belongs to the dispatcher."""
        self._loop.close()
        self._close_inherited()
        for other in self.by_pid.values():
            if other.channel is not None:
                other.channel.close()
        self._watchdog.close_inherited()
        self._dispatcher.close_inherited()

    def _start_failed(self, slot: WorkerSlot, why: str, hint: str = "") -> None:
        slot.failed_starts += 1
        failures = slot.failed_starts
        series = f" {failures} times in a row" if failures > 1 else ""
        tags = {"worker": slot.label, "reason": why}
        if not self._was_ready and failures >= self._config.max_boot_failures:
            log.error("worker %s could not start%s: giving up", slot.label, series, extra=tags)
            self._on_boot_failed(f"worker {slot.label} could not start{series}: it {why}{hint}")
            return
        delay = restart_delays.after_failed_start(failures)
        log.error(
            "worker %s could not start%s%s: next try in %.1f s",
            slot.label,
            hint,
            f",{series}" if series else "",
            delay,
            extra=tags,
        )
        self._start_later(slot, delay)

    def _start_later(self, slot: WorkerSlot, delay: float) -> None:
        def due() -> None:
            if slot.state == EMPTY and slot in (*self.slots, *self.apart):
                self._to_start.append(slot)

        self._loop.call_later(delay, due)

    # --- reports

    def _on_report(self, slot: WorkerSlot, mask: int = READ) -> bool:
        before = slot.state
        reported = self._dispatcher.on_report(slot)
        if reported and self._watchdog.dumping:
            self._watchdog.dumping.discard(slot.pid)
        if slot.state != before:
            if before == STARTING:
                self._worker_serves(slot)
            if slot.state == DRAINING and not slot.leaving and not self._stopping:
                self._replace_draining(slot)
        is_due = slot.given >= slot.recycle_at and slot.state == SERVING and not (slot.leaving or self._stopping)
        if is_due and slot.pid in self.by_pid:  # one that has ended is restarted anyhow
            log.info(
                "worker %s (pid %d) has had %s: recycling it",
                slot.label,
                slot.pid,
                counted(slot.given, "connection"),
                extra={**slot.tags, "reason": "recycle_after_connections"},
            )
            self._recycle(slot)
        return reported

    def _worker_serves(self, slot: WorkerSlot) -> None:
        if slot.failed_starts:
            slot.failed_starts = 0
            self._start_errors.forget()
        slot.started_at = self._loop.now
        log.info("worker %s (pid %d) serves", slot.label, slot.pid, extra=slot.tags)
        starting = any(one.state in (EMPTY, STARTING) for one in (*self.slots, *self.apart))
        if not (self._was_ready or self._stopping or starting):
            self._was_ready = True
            self._on_ready()
        elif not self._stopping:
            self._exclusive.claim_if_due(self.slots)

    # --- exclusive listeners

    def _has_leftovers(self) -> bool:
        return bool(procfs.children_of_this_process() - self.by_pid.keys() - self.spared)

    def granted(self) -> None:
        """Start the exclusive workers: no other pool has any."""
        self._exclusive.granted()

    def release(self, request: int, plugins: Sequence[str]) -> None:
        """End the exclusive workers, and those that serve one of these plugins, for another pool is to have them."""
        for slot in self._exclusive.hold_back(request, plugins, () if self._stopping else (*self.slots, *self.apart)):
            self._recycle(slot)
        self._exclusive.tell_released()

    # --- adding, removing, recycling

    def add(self, room: bool) -> None:
        """Add a worker, until the next reload.

        :param room: whether there are descriptors for it.
        """
        if len(self.slots) >= MOST_WORKERS or not room:
            why = "there is no room for its descriptors" if not room else "it is the most that there can be"
            log.warning("SIGTTIN: no worker is added to the %d: %s", len(self.slots), why, extra={"reason": why})
            return
        slot = WorkerSlot(len(self.slots), self.slots[0].max_waiting)
        self.slots.append(slot)
        self._dispatcher.add(slot)
        self._to_start.append(slot)
        log.info("SIGTTIN: %s", counted(len(self.slots), "worker"))

    def remove(self) -> None:
        """Have the last worker drain, until the next reload."""
        if len(self.slots) <= self._min_workers:
            log.warning("SIGTTOU: no worker is removed: the listeners need %d", self._min_workers)
            return
        slot = self.slots.pop()
        self._dispatcher.remove(slot)
        self._to_start = [one for one in self._to_start if one is not slot]
        log.info("SIGTTOU: %s", counted(len(self.slots), "worker"))
        if slot.pid:
            self._recycle(slot)
        else:
            self._dispatcher.forget(slot)

    def _recycle(self, slot: WorkerSlot) -> None:
        """Tell a worker to drain, and start its successor."""
        self._signal(slot, signal.SIGTERM)
        if slot.stopped:
            self._signal(slot, signal.SIGCONT)
        self._replace_draining(slot)

    def _replace_draining(self, slot: WorkerSlot) -> None:
        """Start a successor of a draining worker, if its slot is still one of the pool's."""
        slot.leaving = True
        self._loop.call_later(self._config.graceful_timeout + DRAIN_MARGIN, partial(self.kill_if_there, slot, slot.pid))
        places = self.apart if slot.index == APART else self.slots
        if slot in places:
            successor = WorkerSlot(slot.index, slot.max_waiting, restarts=slot.restarts + 1)
            places[places.index(slot)] = successor
            self._dispatcher.replace(slot, successor)
            self._to_start.append(successor)

    # --- reaping

    def reap(self) -> None:
        """Wait for all children that have ended or stopped: workers, and what dead workers have left."""
        any_ended = False
        while True:
            try:
                pid, status, rusage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                break
            if pid == 0:
                break
            slot = self.by_pid.get(pid)
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                if slot is not None:
                    self._loop.guarded(self._worker_stopped, slot, os.WIFSTOPPED(status))
                continue
            any_ended = True
            if slot is not None:
                self._loop.guarded(self._worker_ended, slot, status, rusage)
        if any_ended:
            # Dead workers' programs are this process's children now (subreaper); the end of each brings the next.
            processes.kill_children({*self.by_pid, *self.spared})
            self._loop.guarded(self._exclusive.tell_released)

    def _worker_stopped(self, slot: WorkerSlot, stopped: bool) -> None:
        if stopped and not slot.stopped:
            log.warning("worker %s (pid %d) has been stopped by a signal", slot.label, slot.pid, extra=slot.tags)
        elif slot.stopped and not stopped:
            log.info("worker %s (pid %d) has been continued", slot.label, slot.pid, extra=slot.tags)
        self._dispatcher.worker_stopped(slot, stopped)

    def _worker_ended(self, slot: WorkerSlot, status: int, rusage: resource.struct_rusage) -> None:
        del self.by_pid[slot.pid]  # it has been reaped: the pid may be another process's
        self._loop.guarded(self._read_last_reports, slot)
        returncode = os.waitstatus_to_exitcode(status)
        pid, before, served = slot.pid, slot.state, self._loop.now - slot.started_at
        self._watchdog.remove(pid)
        lost = self._dispatcher.worker_ended(slot)
        how = self._ends.count(status, rusage)
        losing = f", {counted(lost, 'connection is', 'connections are')} lost" if lost else ""
        starting = " while starting" if before == STARTING else ""
        level = logging.INFO if returncode == 0 and not starting else logging.ERROR
        tags = {"worker": slot.label, "worker_pid": pid, "reason": how}
        log.log(level, "worker %s (pid %d) %s%s%s", slot.label, pid, how, starting, losing, extra=tags)
        self._ends.tell_plugins(pid, returncode, rusage)
        if slot.leaving:
            self._dispatcher.forget(slot)
        elif not self._stopping:
            slot.restarts += 1
            self._restart(slot, before == STARTING, served, how, returncode)

    def _read_last_reports(self, slot: WorkerSlot) -> None:
        """One of them may say that the worker serves."""
        for _ in range(MOST_UNREAD):  # more can only come from a copy of it that reports on
            if not self._on_report(slot):
                break

    def _restart(self, slot: WorkerSlot, while_starting: bool, served: float, how: str, returncode: int) -> None:
        """Start a new worker in the slot, now or later."""
        if while_starting:
            hint = " (the plugin's error is above)" if returncode == EXIT_START_FAILED else ""
            self._start_failed(slot, how, hint)
        elif served < restart_delays.MIN_UPTIME:
            slot.early_exits += 1
            self._start_later(slot, restart_delays.after_early_exit(slot.early_exits))
        else:
            slot.early_exits = 0
            self._to_start.append(slot)

    def update_ledger(self) -> None:
        """Enter the CPU time of the workers, with that of programs that they have waited for."""
        running = [used.cpu + used.children_cpu for pid in self.by_pid if (used := procfs.usage(pid)) is not None]
        self._dispatcher.ledger.raise_to(figures.CPU, self._ends.cpu + sum(running))

    # --- signals

    def apart_is_last(self) -> bool:
        """Tell whether the worker apart has nothing left to tell of: no other worker runs. Or it does not serve."""
        others = any(slot.index != APART for slot in self.by_pid.values())
        return not others or not any(slot.state == SERVING for slot in self.apart)

    def signal_all(self, number: signal.Signals, but_apart: bool = False) -> None:
        """Send a signal to every worker, and continue those that are stopped.

        :param but_apart: not to the worker apart.
        """
        for slot in self.by_pid.values():
            if but_apart and slot.index == APART:
                continue
            self._signal(slot, number)
            if slot.stopped:
                self._signal(slot, signal.SIGCONT)

    def reopen_logs(self) -> None:
        """Have every worker reopen its logs; a stopped one does so once it goes on."""
        for slot in self.by_pid.values():
            self._signal(slot, signal.SIGUSR1)

    def _signal(self, slot: WorkerSlot, number: signal.Signals) -> None:
        """Send a signal to a worker, unless it has been reaped: its pid may be another process's by then."""
        if self.by_pid.get(slot.pid) is slot:
            os.kill(slot.pid, number)

    def kill_all(self) -> None:
        """Kill the workers that are still there."""
        for pid, slot in self.by_pid.items():
            self.kill_if_there(slot, pid)

    def kill_if_there(self, slot: WorkerSlot, pid: int) -> None:
        """Kill a worker that should have ended."""
        if self.by_pid.get(pid) is slot:
            log.error("worker %s (pid %d) does not end: killing it", slot.label, pid, extra=slot.tags)
            os.kill(pid, signal.SIGKILL)
