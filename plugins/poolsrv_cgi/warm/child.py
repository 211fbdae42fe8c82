"""A script that runs in a child of a warm interpreter."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Protocol

from poolsrv import Child, Connection, Handle, Stream, Timer, Worker

__all__ = ["WarmChild", "WarmProgram", "signal_group"]


class WarmProgram(Protocol):
    """What the warm side needs of the program whose script it runs."""

    conn: Connection

    def watch_stderr(self) -> None:
        """Log its standard error from now on: its process id is known."""

    def reaped(self, returncode: int, cpu: float | None, peak_memory: int | None) -> None:
        """Record how it has ended."""

    def log(self, level: int, message: str) -> None:
        """Log a line that names the program."""


class WarmChild:
    """A script that runs, or is about to, in a child of a fork server; a `Process`.

    :param spawn: starts the script cold, with the pipes of `descriptors`.
    :ivar descriptors: the script's standard input, output and error, until it has started.
    :ivar own_descriptors: those of them that are to be closed then: its ends of its pipes.
    :ivar withdraw: ends it if no process has been given its request yet; None where it has never waited for one.
    """

    def __init__(self, worker: Worker, program: WarmProgram, spawn: Callable[[int, int, int], Child]) -> None:
        self.stdin: Stream | None = None
        self.stdout: Stream | None = None
        self.returncode: int | None = None
        self.outlives = False
        self.descriptors: tuple[int, int, int] | None = None
        self.own_descriptors: list[int] = []
        self.withdraw: Callable[[], object] | None = None
        self._worker = worker
        self._program: WarmProgram | None = program  # None once it has been told the end: no reference cycle
        self._spawn: Callable[[int, int, int], Child] | None = spawn  # the same
        self._cold: Child | None = None
        self._pid = 0
        self._grace: float | None = None  # of `terminate`, once that has been called
        self._killer: Timer | None = None
        self._adoption: tuple[int, Handle] | None = None  # pidfd, and what waits for it

    @property
    def pid(self) -> int:
        """Process id; 0 as long as it is not known."""
        return self._cold.pid if self._cold is not None else self._pid

    def terminate(self, grace: float = 5.0) -> None:
        """End its process group: TERM, then KILL. Where it has ended, end what it has left in the group."""
        if self._cold is not None:
            self._cold.terminate(grace)
        elif self._grace is None:
            self._grace = grace
            if self._pid:
                self._signal(signal.SIGTERM)
                self._killer = self._worker.call_later(grace, self.kill)
            elif self.withdraw is not None:
                self._worker.call_later(0.0, self.withdraw)  # not within the call that ends it

    def kill(self) -> None:
        """End its process group at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Once its leader has been reaped, the group is known to be its own only while an orphan is in it.
        if self._pid and (self.returncode is None or _has_orphan(self._pid)):
            signal_group(self._pid, number)

    # --- what the fork server reports

    def started(self, pid: int) -> None:
        """Take note that it runs."""
        self._pid = pid
        if self._program is not None:
            self._program.watch_stderr()
        self.close_descriptors()
        if self._grace is not None:
            grace, self._grace = self._grace, None
            self.terminate(grace)

    def ended(self, returncode: int, cpu: float | None) -> None:
        """Take note that it has been reaped. Its peak memory is not reported: it includes part of the fork server's."""
        self.returncode = returncode
        self.close_descriptors()
        if self._killer is not None:
            self._killer.cancel()
            self.kill()
        program = self._forget_program()
        if program is not None:
            program.reaped(returncode, cpu, None)

    def _forget_program(self) -> WarmProgram | None:
        """The program, which has this child and is not to be had by it any longer."""
        program, self._program, self._spawn = self._program, None, None
        return program

    def adopt(self) -> None:
        """Wait for its end here: its fork server is gone, so it is a child of this process now, a subreaper."""
        try:
            if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self.end_now()  # before others reap it as an orphan
                return
            pidfd = os.pidfd_open(self._pid)
        except OSError:
            self.end_now()
            return
        self._adoption = pidfd, self._worker.add_reader(pidfd, self._adopted_has_ended)

    def _adopted_has_ended(self) -> None:
        assert self._adoption is not None
        (pidfd, watch), self._adoption = self._adoption, None
        watch.cancel()
        os.close(pidfd)
        self.end_now()

    def end_now(self) -> None:
        """Take note of its end, as a child of this process. It is killed if it has not ended."""
        self.ended(_end_of(self), None)

    def not_started(self) -> None:
        """Start it cold, since the fork server can't start it; unless it was to end by now."""
        if self._grace is not None:
            self.ended(-signal.SIGTERM, None)
            return
        assert self.descriptors is not None
        assert self._program is not None
        assert self._spawn is not None
        try:
            self._cold = self._spawn(*self.descriptors)
        except OSError as error:
            self._program.log(logging.ERROR, f"can't be started: {error.strerror}")
            self.ended(127, None)
            return
        self._forget_program()  # it is told of the end as that of any other child
        self._cold.outlives = self.outlives
        self.close_descriptors()

    def drop(self) -> None:
        """Close all its pipes: it was never sent."""
        self.close_descriptors()
        for stream in (self.stdin, self.stdout):
            if stream is not None:
                stream.abort()

    def close_descriptors(self) -> None:
        """Close the script's ends of its pipes."""
        for fd in self.own_descriptors:
            os.close(fd)
        self.own_descriptors.clear()
        self.descriptors = None


def _end_of(child: WarmChild) -> int:
    """The return code of a script that this process has adopted. It is killed if it has not ended."""
    try:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
    except ChildProcessError:
        return -signal.SIGKILL
    if pid:
        return os.waitstatus_to_exitcode(status)
    child.kill()
    return -signal.SIGKILL


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group; nothing happens where it is gone or not ours."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def _has_orphan(group: int) -> bool:
    """Whether a process of the group is a child of this one, as orphans are: the worker is their subreaper."""
    try:
        os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # waitid(2): no child in that group
        return False
    return True
