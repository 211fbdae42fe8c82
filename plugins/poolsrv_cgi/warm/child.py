"""A script that runs in a child of a warm interpreter; and what is left of it when that is gone."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolsrv import Child, Stream, Timer

if TYPE_CHECKING:
    from ..programs.program import Program
    from .pool import WarmPool

__all__ = ["WarmChild", "end_of", "signal_group"]


class WarmChild:
    """A script that runs, or is about to, in a child of a helper; as `running.Process` has it."""

    def __init__(self, pool: WarmPool, program: Program, fallback: Callable[[], Child]) -> None:
        self.pool = pool
        self.program = program
        self.stdin: Stream | None = None
        self.stdout: Stream | None = None
        self.returncode: int | None = None
        self.outlives = False
        self.descriptors: list[int] = []  # the script's ends, until it has started
        self._fallback = fallback
        self._ordinary: Child | None = None
        self._pid = 0
        self._ending: float | None = None  # the grace, once it is to end
        self._killer: Timer | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 where it is not known yet."""
        return self._ordinary.pid if self._ordinary is not None else self._pid

    def terminate(self, grace: float = 5.0) -> None:
        """End its process group: TERM, then KILL. Where it has ended, what it has left behind in the group."""
        if self._ordinary is not None:
            self._ordinary.terminate(grace)
        elif self._ending is None:
            self._ending = grace
            if self._pid:
                self._signal(signal.SIGTERM)
                self._killer = self.pool.worker.call_later(grace, lambda: self._signal(signal.SIGKILL))

    def _signal(self, number: signal.Signals) -> None:
        # Once its leader has been reaped, the group's number is only known to be its own while an orphan is in it.
        if self._pid and (self.returncode is None or _orphans_in(self._pid)):
            signal_group(self._pid, number)

    def kill(self) -> None:
        """End its process group at once."""
        self._signal(signal.SIGKILL)

    # --- what its helper says

    def started(self, pid: int) -> None:
        """It runs."""
        self._pid = pid
        self.program.watch_stderr()
        self.close_descriptors()
        if self._ending is not None:
            grace, self._ending = self._ending, None
            self.terminate(grace)

    def ended(self, returncode: int, cpu: float | None) -> None:
        """It has been reaped. Its peak of memory is not told: it has part of the helper's in it."""
        self.returncode = returncode
        self.close_descriptors()
        if self._killer is not None:
            self._killer.cancel()
            self.kill()
        self.program.reaped(returncode, cpu, None)

    def not_started(self) -> None:
        """The helper can't: start it the ordinary way, unless nobody wants it any more."""
        if self._ending is not None:
            self.ended(-signal.SIGTERM, None)
            return
        try:
            self._ordinary = self._fallback()
            self._ordinary.outlives = self.outlives
            self.program.watch_stderr()
        except OSError as error:
            self.program.log(logging.ERROR, f"can't be started: {error.strerror}")
            self.ended(127, None)
            return
        self.close_descriptors()

    def drop(self) -> None:
        """It was never sent."""
        self.close_descriptors()
        for stream in (self.stdin, self.stdout):
            if stream is not None:
                stream.abort()

    def close_descriptors(self) -> None:
        """The script's ends of its pipes."""
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors.clear()


def end_of(child: WarmChild) -> int:
    """How a script has ended whose helper is gone: it is this process's now, which is a subreaper. It is killed, if it
    has not ended."""
    try:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
    except ChildProcessError:
        return -signal.SIGKILL
    if pid:
        return os.waitstatus_to_exitcode(status)
    child.kill()
    return -signal.SIGKILL


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group; nothing where it is gone or not ours."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def _orphans_in(group: int) -> bool:
    """Whether a process of the group has become a child of this one, as orphans do: the worker is their subreaper."""
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                children = file.read().split()
            if any(os.getpgid(int(pid)) == group for pid in children):
                return True
        except OSError:
            continue
    return False
