"""A program that runs for a connection: its start, its standard error, its end.

What every protocol shares. A place among `max_programs` is the caller's to take before the start; it is given back
here, when the program has been reaped.

Its standard error has a pipe of its own, which is the worker's and not the connection's: a program that has something
to say after its client is gone is heard, and not killed by SIGPIPE.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from poolsrv import Child, Connection, Stream

from .errorlog import ErrorLog, LineRate

if TYPE_CHECKING:
    from ..site import Site

__all__ = ["Process", "Program"]

log = logging.getLogger("poolsrv.cgi")

TERM_GRACE = 5.0  # seconds from TERM to KILL
LAST_WORDS_TIME = 1.0  # seconds that a program whose output is of no use has until TERM


class Process(Protocol):
    """What a `Child` and a warm child have in common."""

    stdin: Stream | None
    stdout: Stream | None
    returncode: int | None
    outlives: bool

    @property
    def pid(self) -> int:
        """Process id; 0 where it is not known yet."""

    def terminate(self, grace: float = ...) -> None:
        """End its process group."""


class Program:
    """One program, from `start` until it has been reaped.

    :param name: for the log: the SCRIPT_NAME, or the command.
    :param on_end: called as `on_end(program)` once it has been reaped.
    :ivar child: None until it has been started.
    :ivar started_at: monotonic.
    :ivar overdue: why it was ended by the server, `"timeout"` or `"output_timeout"`; empty otherwise.
    :ivar on_overdue: called as `on_overdue(program)` when it is, before it has ended; returns what the log is to tell
        besides, or nothing.
    :ivar returncode: exit status, or minus the signal's number; None until it has been reaped.
    :ivar cpu: seconds of CPU time; None until it has been reaped, or where nobody knows.
    :ivar peak_memory: bytes; None where it can't be told.
    """

    __slots__ = (
        "_errors", "_failure", "_is_being_ended", "_on_end", "child", "conn", "cpu", "name",
        "on_overdue", "overdue", "peak_memory", "returncode", "site", "started_at",
    )  # fmt: skip

    def __init__(self, site: Site, conn: Connection, name: str, on_end: Callable[[Program], object]) -> None:
        self.site = site
        self.conn = conn
        self.name = name
        self.child: Process | None = None
        self.started_at = 0.0
        self.overdue = ""
        self._is_being_ended = False
        self.on_overdue: Callable[[Program], str] | None = None
        self.returncode: int | None = None
        self.cpu: float | None = None
        self.peak_memory: int | None = None
        self._on_end = on_end
        self._failure = ""  # for the log, once its last words are known
        rates = (LineRate(site.options.stderr_rate), site.stderr_rate)
        self._errors = ErrorLog(site.worker, rates, lambda line: self.log(logging.WARNING, line))

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None,
        stdin: Connection | int | None,
        stdout: Connection | int | None,
        stderr: Connection | None = None,
        warm: tuple[str, ...] | None = None,
    ) -> Process:
        """Start it.

        :param stderr: None: to the log, line by line.
        :param warm: the command of a warm interpreter that is to run it, where there is one that can.
        :raises OSError: it can't be started; the place is given back.
        """
        site, conn = self.site, self.conn
        writer = -1
        self.started_at = time.monotonic()
        try:
            if stderr is None:
                writer = self._errors.open()
            error = stderr if stderr is not None else writer
            child: Process | None = None
            if warm is not None and stdin is not conn and stdout is not conn:
                child = site.warm.start(self, warm, argv, env, cwd, stdin, writer)
            if child is None:
                self.watch_stderr()
                child = self.spawn(argv, env, cwd, stdin, stdout, error)
        except BaseException:
            self._errors.discard()
            site.limiter.give_back()
            raise
        finally:
            if writer >= 0:
                os.close(writer)
        self.child = child
        site.deadlines.add(self._out_of_time)
        return child

    def spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None,
        stdin: Connection | int | None,
        stdout: Connection | int | None,
        stderr: Connection | int | None,
    ) -> Child:
        """Start it the ordinary way.

        :raises OSError: it can't be started.
        """
        child = self.conn.spawn(
            argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, limits=self.site.limits
        )
        self.site.running[child.pid] = self
        return child

    def watch_stderr(self) -> None:
        """Log what it says from now on. Not before its process id is known, which the lines have in them."""
        self._errors.watch()

    @property
    def has_ended(self) -> bool:
        """Whether it is over."""
        return self.returncode is not None

    @property
    def ended_well(self) -> bool:
        """Whether what it has printed can count as whole: neither a signal nor the server has ended it."""
        return not self.overdue and (self.returncode is None or self.returncode >= 0)

    def end(self, overdue: str = "") -> None:
        """End it and its whole process group, TERM then KILL; where it has ended, what it has left in its group."""
        if self.child is None:
            return
        if overdue and not self.overdue and not self._failure:
            self.overdue = overdue
            meaning = self.on_overdue(self) if self.on_overdue is not None else ""
            seconds = getattr(self.site.options, overdue)
            self.log(logging.WARNING, f"over its {overdue} of {seconds:g} s: ending it{meaning}")
        self._is_being_ended = True
        self.child.terminate(TERM_GRACE)
        if overdue and self.child.returncode is not None and not self.has_ended:
            self.conn.abort(f"program over its {overdue}")  # it has handed the connection on, to whatever group

    def _out_of_time(self) -> None:
        self.end("timeout")

    def fail(self, message: str) -> None:
        """Its output is of no use: say so in the log, with its last words, which mostly come after the output.

        It has a moment to say them and to end by itself.
        """
        self._failure = message
        if self.has_ended:
            self._log_failure()
        else:
            self.site.worker.call_later(LAST_WORDS_TIME, self.end)

    def _log_failure(self) -> None:
        words = " | ".join(self._errors.last_lines)
        self.log(logging.ERROR, self._failure + (f"; its last words: {words}" if words else ""))

    def let_go(self) -> None:
        """Its client has all that it gets: the program may go on when the connection ends, for its timeout."""
        if self.child is not None:
            self.child.outlives = True

    def reaped(self, returncode: int, cpu: float | None, peak_memory: int | None) -> None:
        """It has ended; for the one who has waited for it. It is over once nobody has the connection that it may have
        handed on, as with inetd."""
        child = self.child
        over = partial(self._is_over, returncode, cpu, peak_memory)
        may_be_handed_on = isinstance(child, Child) and not self._is_being_ended
        if not (may_be_handed_on and self.conn.await_last_copy(cast("Child", child), over)):
            over()

    def _is_over(self, returncode: int, cpu: float | None, peak_memory: int | None) -> None:
        self.returncode = returncode
        self.cpu = cpu
        self.peak_memory = peak_memory
        self.site.deadlines.remove(self._out_of_time)
        self._errors.finish()
        if self._failure:
            self._log_failure()
        self.site.limiter.give_back()
        on_end, self._on_end, self.on_overdue = self._on_end, _nothing, None  # no circle
        on_end(self)

    def log(self, level: int, message: str) -> None:
        """A line in the server's log that names the program and the connection."""
        pid = f"[{self.child.pid}]" if self.child is not None and self.child.pid else ""
        self.conn.log.log(level, "%s%s: %s", self.name, pid, message)


def _nothing(program: Program) -> None:
    """In the place of an `on_end` that has been called."""


def own_peak(usage: resource.struct_rusage) -> int | None:
    """The peak memory of a program in bytes, None where it can't be told: a program that shared its memory with this
    process until its exec is never reported with less than this process's own peak (wait4(2))."""
    if usage.ru_maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
        return None
    return usage.ru_maxrss * 1024
