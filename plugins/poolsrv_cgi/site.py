"""What the connections of one listener share."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.metadata import version

from poolsrv_http import BodyLimits, SpoolAccount, StallTimeout

from poolsrv import Child, Worker

from .environment import base_environment
from .options import Options
from .programs.runner import ProgramRunner

__all__ = ["Site"]

log = logging.getLogger("poolsrv.cgi")

SOFTWARE = f"poolsrv/{version('poolsrv')}"


class Site:
    """Made in the parent, before the fork; `open` is for each worker.

    :ivar base: the environment that all programs have (`base_environment`).
    :ivar runner: runs the programs.
    :ivar body_limits: of requests' bodies.
    :ivar stalled_bodies: the timeout of requests' bodies that stand still, by `body_timeout`.
    :ivar spooled: bytes of chunked bodies that are kept, over all workers.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.base: Mapping[str, str] = base_environment(os.environ, options.pass_environment, options.environment)
        self.runner = ProgramRunner(options, self.base)
        self.body_limits = BodyLimits(
            max_size=options.max_body_size,
            max_extensions=options.max_chunk_extensions,
            max_trailer=options.max_header_size,
            max_fields=options.max_header_fields,
        )
        self.spooled = SpoolAccount(options.max_spooled)
        self.stalled_bodies = StallTimeout(options.body_timeout)
        self._logged: set[str] = set()

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self.runner.open(worker)
        self.spooled.open()
        self.stalled_bodies.open(worker)

    def close(self) -> None:
        """End what still runs, in a worker, after its last connection."""
        self.runner.close()

    def log_once(self, what: str, message: str) -> None:
        """Log an error that would come with every request; only the first time."""
        if what not in self._logged:
            self._logged.add(what)
            self.log(message)

    def log(self, message: str) -> None:
        """Log an error that belongs to no connection."""
        log.error("%s", message)

    def child_ended(self, child: Child) -> None:
        """Take note that a program has been reaped, or (in the dispatcher) a worker."""
        if child.role == "worker":
            self.spooled.worker_ended(child.pid)
        self.runner.child_ended(child)
