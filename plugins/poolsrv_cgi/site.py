"""What the connections of one listener share: the options made ready, the programs that run, the places for them."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Mapping
from importlib.metadata import version

from poolsrv_http import BodyLimits, SpoolAccount, StallTimeout

from poolsrv import Child, Worker

from .environment import base_environment
from .options import Limits, Options
from .programs.errorlog import LISTENER_SHARE, LineRate
from .programs.limiter import ProgramLimiter
from .programs.program import Program, own_peak
from .programs.timeouts import Deadlines
from .warm.pool import WarmPool

__all__ = ["Site"]

log = logging.getLogger("poolsrv.cgi")

SOFTWARE = f"poolsrv/{version('poolsrv')}"
_LIMITS = {
    "address_space": resource.RLIMIT_AS,
    "cpu_seconds": resource.RLIMIT_CPU,
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}


class Site:
    """Made in the parent, before the fork; `open` is for each worker.

    :ivar base: the environment that every program has (`base_environment`).
    :ivar limits: as `Connection.spawn` takes them.
    :ivar body_limits: of requests' bodies.
    :ivar deadlines: of programs, by `timeout`.
    :ivar silence: programs that must not be silent for `output_timeout`.
    :ivar stalled_bodies: requests' bodies that must not stand still for `body_timeout`.
    :ivar stderr_rate: of all programs of this worker together.
    :ivar spooled: bytes of chunked bodies that are kept, over all workers.
    :ivar running: the programs that this worker has started and not yet reaped, by process id.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.base: Mapping[str, str] = base_environment(os.environ, options.pass_environment, options.environment)
        self.limits = _limits_of(options.limits)
        self.body_limits = BodyLimits(
            max_size=options.max_body_size,
            max_extensions=options.max_chunk_extensions,
            max_trailer=options.max_header_size,
            max_fields=options.max_header_fields,
        )
        self.limiter = ProgramLimiter(options.max_programs, options.queue_size, options.queue_timeout)
        self.spooled = SpoolAccount(options.max_spooled)
        self.running: dict[int, Program] = {}
        self.stderr_rate = LineRate(options.stderr_rate * LISTENER_SHARE)
        self.deadlines = Deadlines(options.timeout)
        self.silence = StallTimeout(options.output_timeout)
        self.stalled_bodies = StallTimeout(options.body_timeout)
        self.warm = WarmPool(options.warm_modules, {**self.base, **options.environment}, self.limits)
        self.worker: Worker
        self._logged: set[str] = set()

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection."""
        self.worker = worker
        self.limiter.open(worker)
        self.spooled.open()
        for part in (self.deadlines, self.silence, self.stalled_bodies, self.warm):
            part.open(worker)

    def close(self) -> None:
        """In a worker, after its last connection."""
        self.warm.close()

    def log_once(self, what: str, message: str) -> None:
        """An error that would come with every request; only the first is logged."""
        if what not in self._logged:
            self._logged.add(what)
            self.log(message)

    def log(self, message: str) -> None:
        """An error that belongs to no connection."""
        log.error("%s", message)

    def child_ended(self, child: Child) -> None:
        """A program has been reaped, or (in the dispatcher) a worker."""
        if child.role == "worker":
            self.limiter.worker_ended(child.pid)
            self.spooled.worker_ended(child.pid)
        elif (program := self.running.pop(child.pid, None)) is not None:
            usage = child.rusage
            cpu = usage.ru_utime + usage.ru_stime if usage is not None else None
            peak = own_peak(usage) if usage is not None and self.options.access_log is not None else None
            program.reaped(child.returncode if child.returncode is not None else 255, cpu, peak)


def _limits_of(limits: Limits) -> dict[int, int]:
    values = {number: getattr(limits, name) for name, number in _LIMITS.items()}
    return {number: value for number, value in values.items() if value is not None}
