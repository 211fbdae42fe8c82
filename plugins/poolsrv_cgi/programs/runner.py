"""The programs of one listener in a worker: starts them within the limits, and follows each to its end."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping
from functools import partial

from poolsrv_http import StallTimeout

from poolsrv import Child, ConfigError, Connection, Worker

from ..environment import base_environment
from ..options import Limits, Options
from ..process import Launch, Process
from ..sandboxing import sandbox_of
from ..shebang import why_not_started
from ..warm.pool import WarmPool
from .capturing import Capturing
from .errorlog import FIRST_LOOK, LISTENER_SHARE, LineRate
from .limiter import ProgramLimiter
from .manners import Manners
from .masking import Masking
from .program import Program
from .records import Recorder
from .starts import Starts
from .timeouts import Deadlines
from .times import ProgramTimes

__all__ = ["ProgramRunner"]

_LIMITS = {
    "address_space": resource.RLIMIT_AS,
    "cpu_seconds": resource.RLIMIT_CPU,
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}


class ProgramRunner:
    """Made in the parent, before the fork; `open` is for each worker.

    :ivar base: the environment that all programs have (`base_environment`).
    :ivar limiter: permits of programs, over all workers.
    :ivar stderr_rate: of all programs of this worker together.
    :ivar starts: of programs that a turn of the loop has brought.
    :ivar run_timeout: of programs, by the option `timeout`.
    :ivar output_timeout: of programs that print nothing.
    :ivar first_looks: at the standard error of each program.
    :ivar times: how long programs wait, start and run.
    :ivar capturing: captures of those that have failed; None without the option.
    :ivar recorder: the records of programs that have ended.
    :ivar warm: the warm interpreters.
    :ivar sandbox: that of all programs; None without the option.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.base: Mapping[str, str] = base_environment(os.environ, options.pass_environment, options.environment)
        self.worker: Worker
        self.limiter = ProgramLimiter(options.max_programs, options.queue_size, options.queue_timeout)
        self.stderr_rate = LineRate(options.stderr_rate * LISTENER_SHARE)
        self.starts = Starts()
        self.run_timeout = Deadlines(options.timeout)
        self.output_timeout = StallTimeout(options.output_timeout)
        self.first_looks = Deadlines(FIRST_LOOK)
        self._limits = _limits_of(options.limits)
        self._manners = Manners(options) if options.nice or options.umask else None
        self.sandbox = sandbox_of(options)
        self.times = ProgramTimes()
        masking = Masking(options.mask)
        self.capturing = (
            Capturing(options, masking, self._limits, self.sandbox) if options.capture is not None else None
        )
        self.recorder = Recorder(masking, is_on=self.capturing is not None)
        self.warm = WarmPool(options.warm_modules, {**self.base, **options.environment}, self._limits)
        self._running: dict[int, Program] = {}  # started and not reaped, by process id

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection.

        :raises ConfigError: the sandbox has a path that the worker can't open.
        """
        self.worker = worker
        if self.sandbox is not None:
            try:
                self.sandbox.open()
            except OSError as error:
                raise ConfigError("sandbox", (error.strerror or str(error)).removeprefix("sandbox: ")) from None
        for part in (
            self.limiter,
            self.starts,
            self.run_timeout,
            self.output_timeout,
            self.first_looks,
            self.times,
            self.recorder,
            self.warm,
        ):
            part.open(worker)
        if self.capturing is not None:
            self.capturing.open(worker)

    def close(self) -> None:
        """End what runs warm, in a worker, after its last connection."""
        self.warm.close()
        if self.sandbox is not None:
            self.sandbox.close()
        if self.capturing is not None:
            self.capturing.close()

    def launch(self, program: Program, launch: Launch, stderr: Connection | int) -> Process:
        """Start the process of a program: warm where that is wanted and possible, else cold.

        :raises OSError: it can't be started.
        """
        if launch.warm is not None and isinstance(stderr, int) and not _has_connection(launch):
            child = self.warm.start(program, launch, launch.warm, stderr, partial(self._spawn, program, launch))
            if child is not None:
                return child
        return self._spawn(program, launch, launch.stdin, launch.stdout, stderr)

    def _spawn(
        self,
        program: Program,
        launch: Launch,
        stdin: Connection | int | None,
        stdout: Connection | int | None,
        stderr: Connection | int,
    ) -> Child:
        """Start it cold, as a process of its own.

        :raises OSError: it can't be started.
        """
        program.watch_stderr()
        start = partial(
            program.conn.spawn,
            launch.argv,
            env=launch.environment,
            cwd=launch.cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            limits=self._limits,
            sandbox=self.sandbox,
        )
        try:
            child = start() if self._manners is None else self._manners.start(start)
        except OSError as error:
            why = why_not_started(error, launch.argv, launch.cwd)
            if error.errno == errno.EACCES and self.sandbox is not None:
                why += ": perhaps its sandbox lacks `execute` for it, or for its interpreter"
            raise OSError(error.errno, why) from error
        child.name, child.queued = program.name, program.queued
        self._running[child.pid] = program
        if launch.warm is not None:
            self.warm.started_cold(launch.warm, child)
        return child

    def child_ended(self, child: Child) -> None:
        """Take note that a program has been reaped, or (in the dispatcher) a worker."""
        if child.role == "worker":
            self.limiter.worker_ended(child.pid)
            return
        self.warm.child_ended(child)
        if (program := self._running.pop(child.pid, None)) is not None:
            peak = child.peak_memory if self.options.access_log is not None else None
            program.reaped(child.returncode if child.returncode is not None else 255, child.cpu, peak)


def _has_connection(launch: Launch) -> bool:
    """Whether the program gets the connection itself, which a warm child can't."""
    return isinstance(launch.stdin, Connection) or isinstance(launch.stdout, Connection)


def _limits_of(limits: Limits) -> dict[int, int]:
    values = {number: getattr(limits, name) for name, number in _LIMITS.items()}
    return {number: value for number, value in values.items() if value is not None}
