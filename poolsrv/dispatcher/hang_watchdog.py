"""The hang watchdog: finds workers that are silent for ``hang_timeout``, has them dump their stack, and kills them.

With ``hang_timeout``, each worker reports a few times within that time, busy or idle (worker/reporter.py).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from ..core.event_loop import EventLoop
from ..core.hang_signal import HANG_SIGNAL
from ..core.stack_dump import DUMP_LATE, DUMP_TIME, NamedInstance, StackDumpFile
from .worker_slot import WorkerSlot

log = logging.getLogger("poolsrv.pool")

CHECKS_PER_TIMEOUT: Final = 4


class HangWatchdog:
    """Watches the workers of a pool.

    :param workers: the workers that run, by pid; the worker manager changes it.
    :param timeout: seconds of silence; 0 watches none.
    :param plugins: those that may be to blame.
    :ivar dumping: pids of silent workers that are dumping their stack; one that reports is spared.
    """

    def __init__(
        self, loop: EventLoop, workers: Mapping[int, WorkerSlot], timeout: float, plugins: Sequence[NamedInstance]
    ) -> None:
        self._loop = loop
        self._workers = workers
        self._timeout = timeout
        self._interval = timeout / CHECKS_PER_TIMEOUT
        self._plugins = plugins
        self._files: dict[int, StackDumpFile] = {}  # by pid
        self.dumping: set[int] = set()

    def begin(self) -> None:
        """Begin to check."""
        if self._timeout:
            self._check()

    def add(self, pid: int, file: StackDumpFile) -> None:
        """Watch a worker that has been forked, and dumps its stack into this file."""
        self._files[pid] = file

    def remove(self, pid: int) -> None:
        """Forget a worker that has ended."""
        self.dumping.discard(pid)
        self._files.pop(pid).close()

    def close_inherited(self) -> None:
        """In a forked child: close its copies of the files."""
        for file in self._files.values():
            file.close()

    def _check(self, due: float | None = None) -> None:
        now = self._loop.now
        self._loop.call_later(self._interval, partial(self._check, now + self._interval))
        # Skip stopped workers. If this timer itself was late, this process was stopped too (Ctrl-Z stops all of them).
        late = due is not None and now - due > self._interval
        for pid, slot in self._workers.items():
            if late or slot.stopped:
                slot.last_report_at = now
            elif now - slot.last_report_at > self._timeout and pid not in self.dumping:
                self.dumping.add(pid)
                os.kill(pid, HANG_SIGNAL)
                self._kill_later(slot, pid, now - slot.last_report_at)

    def _kill_later(self, slot: WorkerSlot, pid: int, silence: float) -> None:
        self._loop.call_later(DUMP_TIME, partial(self._kill, slot, pid, silence, self._loop.now + DUMP_TIME))

    def _kill(self, slot: WorkerSlot, pid: int, silence: float, due: float) -> None:
        """Kill a worker, unless it has reported, ended or been stopped in the meantime."""
        if slot.pid != pid or pid not in self.dumping:
            return
        if slot.stopped:
            self.dumping.discard(pid)
            return
        if self._loop.now - due > DUMP_LATE:  # the worker perhaps could not run either
            self._kill_later(slot, pid, silence)
            return
        where = self._files[pid].describe(self._plugins)
        log.error(
            "worker %s (pid %d) has been silent for %.1f s, %s; killing it",
            slot.label,
            pid,
            silence,
            where,
            extra={**slot.tags, "reason": where},
        )
        os.kill(pid, signal.SIGKILL)
