"""A program that runs for a connection: its start, its limits, its standard error, its end.

What every protocol shares. A place among `max_programs` is the caller's to take before the start; it is given back
here, when the program has been reaped.
"""

from __future__ import annotations

import logging
import os
import resource
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from poolsrv import PIPE, Child, Connection, Stream, Timer

from .options import Limits

if TYPE_CHECKING:
    from .site import Site

__all__ = ["RunningProgram"]

log = logging.getLogger("poolsrv.cgi")

TERM_GRACE = 5.0  # seconds from TERM to KILL
MAX_LOG_LINE = 4096  # bytes of one line of standard error; what is longer becomes several
LINES_KEPT = 5  # of standard error, for the log entry of a failure

_SOFT_LIMITS = {"address_space": resource.RLIMIT_AS, "open_files": resource.RLIMIT_NOFILE}
_LATER_LIMITS = {"processes": resource.RLIMIT_NPROC}


class RunningProgram:
    """One program, from `start` until it has been reaped.

    :param name: for the log: the SCRIPT_NAME, or the command.
    :param on_end: called as `on_end(program)` once it has been reaped; `child.returncode` is set then.
    :ivar child: None until it has been started.
    :ivar overdue: why it was ended by the server, `"timeout"` or `"output_timeout"`; empty otherwise.
    :ivar on_overdue: called when it is, before it has ended.
    """

    def __init__(self, site: Site, conn: Connection, name: str, on_end: Callable[[RunningProgram], object]) -> None:
        self.site = site
        self.conn = conn
        self.name = name
        self.child: Child | None = None
        self.overdue = ""
        self.on_overdue: Callable[[], object] | None = None
        self._on_end = on_end
        self._timer: Timer | None = None
        self._last_lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._rest = b""  # of standard error: a line without its end

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None,
        stdin: Connection | int | None,
        stdout: Connection | int | None,
        stderr: Connection | int | None = PIPE,
    ) -> Child:
        """Start it. A standard error that is `PIPE` goes to the log, line by line.

        :raises OSError: it can't be started; the place is given back.
        """
        options = self.site.options
        try:
            child = _with_limits(
                options.limits,
                lambda: self.conn.spawn(argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr),
            )
        except BaseException:
            self.site.admission.give_back()
            raise
        self.child = child
        self.site.running[child.pid] = self
        if child.stderr is not None:
            child.stderr.on_readable = self._on_stderr
        if options.timeout:
            # A timer of the worker, not of the connection, which may be gone before the program.
            self._timer = self.site.worker.call_later(options.timeout, lambda: self.end("timeout"))
        return child

    def end(self, overdue: str = "") -> None:
        """End it and its whole process group, TERM then KILL; harmless when it has ended."""
        if self.child is None or self.child.returncode is not None:
            return
        if overdue and not self.overdue:
            self.overdue = overdue
            seconds = getattr(self.site.options, overdue)
            self.log(logging.WARNING, f"over its {overdue} of {seconds:g} s: ending it")
            if self.on_overdue is not None:
                self.on_overdue()
        self.child.terminate(TERM_GRACE)

    def reaped(self) -> None:
        """From `on_child_exit`: it has ended."""
        if self._timer is not None:
            self._timer.cancel()
        self.site.admission.give_back()
        self._on_end(self)

    def last_words(self) -> str:
        """The last lines of its standard error, for the log."""
        return " | ".join(self._last_lines)

    def log(self, level: int, message: str) -> None:
        """A line in the server's log that names the program and the connection."""
        pid = f"[{self.child.pid}]" if self.child is not None else ""
        self.conn.log.log(level, "%s%s: %s", self.name, pid, message)

    def _on_stderr(self, stream: Stream) -> None:
        data = self._rest + stream.recv()
        *lines, self._rest = data.split(b"\n")
        if len(self._rest) > MAX_LOG_LINE or (stream.eof and self._rest):
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            for piece in _pieces(line):
                text = piece.decode("utf-8", "backslashreplace").rstrip()
                if text:
                    self._last_lines.append(text)
                    self.log(logging.WARNING, text)


def own_peak(usage: resource.struct_rusage | None) -> int | None:
    """The peak memory of a program in bytes, None where it can't be told: a program that shared its memory with this
    process until its exec is never reported with less than this process's own peak (wait4(2))."""
    if usage is None or usage.ru_maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
        return None
    return usage.ru_maxrss * 1024


def _pieces(line: bytes) -> Iterable[bytes]:
    return (line[start : start + MAX_LOG_LINE] for start in range(0, len(line), MAX_LOG_LINE))


def _with_limits(limits: Limits, spawn: Callable[[], Child]) -> Child:
    """Start a program with resource limits, without a launcher in between.

    `posix_spawn` has no way to set limits in the child. A soft limit that is lowered here for the moment of the start
    is inherited by the program; its hard limit follows by prlimit(2). CPU time and processes count what this process
    has used already, so they are set after the start; a program has used nothing worth mentioning by then.
    """
    if limits == Limits():
        return spawn()
    former: list[tuple[int, tuple[int, int]]] = []
    try:
        for name, number in _SOFT_LIMITS.items():
            wanted = getattr(limits, name)
            if wanted is not None:
                soft, hard = resource.getrlimit(number)
                former.append((number, (soft, hard)))
                resource.setrlimit(number, (_at_most(wanted, hard), hard))
        try:
            child = spawn()
        except MemoryError:
            child = _without(resource.RLIMIT_AS, former, spawn)
        except OSError as error:
            if error.errno not in (12, 24):  # ENOMEM, EMFILE: this process itself is above the program's limit
                raise
            for number, limit in former:
                resource.setrlimit(number, limit)
            child = spawn()
    finally:
        for number, limit in former:
            resource.setrlimit(number, limit)
    _set_hard_limits(limits, child.pid)
    return child


def _without(number: int, former: list[tuple[int, tuple[int, int]]], spawn: Callable[[], Child]) -> Child:
    for other, limit in former:
        if other == number:
            resource.setrlimit(number, limit)
    return spawn()


def _set_hard_limits(limits: Limits, pid: int) -> None:
    wanted = {
        **{number: getattr(limits, name) for name, number in (_SOFT_LIMITS | _LATER_LIMITS).items()},
        resource.RLIMIT_CPU: limits.cpu_seconds,
    }
    for number, value in wanted.items():
        if value is None:
            continue
        try:
            hard = resource.prlimit(pid, number)[1]
            # At the soft limit of CPU time a program gets SIGXCPU, at the hard one SIGKILL.
            extra = 1 if number == resource.RLIMIT_CPU else 0
            resource.prlimit(pid, number, (_at_most(value, hard), _at_most(value + extra, hard)))
        except ProcessLookupError:
            return  # it has ended
        except OSError as error:
            log.warning("can't limit program %d: %s", pid, os.strerror(error.errno or 0))


def _at_most(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)
