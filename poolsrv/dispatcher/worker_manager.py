"""The workers of a pool, as its dispatcher keeps them: forked, heard, replaced, let go.

Theory. A *slot* is a place in the pool, with the worker that is there now. A worker that is to go (TERM, recycling, one
worker fewer) leaves its slot at once: the slot is another object from then on, with a new worker, and what is left of
the old one ends by itself, with its connections. So there is no gap.

A worker that dies while it serves is replaced at once; one that dies young, or can't start, after a delay that grows
with each time in a row. If one fails to start too often before the pool has ever been whole, the pool gives up.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from ..config.model import MOST_WORKERS
from ..core import forked_copies, logs, processes, procfs, signals
from ..core.cgroups import OomCounter
from ..core.delays import growing
from ..core.event_loop import READ
from ..core.guarded_loop import GuardedLoop
from ..core.processes import describe_exit
from ..core.stack_dump import DUMP_TIME, HANG_SIGNAL, StackDumpFile
from ..core.words import counted
from ..ipc.told_once import ToldOnce
from ..ipc.worker_channel import EXIT_START_FAILED, DispatcherEnd
from ..net.programs import Child
from ..worker.process import Worker
from .dispatcher import Dispatcher
from .worker_slot import DRAINING, EMPTY, SERVING, STARTING, WorkerSlot

if TYPE_CHECKING:
    from ..worker.spec import ServerSpec


log = logging.getLogger("poolsrv.pool")

FIRST_DELAY: Final = 0.1  # seconds before a worker that could not start is tried again; doubled each time
LONGEST_DELAY: Final = 30.0
MIN_UPTIME: Final = 1.0  # seconds of service below which a death counts as part of a series
EARLY_EXIT_DELAY: Final = 0.05  # seconds after the second such death in a row; doubled each time
LONGEST_EARLY_EXIT_DELAY: Final = 0.5
DRAIN_MARGIN: Final = 5.0  # seconds after graceful_timeout that a worker that drains has to end by itself
RECYCLE_JITTER: Final = 0.1  # a part of recycle_after_connections, lest all workers go at once
MEMORY_CHECK_INTERVAL: Final = 2.0  # seconds


class WorkerManager:
    """Runs in the dispatcher's process.

    :param slots: the slots of the pool; this changes the list.
    :param on_ready: called once, when every worker serves for the first time.
    :param on_boot_failed: called with the reason, when that will never be.
    :param shed: in a forked child: closes what is the dispatcher's, and not known here.
    """

    def __init__(
        self,
        server: ServerSpec,
        loop: GuardedLoop,
        dispatcher: Dispatcher,
        slots: list[WorkerSlot],
        *,
        on_ready: Callable[[], object],
        on_boot_failed: Callable[[str], object],
        shed: Callable[[], object],
    ) -> None:
        self.slots = slots
        self.by_pid: dict[int, WorkerSlot] = {}  # those that run, in a slot or leaving it
        self._server = server
        self._config = server.config.pool
        self._loop = loop
        self._dispatcher = dispatcher
        self._on_whole = on_ready
        self._on_hopeless = on_boot_failed
        self._shed = shed
        self._pid = os.getpid()
        dispatcher.end_worker = self._end_at_once
        self._to_start: list[WorkerSlot] = list(slots)
        self._hang_files: dict[int, StackDumpFile] = {}  # by pid
        self._told = ToldOnce()  # errors of starts
        self._hung: set[int] = set()  # pids that have been asked where they hang
        self._was_whole = False
        self._stopping = False
        self._oom = OomCounter()
        # So many the listeners' own "workers" need; below it there is no way.
        self._fewest = max([1, *(one.config.workers or 1 for one in server.listeners)])

    def begin(self) -> None:
        """Begin to watch them."""
        if self._config.hang_timeout:
            self._watch_for_hangs()
        if self._config.max_worker_memory:
            self._loop.call_later(MEMORY_CHECK_INTERVAL, self._watch_memory)

    def stop(self) -> None:
        """Start no more."""
        self._stopping = True

    # --- starting

    def start_due(self) -> Worker | None:
        """Fork the workers that are to be started. In a child: its worker; in the parent: None."""
        while self._to_start and not self._stopping:
            slot = self._to_start.pop(0)
            try:
                worker = self._start(slot)
            except Exception:
                if os.getpid() != self._pid:
                    raise  # in the child
                log.exception("worker %d could not be started by a fault of the server", slot.index, extra=slot.tags)
                self._start_later(slot, LONGEST_DELAY)
                continue
            if worker is not None:
                return worker
        return None

    def _start(self, slot: WorkerSlot) -> Worker | None:
        hang_file = None
        try:
            slot.channel = DispatcherEnd(answers=self._dispatcher.is_asked)
            hang_file = StackDumpFile()
            with forked_copies.expected():
                pid = signals.fork()
        except OSError as error:
            if slot.channel is not None:
                slot.channel.close()
                slot.channel = None
            if hang_file is not None:
                hang_file.close()
            tags = {"worker": slot.index, "reason": error.strerror}
            log.error("can't fork worker %d: %s", slot.index, error.strerror, extra=tags)
            self._start_failed(slot, f"can't be forked: {error.strerror}")
            return None
        if pid == 0:
            return self._become_worker(slot, hang_file)
        slot.pid = pid
        slot.state = STARTING
        slot.started_at = slot.last_heard = self._loop.now
        slot.given = 0
        slot.recycle_at = self._recycle_at()
        self.by_pid[pid] = slot
        self._hang_files[pid] = hang_file
        self._loop.register(slot.channel.fileno(), READ, partial(self._on_report, slot))
        return None

    def _become_worker(self, slot: WorkerSlot, hang_file: StackDumpFile) -> Worker:
        """In the child: shed everything of the parent's, but what the worker needs."""
        logs.set_role("worker", slot.index)
        self.abandon()
        assert slot.channel is not None
        return Worker(slot.index, self._server, slot.channel.worker_end(), hang_file.fileno(), self._told)

    def abandon(self) -> None:
        """In a forked child: close its copies of all that is the dispatcher's."""
        self._loop.close()
        self._shed()
        for other in self.by_pid.values():
            if other.channel is not None:
                other.channel.close()
        for other_file in self._hang_files.values():
            other_file.close()
        self._dispatcher.abandon()

    def _start_failed(self, slot: WorkerSlot, why: str, hint: str = "") -> None:
        slot.failed_starts += 1
        failures = slot.failed_starts
        series = f" {failures} times in a row" if failures > 1 else ""
        tags = {"worker": slot.index, "reason": why}
        if not self._was_whole and failures >= self._config.max_boot_failures:
            log.error("worker %d could not start%s: giving up", slot.index, series, extra=tags)
            self._on_hopeless(f"worker {slot.index} could not start{series}: it {why}{hint}")
            return
        delay = growing(FIRST_DELAY, LONGEST_DELAY, failures - 1)
        log.error(
            "worker %d could not start%s%s: next try in %.1f s",
            slot.index,
            hint,
            f",{series}" if series else "",
            delay,
            extra=tags,
        )
        self._start_later(slot, delay)

    def _start_later(self, slot: WorkerSlot, delay: float) -> None:
        def due() -> None:
            if slot.state == EMPTY and slot in self.slots:
                self._to_start.append(slot)

        self._loop.call_later(delay, due)

    # --- reports

    def _on_report(self, slot: WorkerSlot, mask: int = READ) -> bool:
        before = slot.state
        heard = self._dispatcher.on_report(slot)
        if heard and self._hung:
            self._hung.discard(slot.pid)
        if slot.state != before:
            if before == STARTING:
                self._serves(slot)
            if slot.state == DRAINING and not slot.leaving and not self._stopping:
                self._leave(slot)
        if slot.given >= slot.recycle_at and slot.state == SERVING and not (slot.leaving or self._stopping):
            log.info(
                "worker %d (pid %d) has had %s: recycling it",
                slot.index,
                slot.pid,
                counted(slot.given, "connection"),
                extra={**slot.tags, "reason": "recycle_after_connections"},
            )
            self._let_go(slot)
        return heard

    def _serves(self, slot: WorkerSlot) -> None:
        if slot.failed_starts:
            slot.failed_starts = 0
            self._told.forget()
        slot.started_at = self._loop.now
        log.info("worker %d (pid %d) serves", slot.index, slot.pid, extra=slot.tags)
        starting = any(one.state in (EMPTY, STARTING) for one in self.slots)
        if not (self._was_whole or self._stopping or starting):
            self._was_whole = True
            self._on_whole()

    # --- more, fewer, others

    def add(self, room: bool) -> None:
        """One worker more, until the next reload.

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
        """One worker fewer, until the next reload: the last one drains."""
        if len(self.slots) <= self._fewest:
            log.warning("SIGTTOU: no worker is removed: the listeners need %d", self._fewest)
            return
        slot = self.slots.pop()
        self._dispatcher.remove(slot)
        if slot in self._to_start:
            self._to_start.remove(slot)
        log.info("SIGTTOU: %s", counted(len(self.slots), "worker"))
        if slot.pid:
            self._let_go(slot)
        else:
            self._dispatcher.forget(slot)

    def _let_go(self, slot: WorkerSlot) -> None:
        """Tell a worker to drain."""
        os.kill(slot.pid, signal.SIGTERM)
        if slot.stopped:
            os.kill(slot.pid, signal.SIGCONT)
        self._leave(slot)

    def _leave(self, slot: WorkerSlot) -> None:
        """The worker drains: its slot goes to a new one, if it is still one of the pool's."""
        slot.leaving = True
        self._loop.call_later(self._config.graceful_timeout + DRAIN_MARGIN, partial(self.kill_if_there, slot, slot.pid))
        if slot in self.slots:
            successor = WorkerSlot(slot.index, slot.max_waiting, restarts=slot.restarts + 1)
            self.slots[slot.index] = successor
            self._dispatcher.replace(slot, successor)
            self._to_start.append(successor)

    def _recycle_at(self) -> float:
        after = self._config.recycle_after_connections
        return after * random.uniform(1 - RECYCLE_JITTER, 1 + RECYCLE_JITTER) if after else float("inf")

    def _watch_memory(self) -> None:
        """Recycle the worker that has the most above its limit; one at a time."""
        self._loop.call_later(MEMORY_CHECK_INTERVAL, self._watch_memory)
        if not self._stopping:
            limit = self._config.max_worker_memory
            used = [(procfs.usage(slot.pid), slot) for slot in self.slots if slot.state == SERVING]
            sizes = [(usage.memory, slot) for usage, slot in used if usage is not None]
            size, slot = max(sizes, key=lambda entry: entry[0], default=(0, None))
            if slot is not None and size > limit:
                log.info(
                    "worker %d (pid %d) has %d MiB of memory, more than max_worker_memory: recycling it",
                    slot.index,
                    slot.pid,
                    size >> 20,
                    extra={**slot.tags, "reason": "max_worker_memory"},
                )
                self._let_go(slot)

    # --- workers that end

    def reap(self) -> None:
        """Wait for whoever has ended or stopped: workers, and what dead workers have left to this process."""
        orphans = False
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
            orphans = True
            if slot is not None:
                self._loop.guarded(self._worker_ended, slot, status, rusage)
        if orphans:
            # Dead workers' programs are this process's children now (subreaper); each one's end brings the next.
            processes.kill_children(self.by_pid.keys())

    def _worker_stopped(self, slot: WorkerSlot, stopped: bool) -> None:
        if stopped and not slot.stopped:
            log.warning("worker %d (pid %d) has been stopped by a signal", slot.index, slot.pid, extra=slot.tags)
        elif slot.stopped and not stopped:
            log.info("worker %d (pid %d) has been continued", slot.index, slot.pid, extra=slot.tags)
        self._dispatcher.worker_stopped(slot, stopped)

    def _worker_ended(self, slot: WorkerSlot, status: int, rusage: resource.struct_rusage) -> None:
        self._loop.guarded(self._hear_to_the_end, slot)
        returncode = os.waitstatus_to_exitcode(status)
        pid, before, served = slot.pid, slot.state, self._loop.now - slot.started_at
        del self.by_pid[pid]
        self._hung.discard(pid)
        self._hang_files.pop(pid).close()
        lost = self._dispatcher.worker_gone(slot)
        in_order = returncode == 0 and before != STARTING
        how = describe_exit(returncode)
        if returncode == -signal.SIGKILL and self._oom.has_killed():
            how += " by the kernel, out of memory"
        elif os.WCOREDUMP(status):
            how += " (core dumped)"
        losing = f", {counted(lost, 'connection is', 'connections are')} lost" if lost else ""
        starting = " while starting" if before == STARTING else ""
        level = logging.INFO if in_order else logging.ERROR
        tags = {"worker": slot.index, "worker_pid": pid, "reason": how}
        log.log(level, "worker %d (pid %d) %s%s%s", slot.index, pid, how, starting, losing, extra=tags)
        self._tell_plugins(pid, returncode, rusage)
        if slot.leaving:
            self._dispatcher.forget(slot)
        elif not self._stopping:
            slot.restarts += 1
            self._replace(slot, before == STARTING, served, how, returncode)

    def _hear_to_the_end(self, slot: WorkerSlot) -> None:
        """What it has said last, perhaps that it had started."""
        while self._on_report(slot):
            pass

    def _replace(self, slot: WorkerSlot, while_starting: bool, served: float, how: str, returncode: int) -> None:
        if while_starting:
            hint = " (the plugin's error is above)" if returncode == EXIT_START_FAILED else ""
            self._start_failed(slot, how, hint)
        elif served < MIN_UPTIME:
            slot.early_exits += 1
            again = slot.early_exits - 1
            self._start_later(slot, growing(EARLY_EXIT_DELAY, LONGEST_EARLY_EXIT_DELAY, again - 1) if again else 0.0)
        else:
            slot.early_exits = 0
            self._to_start.append(slot)

    def _tell_plugins(self, pid: int, returncode: int, rusage: resource.struct_rusage) -> None:
        child = Child(pid, "worker")
        child.reaped(returncode, rusage)
        for listener in self._server.listeners:
            if listener.hooks.on_child_exit is not None:
                try:
                    listener.hooks.on_child_exit(child, None)
                except BaseException:
                    name = listener.config.name
                    log.exception("%s: a wrapper of on_child_exit failed", name, extra={"listener": name})

    def signal_all(self, number: signal.Signals) -> None:
        """To every worker; one that has been stopped is continued."""
        for pid, slot in self.by_pid.items():
            os.kill(pid, number)
            if slot.stopped:
                os.kill(pid, signal.SIGCONT)

    def reopen_logs(self) -> None:
        """In every worker."""
        for pid in self.by_pid:
            os.kill(pid, signal.SIGUSR1)  # of one that has been stopped it waits

    def _end_at_once(self, slot: WorkerSlot) -> None:
        """Kill a worker that is condemned, if it has not been reaped: its number may be another's by then."""
        if self.by_pid.get(slot.pid) is slot:
            os.kill(slot.pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """Kill those that are still there."""
        for pid, slot in self.by_pid.items():
            self.kill_if_there(slot, pid)

    def kill_if_there(self, slot: WorkerSlot, pid: int) -> None:
        """Kill a worker that should have ended."""
        if slot.pid == pid:
            log.error("worker %d (pid %d) does not end: killing it", slot.index, pid, extra=slot.tags)
            os.kill(pid, signal.SIGKILL)

    # --- hung workers

    def _watch_for_hangs(self, due: float | None = None) -> None:
        now, patience = self._loop.now, self._config.hang_timeout
        self._loop.call_later(patience / 4, partial(self._watch_for_hangs, now + patience / 4))
        # Who has been stopped is not hung. Nor is anybody, as far as this process can tell, when it was itself held
        # up: Ctrl-Z in a terminal stops them all.
        held_up = due is not None and now - due > patience / 4
        for pid, slot in self.by_pid.items():
            if held_up or slot.stopped:
                slot.last_heard = now
            elif now - slot.last_heard > patience and pid not in self._hung:
                self._hung.add(pid)
                os.kill(pid, HANG_SIGNAL)
                self._loop.call_later(DUMP_TIME, partial(self._kill_hung, slot, pid, now - slot.last_heard))

    def _kill_hung(self, slot: WorkerSlot, pid: int, silence: float) -> None:
        if slot.pid != pid or pid not in self._hung:
            return
        if slot.stopped:
            self._hung.discard(pid)
            return
        where = self._hang_files[pid].describe(
            [plugin for listener in self._server.listeners for plugin in listener.hooks.plugins]
        )
        log.error(
            "worker %d (pid %d) has been silent for %.1f s, %s; killing it",
            slot.index,
            pid,
            silence,
            where,
            extra={**slot.tags, "reason": where},
        )
        os.kill(pid, signal.SIGKILL)
