"""The pool: forks the workers, replaces those that die, stops. The main loop of the dispatcher's process.

A fork happens in one place, ``Pool.run``, and the child leaves that loop by returning: nothing of the parent is below
it on its stack. Signals only set what the loop then acts on. Stopping is a state with a deadline in this same loop.

A worker that dies while it serves is replaced at once; one that dies young, or can't start, after a delay that grows.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from . import children, listeners, logs, signals
from .channel import MAX_IN_FLIGHT, DispatcherEnd
from .children import Child, describe_exit
from .dispatcher import Dispatcher
from .errors import StartError
from .eventloop import READ, EventLoop, Timer
from .handshake import Held, Link, Message, send_lines, send_sockets
from .hangs import HangFile
from .listeners import Bound
from .slots import DRAINING, EMPTY, STARTING, Gate, Slot
from .worker import EXIT_START_FAILED, HANG_SIGNAL, STOP_NOW_SIGNAL, Worker

if TYPE_CHECKING:
    from .plugins import Server

log = logging.getLogger("poolsrv.pool")

FIRST_DELAY: Final = 0.1  # seconds before a worker that could not start is tried again; doubled each time
LONGEST_DELAY: Final = 30.0
MAX_FAILED_STARTS: Final = 7  # in a row, of one slot, before the pool has ever been whole: then the server gives up
YOUNG: Final = 1.0  # seconds of service below which a death counts as part of a series
YOUNG_DELAY: Final = 0.05  # seconds, times the number of such deaths in a row
LONGEST_YOUNG_DELAY: Final = 0.5
STOP_MARGIN: Final = 5.0  # seconds after graceful_timeout that workers have to end by themselves
STOP_NOW_MARGIN: Final = 1.0  # the same after a second TERM or INT
HANG_REPORT_TIME: Final = 0.5  # seconds that a hung worker gets to say where
IDS_OF_A_GENERATION: Final = 10**12  # connections are numbered from here, so that no number comes twice
IGNORED: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU)
SPARE_DESCRIPTORS: Final = 32  # kept free for what is opened for a moment


class Pool:
    """Runs in the dispatcher's process. ``run`` returns an exit code, or in each forked child its ``Worker``."""

    def __init__(self, server: Server, bound: list[list[Bound]], link: Link, start: Mapping[str, Any]) -> None:
        self._server = server
        self._link = link
        self._alive_every: float = start["alive_every"]
        self._config = server.config.pool
        configs = tuple(listener.config for listener in server.listeners)
        # What a worker has not taken must have room here when it is taken back.
        max_waiting = min(_descriptors_per_worker(server), MAX_IN_FLIGHT)
        # INT, HUP and the like are for the supervisor, but a terminal sends them to all.
        self._signals = signals.SignalPipe((signal.SIGTERM, signal.SIGCHLD, *IGNORED))
        self._bound = bound
        self._loop = EventLoop()
        self._slots = [Slot(index, max_waiting) for index in range(self._config.workers)]
        gates = [Gate(i, config, self._bound[i], self._slots) for i, config in enumerate(configs)]
        first_id = (start["generation"] - 1) * IDS_OF_A_GENERATION + 1
        self._dispatcher = Dispatcher(self._loop, gates, self._slots, self._config.dispatch, first_id)
        self._by_pid: dict[int, Slot] = {}
        self._to_start: list[Slot] = list(self._slots)
        self._failed_starts = [0] * len(self._slots)  # in a row, of each slot
        self._young_deaths = [0] * len(self._slots)
        self._hang_files: dict[int, HangFile] = {}  # by slot
        self._hung: set[int] = set()  # pids that have been asked where they hang
        self._was_whole = False
        self._stopping = 0  # how many times it has been asked to
        self._exit_code = 0
        self._kill_timer: Timer | None = None

    # --- the main loop

    def run(self) -> int | Worker:
        """Until all workers have ended; in a forked child, its worker."""
        loop = self._loop
        children.become_subreaper()
        loop.register(self._signals.fileno(), READ, self._on_signal)
        loop.register(self._link.fileno(), READ, self._on_link)
        signals.unblock()
        if self._alive_every:
            self._say_alive()
        if self._config.hang_timeout:
            self._watch_for_hangs()
        gc.freeze()  # what the workers share with this process stays out of their collections, and so shared
        gc.enable()
        while True:
            while self._to_start and not self._stopping:
                worker = self._start(self._to_start.pop(0))
                if worker is not None:
                    return worker
            if self._stopping and not self._by_pid:
                self._finish()
                return self._exit_code
            loop.turn()

    def _start(self, slot: Slot) -> Worker | None:
        """Fork a worker for the slot. In the child: the worker; in the parent: None."""
        hang_file = None
        try:
            slot.channel = DispatcherEnd()
            hang_file = HangFile()
            pid = signals.fork()
        except OSError as error:
            if slot.channel is not None:
                slot.channel.close()
                slot.channel = None
            if hang_file is not None:
                hang_file.close()
            log.error("can't fork worker %d: %s", slot.index, error.strerror)
            self._start_failed(slot)
            return None
        if pid == 0:
            return self._become_worker(slot, hang_file)
        slot.pid = pid
        slot.state = STARTING
        slot.started_at = slot.last_heard = self._loop.now
        self._by_pid[pid] = slot
        self._hang_files[slot.index] = hang_file
        self._loop.register(slot.channel.fileno(), READ, partial(self._on_report, slot))
        return None

    def _become_worker(self, slot: Slot, hang_file: HangFile) -> Worker:
        """In the child: shed everything of the parent's, but what the worker needs."""
        logs.set_role(f"worker {slot.index}")
        self._loop.close()
        self._signals.abandon()
        for group in self._bound:
            for bound in group:
                bound.socket.close()
        for other in self._slots:
            if other is not slot and other.channel is not None:
                other.channel.close()
        for other_file in self._hang_files.values():
            other_file.close()
        self._dispatcher.abandon()
        self._link.close()
        assert slot.channel is not None
        return Worker(slot.index, self._server, slot.channel.worker_end(), hang_file.fileno())

    # --- signals, and what the supervisor says

    def _on_signal(self, mask: int) -> None:
        for number in self._signals.take():
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGTERM and not self._stopping:
                self._stop("SIGTERM")

    def _on_link(self, mask: int) -> None:
        try:
            while (message := self._link.receive()) is not None:
                self._on_message(message)
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

    def _say_alive(self) -> None:
        self._link.send("alive")
        self._loop.call_later(self._alive_every, self._say_alive)

    # --- workers that report, and that end

    def _on_report(self, slot: Slot, mask: int = READ) -> bool:
        before = slot.state
        heard = self._dispatcher.on_report(slot)
        if heard and self._hung:
            self._hung.discard(slot.pid)
        if before == STARTING and slot.state != STARTING:
            self._failed_starts[slot.index] = 0
            slot.started_at = self._loop.now
            log.info("worker %d (pid %d) serves", slot.index, slot.pid)
            starting = any(one.state in (EMPTY, STARTING) for one in self._slots)
            if not (self._was_whole or self._stopping or starting):
                self._was_whole = True
                addresses = ", ".join(f"{bound.listener} on {bound}" for group in self._bound for bound in group)
                self._dispatcher.open()
                self._link.send("serves")
                log.info("ready: %s (%d workers)", addresses, len(self._slots))
        if before != DRAINING and slot.state == DRAINING and not self._stopping:
            patience = self._config.graceful_timeout + STOP_MARGIN
            self._loop.call_later(patience, partial(self._kill_if_there, slot, slot.pid))
        return heard

    def _reap(self) -> None:
        """Wait for whoever has ended or stopped: workers, and what dead workers have left to this process."""
        orphans = False
        while True:
            try:
                pid, status, rusage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                break
            if pid == 0:
                break
            slot = self._by_pid.get(pid)
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                if slot is not None:
                    self._worker_stopped(slot, os.WIFSTOPPED(status))
                continue
            orphans = True
            if slot is not None:
                self._worker_ended(slot, os.waitstatus_to_exitcode(status), rusage)
        if orphans:
            self._kill_orphans()

    def _kill_orphans(self) -> None:
        """Dead workers' programs are this process's children now (subreaper); each one's end brings the next."""
        children.kill_children(self._by_pid.keys())

    def _worker_stopped(self, slot: Slot, stopped: bool) -> None:
        if stopped and not slot.stopped:
            log.warning("worker %d (pid %d) has been stopped by a signal", slot.index, slot.pid)
        elif slot.stopped and not stopped:
            log.info("worker %d (pid %d) has been continued", slot.index, slot.pid)
        self._dispatcher.worker_stopped(slot, stopped)

    def _worker_ended(self, slot: Slot, returncode: int, rusage: resource.struct_rusage) -> None:
        while self._on_report(slot):  # what it has said last, perhaps that it had started
            pass
        pid, before, served = slot.pid, slot.state, self._loop.now - slot.started_at
        del self._by_pid[pid]
        self._hung.discard(pid)
        self._hang_files.pop(slot.index).close()
        lost = self._dispatcher.worker_gone(slot)
        in_order = returncode == 0 and before != STARTING
        level = logging.INFO if in_order else logging.ERROR
        losing = f", {lost} connections are lost" if lost else ""
        starting = " while starting" if before == STARTING else ""
        log.log(level, "worker %d (pid %d) %s%s%s", slot.index, pid, describe_exit(returncode), starting, losing)
        child = Child(pid, "worker")
        child.reaped(returncode, rusage)
        for listener in self._server.listeners:
            if listener.hooks.on_child_exit is not None:
                try:
                    listener.hooks.on_child_exit(child, None)
                except BaseException:
                    log.exception("%s: a wrapper of on_child_exit failed", listener.config.name)
        if self._stopping:
            return
        if before == STARTING:
            self._start_failed(slot, can_say_why=returncode == EXIT_START_FAILED)
        elif served < YOUNG:
            self._young_deaths[slot.index] += 1
            delay = min(YOUNG_DELAY * (self._young_deaths[slot.index] - 1), LONGEST_YOUNG_DELAY)
            self._start_later(slot, delay)
        else:
            self._young_deaths[slot.index] = 0
            self._to_start.append(slot)

    def _start_failed(self, slot: Slot, can_say_why: bool = False) -> None:
        self._failed_starts[slot.index] += 1
        failures = self._failed_starts[slot.index]
        if not self._was_whole and failures >= MAX_FAILED_STARTS:
            log.error("worker %d could not start %d times in a row: giving up", slot.index, failures)
            line = f"worker {slot.index} could not start {failures} times in a row; the log has the reason"
            send_lines(self._link, "failed", [line], exit_code=1)
            self._exit_code = 1
            self._stop("start-up")
            return
        delay = min(FIRST_DELAY * 2 ** (failures - 1), LONGEST_DELAY)
        why = " (the plugin's error is above)" if can_say_why else ""
        log.error(
            "worker %d could not start%s, %d times in a row: next try in %.1f s", slot.index, why, failures, delay
        )
        self._start_later(slot, delay)

    def _start_later(self, slot: Slot, delay: float) -> None:
        def due() -> None:
            if not self._stopping and slot.state == EMPTY:
                self._to_start.append(slot)

        self._loop.call_later(delay, due)

    # --- hung workers

    def _watch_for_hangs(self, due: float | None = None) -> None:
        now, patience = self._loop.now, self._config.hang_timeout
        # Who has been stopped is not hung. Nor is anybody, as far as this process can tell, when it was itself held
        # up: Ctrl-Z in a terminal stops them all.
        held_up = due is not None and now - due > patience / 4
        for pid, slot in self._by_pid.items():
            if held_up or slot.stopped:
                slot.last_heard = now
            elif now - slot.last_heard > patience and pid not in self._hung:
                self._hung.add(pid)
                os.kill(pid, HANG_SIGNAL)
                self._loop.call_later(HANG_REPORT_TIME, partial(self._kill_hung, slot, pid, now - slot.last_heard))
        self._loop.call_later(patience / 4, partial(self._watch_for_hangs, now + patience / 4))

    def _kill_hung(self, slot: Slot, pid: int, silence: float) -> None:
        if slot.pid != pid or pid not in self._hung:
            return
        if slot.stopped:
            self._hung.discard(pid)
            return
        where = self._hang_files[slot.index].describe(
            [plugin for listener in self._server.listeners for plugin in listener.hooks.plugins]
        )
        log.error("worker %d (pid %d) has been silent for %.1f s, %s; killing it", slot.index, pid, silence, where)
        os.kill(pid, signal.SIGKILL)

    # --- stopping

    def _stop(self, why: str) -> None:
        """The first time: drain. The second time: end at once."""
        self._stopping += 1
        if self._stopping > 2:
            return
        if self._stopping == 1:
            open_connections = sum(len(slot.connections) for slot in self._slots)
            log.info("%s: stopping, %d connections are open", why, open_connections)
            self._dispatcher.close()
            for group in self._bound:
                for bound in group:
                    bound.socket.close()
        else:
            log.info("%s: ending at once", why)
        for pid, slot in self._by_pid.items():
            os.kill(pid, signal.SIGTERM if self._stopping == 1 else STOP_NOW_SIGNAL)
            if slot.stopped:
                os.kill(pid, signal.SIGCONT)
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        patience = self._config.graceful_timeout + STOP_MARGIN if self._stopping == 1 else STOP_NOW_MARGIN
        self._kill_timer = self._loop.call_later(patience, self._kill_all)

    def _kill_all(self) -> None:
        for pid, slot in self._by_pid.items():
            self._kill_if_there(slot, pid)

    def _kill_if_there(self, slot: Slot, pid: int) -> None:
        if slot.pid == pid:
            log.error("worker %d (pid %d) does not end: killing it", slot.index, pid)
            os.kill(pid, signal.SIGKILL)

    def _finish(self) -> None:
        """All workers have ended: see that nothing of theirs is left, and close everything."""
        self._dispatcher.give_up_homeless()
        deadline = self._loop.now + STOP_NOW_MARGIN
        while children.kill_children() and self._loop.now < deadline:
            self._loop.turn(0.02)
            self._reap()
        self._signals.silence()
        self._loop.close()


