"""How workers have ended: for the log, the metrics and the plugins."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Sequence

from ..core.cgroups import OomCounter
from ..core.processes import describe_exit
from ..ipc import figures
from ..net.programs import Child
from ..worker.spec import ListenerSpec
from .ledger import Ledger

log = logging.getLogger("poolsrv.pool")


class WorkerEnds:
    """Counts them, and tells others.

    :param listeners: their plugins are told.
    :ivar cpu: seconds that workers which have ended used, with the programs that they had waited for.
    """

    def __init__(self, listeners: Sequence[ListenerSpec], ledger: Ledger) -> None:
        self._listeners = listeners
        self._ledger = ledger
        self._oom = OomCounter()
        self.cpu = 0.0

    def count(self, status: int, rusage: resource.struct_rusage) -> str:
        """Count a worker that has been reaped.

        :param status: its wait status.
        :returns: how it has ended, for the log.
        """
        returncode = os.waitstatus_to_exitcode(status)
        self.cpu += rusage.ru_utime + rusage.ru_stime
        kind = "killed" if returncode < 0 else "failed" if returncode else "exited"
        self._ledger.add(figures.WORKER_ENDS, how=kind)
        if returncode == -signal.SIGKILL and self._oom.has_killed():
            return f"{describe_exit(returncode)} by the kernel, out of memory"
        return describe_exit(returncode) + (" (core dumped)" if os.WCOREDUMP(status) else "")

    def tell_plugins(self, pid: int, returncode: int, rusage: resource.struct_rusage) -> None:
        """Call ``on_child_exit`` of every listener's plugins."""
        child = Child(pid, "worker")
        child.reaped(returncode, rusage)
        for listener in self._listeners:
            if listener.hooks.on_child_exit is not None:
                try:
                    listener.hooks.on_child_exit(child, None)
                except BaseException:
                    name = listener.config.name
                    log.exception("%s: a wrapper of on_child_exit failed", name, extra={"listener": name})
