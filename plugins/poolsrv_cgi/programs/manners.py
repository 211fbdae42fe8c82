"""The umask and the priority of programs. Neither can be set by posix_spawn."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from poolsrv import Child

from ..options import Options

__all__ = ["Manners"]

log = logging.getLogger("poolsrv.cgi")


class Manners:
    """Starts programs of one listener with their umask and priority.

    The worker itself has the umask for the moment of the start, and the program inherits it. The priority of its
    process group is changed after the start, so it holds for what the program may have started already.
    """

    def __init__(self, options: Options) -> None:
        self._umask = int(options.umask, 8) if options.umask else None
        self._nice = options.nice
        self._has_failed = False

    def start(self, start: Callable[[], Child]) -> Child:
        """Start a program. A priority that can't be set is logged, once.

        :raises OSError: as ``start`` does.
        """
        if self._umask is None:
            child = start()
        else:
            former = os.umask(self._umask)
            try:
                child = start()
            finally:
                os.umask(former)
        if self._nice:
            self._change_priority(child.pid)
        return child

    def _change_priority(self, group: int) -> None:
        try:
            os.setpriority(os.PRIO_PGRP, group, os.getpriority(os.PRIO_PROCESS, 0) + self._nice)
        except ProcessLookupError:
            pass  # it has ended
        except OSError as error:
            if not self._has_failed:
                log.warning("can't set the priority of programs (nice = %d): %s", self._nice, error.strerror)
            self._has_failed = True