def run_server(server: Server, link: Link, held: Mapping[str, Held], start: Mapping[str, Any]) -> int:
    """Run a pool until it is told to stop.

    :param link: to the supervisor, still blocking.
    :param held: the listening sockets that stand, by key.
    :param start: what the supervisor has said at the start.
    :returns: the exit code: 0 after a stop, 1 when the workers can't start.
    :raises StartError: an address can't be bound, or the limit of open descriptors is too low.
    :raises EOFError: the supervisor is gone.
    """
    _open_standard_descriptors()
    _check_descriptor_limit(server)
    children.close_on_exec_from(3)
    bound = _settle_sockets(server, link, held)
    outcome = Pool(server, bound, link, start).run()
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


def _settle_sockets(server: Server, link: Link, held: Mapping[str, Held]) -> list[list[Bound]]:
    """Bind what does not stand yet, agree with the supervisor on what is used, and close the rest."""
    pool = server.config.pool
    bound = listeners.bind(tuple(listener.config for listener in server.listeners), held)
    used = [one for group in bound for one in group]
    send_sockets(link, "bound", [one.held for one in used if one.is_new])
    link.send(
        "configured",
        keys=[one.held.key for one in used],
        graceful_timeout=pool.graceful_timeout,
        pidfile=os.fspath(pool.pidfile) if pool.pidfile is not None else None,
    )
    link.receive()  # "go"; the other answer is to be killed
    link.setblocking(False)
    kept = {one.held for one in used}
    for one in held.values():
        if one not in kept:
            one.socket.close()
    return bound


def _open_standard_descriptors() -> None:
    """So that no connection gets the number 0, 1 or 2."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _check_descriptor_limit(server: Server) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = limit - _free_descriptors(server) + 64
    if limit < needed:
        raise StartError(
            f"the limit of open descriptors is {limit}, and {needed} are needed for {server.config.pool.workers} "
            f"workers and {_addresses(server)} addresses: raise it (ulimit -n), or configure fewer workers"
        )


def _descriptors_per_worker(server: Server) -> int:
    """How many connections of each worker may be here at a time."""
    return max((_free_descriptors(server) - SPARE_DESCRIPTORS) // server.config.pool.workers, 1)


def _free_descriptors(server: Server) -> int:
    """What is left to the dispatcher besides listening sockets, and of each worker a channel and a hang file."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 3 * server.config.pool.workers - _addresses(server)


def _addresses(server: Server) -> int:
    return sum(len(listener.config.bind) for listener in server.listeners)
