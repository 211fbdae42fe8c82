"""What the connections of one listener share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version

from poolsrv import Child, Worker

from .environment import base_environment
from .options import Options
from .programs.runner import ProgramRunner

__all__ = ["Site"]

SOFTWARE = f"poolsrv/{version('poolsrv')}"


class Site:
    """Made in the parent, before the fork; `open` is for each worker.

    :ivar base: the environment that all programs have (`base_environment`).
    :ivar runner: runs the programs.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.base: Mapping[str, str] = base_environment(os.environ, options.pass_environment, options.environment)
        self.runner = ProgramRunner(options, self.base)

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self.runner.open(worker)

    def close(self) -> None:
        """End what still runs, in a worker, after its last connection."""
        self.runner.close()

    def child_ended(self, child: Child) -> None:
        """Take note that a program has been reaped, or (in the dispatcher) a worker."""
        self.runner.child_ended(child)
