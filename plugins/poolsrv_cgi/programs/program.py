"""A program that runs for a connection: its start, its standard error, its end.

This is what all protocols share. The caller acquires a permit (`max_programs`) before the start; the permit is released
here, once the program has been reaped.

Standard error has a pipe of its own that belongs to the worker, not to the connection. So a program can still
write to the log when its client is gone, and is not killed by SIGPIPE.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from poolsrv_http import Outcome, StallTimeout

from poolsrv import Child, Connection, Worker

from ..cgi_header import CgiHeader
from ..options import Options
from ..process import Launch, Process
from .capturing import Capturing
from .errorlog import ErrorLog, LineRate
from .limiter import ProgramLimiter
from .records import Ended, Recorder
from .timeouts import Deadlines
from .times import ProgramTimes

__all__ = ["Program", "Runner", "close_connection"]

TERM_GRACE = 5.0  # seconds from TERM to KILL
LAST_WORDS = 5  # lines in the log entry of a failure
LAST_WORDS_TIME = 1.0  # seconds until TERM for a program whose output is of no use


class Runner(Protocol):
    """What a program needs of the `ProgramRunner` that starts it."""

    options: Options
    worker: Worker
    limiter: ProgramLimiter
    stderr_rate: LineRate
    run_timeout: Deadlines
    output_timeout: StallTimeout
    first_looks: Deadlines
    times: ProgramTimes
    recorder: Recorder
    capturing: Capturing | None

    def launch(self, program: Program, launch: Launch, stderr: Connection | int) -> Process:
        """Start the process of a program.

        :raises OSError: it can't be started.
        """


class Program:
    """One program, from `start` until it has been reaped.

    :param name: for the log: the SCRIPT_NAME, or the command.
    :param on_end: called as `on_end(program)` once it has been reaped.
    :ivar child: None until it has been started.
    :ivar started_at: monotonic.
    :ivar overdue: the timeout for which the server ended it, `"timeout"` or `"output_timeout"`; empty otherwise.
    :ivar on_overdue: called as `on_overdue(program)` before the server ends it for a timeout; returns a further part of
        the log message, or nothing.
    :ivar queued: seconds that it has waited for a permit.
    :ivar request: what the client has asked for, for the record of the run.
    :ivar outcome: of its HTTP request, for the same; None for other protocols.
    :ivar header: the header that it has printed, for its capture; so are `body`, as much of the request's as is kept,
        and `body_length`.
    :ivar returncode: exit status, or minus the signal's number; None until it has been reaped.
    :ivar cpu: seconds of CPU time; None until it has been reaped, or where it is not known.
    :ivar peak_memory: bytes; None where it is not known.
    """

    __slots__ = (
        "_ended", "_errors", "_failure", "_is_being_ended", "_launch", "_on_end", "_start_took", "body", "body_length",
        "child", "conn", "cpu", "header", "name", "on_overdue", "outcome", "overdue", "peak_memory", "queued",
        "request", "returncode", "runner", "started_at",
    )  # fmt: skip

    def __init__(self, runner: Runner, conn: Connection, name: str, on_end: Callable[[Program], object]) -> None:
        self.runner = runner
        self.conn = conn
        self.name = name
        self.child: Process | None = None
        self.started_at = 0.0
        self.queued = 0.0
        self.overdue = ""
        self.request = ""
        self.outcome: Outcome | None = None
        self.header: CgiHeader | None = None
        self.body = b""
        self.body_length = 0
        self._launch: Launch
        self._start_took = 0.0
        self._ended: Ended | None = None  # once that is so
        self._is_being_ended = False
        self.on_overdue: Callable[[Program], str] | None = None
        self.returncode: int | None = None
        self.cpu: float | None = None
        self.peak_memory: int | None = None
        self._on_end = on_end
        self._failure = ""  # for the log, once its last words are known
        self._errors = ErrorLog(
            runner.worker,
            runner.options.stderr_rate,
            runner.stderr_rate,
            lambda line: self.log(logging.WARNING, line),
            runner.first_looks,
        )

    def start(self, launch: Launch) -> Process:
        """Start it.

        :raises OSError: it can't be started; the permit is released.
        """
        runner, writer = self.runner, -1
        self._launch = launch
        self.started_at = time.monotonic()
        try:
            if launch.stderr is None:
                writer = self._errors.open()
            child = runner.launch(self, launch, writer if launch.stderr is None else launch.stderr)
        except BaseException as error:
            self._errors.discard()
            runner.limiter.release()
            self._not_started(error)
            raise
        finally:
            if writer >= 0:
                os.close(writer)
        self.child = child
        self._start_took = took = time.monotonic() - self.started_at
        runner.times.started(self.queued, took)
        runner.run_timeout.add(self._out_of_time)
        return child

    def watch_stderr(self) -> None:
        """Log its standard error, but not within this call: the lines name its process id, which is known then."""
        self._errors.begin()

    @property
    def has_ended(self) -> bool:
        """Whether it has been reaped."""
        return self.returncode is not None

    @property
    def ended_well(self) -> bool:
        """Whether its output can count as whole: neither a signal nor the server has ended it."""
        return not self.overdue and (self.returncode is None or self.returncode >= 0)

    def _kind_of_failure(self) -> str:
        """How it has failed, for the metric; empty if it has not."""
        if self.overdue:
            return self.overdue
        if self.returncode and not self._ended_by():
            return "signal" if self.returncode < 0 else "status"
        return "output" if self._failure else ""

    def _ended_by(self) -> str:
        """What has ended it, if it is not to blame for that."""
        if self.returncode and (self._is_being_ended or self.returncode == -signal.SIGTERM):
            if self.runner.worker.draining:
                return "ended with its worker"
            if self._is_being_ended or self.conn.reset:
                return "ended: its client is gone"
        return ""

    def end(self, overdue: str = "") -> None:
        """End its whole process group: TERM, then KILL. Where it has ended, end what it has left in the group.

        :param overdue: the timeout that it has exceeded, if that is the reason.
        """
        if self.child is None:
            return
        if overdue and not self.overdue and not self._failure:
            self.overdue = overdue
            meaning = self.on_overdue(self) if self.on_overdue is not None else ""
            seconds = getattr(self.runner.options, overdue)
            self.log(logging.WARNING, f"over its {overdue} of {seconds:g} s: ending it{meaning}")
        self._is_being_ended = True
        self.child.terminate(TERM_GRACE)
        if overdue and self.child.returncode is not None and not self.has_ended:
            # It has passed the connection on to a process that may be in another group.
            self.conn.abort(f"program over its {overdue}")

    def _out_of_time(self) -> None:
        self.end("timeout")

    def fail(self, message: str) -> None:
        """Log that its output is of no use, with its last words, which mostly come after the output.

        It has a moment to say them and to end by itself.
        """
        before, self._failure = self._kind_of_failure(), message
        if self.has_ended:
            self._log_failure()
            if not before:
                self.runner.times.failed("output")
            if self._ended is not None:
                self._ended.failure = message
                self._capture(self._ended)
        else:
            self.runner.worker.call_later(LAST_WORDS_TIME, self.end)

    def _log_failure(self) -> None:
        words = " | ".join(list(self._errors.last_lines)[-LAST_WORDS:])
        self.log(logging.ERROR, self._failure + (f"; its last words: {words}" if words else ""))

    def let_go(self) -> None:
        """Let it run on after its connection, for the rest of its timeout: the client has all that it gets."""
        if self.child is not None:
            self.child.outlives = True

    def reaped(self, returncode: int, cpu: float | None, peak_memory: int | None) -> None:
        """Record how its process has ended; for whatever has reaped it.

        The program is over once no process has the connection that it may have passed on, as under inetd.
        """
        child = self.child
        if isinstance(child, Child) and not self._is_being_ended:
            over = partial(self._is_over, returncode, cpu, peak_memory)
            if self.conn.await_last_copy(child, over):
                return
        self._is_over(returncode, cpu, peak_memory)

    def _is_over(self, returncode: int, cpu: float | None, peak_memory: int | None) -> None:
        self.returncode = returncode
        took = time.monotonic() - self.started_at
        self.runner.times.ended(took, self._kind_of_failure())
        self.cpu = cpu
        self.peak_memory = peak_memory
        self.runner.run_timeout.remove(self._out_of_time)
        self._errors.finish()
        if self._failure:
            self._log_failure()
        self._record(took)
        self.runner.limiter.release()
        on_end, self._on_end, self.on_overdue = self._on_end, _nothing, None  # no reference cycle
        on_end(self)

    def _record(self, took: float) -> None:
        runner, conn, child, launch = self.runner, self.conn, self.child, self._launch
        if not runner.recorder.is_on:
            return
        pid = child.pid if child is not None else 0
        cold = child if isinstance(child, Child) else None
        self._ended = ended = Ended(
            conn.listener, conn.peer, self.name, launch.argv, launch.cwd, launch.environment, self.request,
            self.outcome, pid, pid > 0 and cold is None, self.started_at, self.queued, self._start_took, took,
            self.returncode, self.cpu, cold.rusage if cold is not None else None, self.overdue, self._failure,
            self._ended_by(), self._errors.last_lines, launch.stdout is conn,
        )  # fmt: skip
        runner.recorder.ended(ended)
        if runner.capturing is not None:
            self._capture(ended)

    def _capture(self, ended: Ended) -> None:
        if self.runner.capturing is not None and ended.failed:
            self.runner.capturing.failed(ended, self)

    def _not_started(self, error: BaseException) -> None:
        if not (isinstance(error, OSError) and error.errno == errno.ENOTCONN):
            why = error.strerror if isinstance(error, OSError) else repr(error)
            self._failure = f"can't be started: {why}"
            self.runner.times.failed("start")
            self._record(0.0)

    def log(self, level: int, message: str) -> None:
        """Log a line that names the program and the connection."""
        pid = f"[{self.child.pid}]" if self.child is not None and self.child.pid else ""
        self.conn.log.log(level, "%s%s: %s", self.name, pid, message)


def close_connection(program: Program) -> None:
    """End the connection of a program that has written to it itself: the output is in the kernel's hands."""
    if program.overdue:
        program.conn.abort(f"program over its {program.overdue}")
    else:
        program.conn.close("program ended")


def _nothing(program: Program) -> None:
    """Stand in for an `on_end` that has been called."""
