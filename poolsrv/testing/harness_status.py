"""What ``Worker.server_report`` answers in a harness: a server of one listener, whose one worker is that of the plugin.

There is no dispatcher. So what only a dispatcher can tell is 0 or empty: rates, bytes, queues, refusals, metrics.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ..core.event_loop import EventLoop
from ..ipc.stats import ListenerStats, ServerStats, Status, Totals, WorkerStats
from ..worker.status_client import ServerReport, report_on

if TYPE_CHECKING:
    from ..worker.spec import ListenerSpec

VERSION: Final = "0"  # not that of an installed poolsrv: no test is to depend on it


class Figures(NamedTuple):
    """What a worker of a harness tells of itself."""

    slot: int
    is_draining: bool
    open: int
    accepted: int
    programs: int


class HarnessStatus:
    """Answers in the place of a ``StatusClient``.

    :param guarded: called as ``guarded(what, callback)``: calls a plugin's callback inside the fault boundary.
    :param figures: called for each answer.
    """

    def __init__(
        self,
        loop: EventLoop,
        listener: ListenerSpec,
        guarded: Callable[[str, Callable[[], object]], object],
        figures: Callable[[], Figures],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._guarded = guarded
        self._figures = figures
        self._began = time.time()

    def ask(self, done: Callable[[ServerReport], object]) -> None:
        """Call ``done(report)`` once the loop has had its turn, with the status of that moment."""
        self._loop.call_later(0.0, lambda: self._guarded("server_report", lambda: done(report_on(self._status()))))

    def _status(self) -> Status:
        config, now, pid = self._listener.config, time.time(), os.getpid()
        slot, is_draining, is_open, accepted, programs = self._figures()
        age = now - self._began
        return Status(
            time=now,
            server=ServerStats(
                version=VERSION,
                config="",
                pid=pid,
                dispatcher_pid=pid,
                generation=1,
                state="stopping" if is_draining else "serving",
                started_at=self._began,
                uptime=age,
                pool_started_at=self._began,
                restarts=0,
                last_reload=None,
                leaving=[],
            ),
            totals=Totals(
                open=is_open,
                accepted=accepted,
                accepted_rate=0.0,
                events_rate=0.0,
                bytes_in_rate=0.0,
                bytes_out_rate=0.0,
                programs=programs,
                cpu_percent=0.0,
                memory=0,
            ),
            workers=[
                WorkerStats(
                    slot=slot,
                    pid=pid,
                    state="draining" if is_draining else "serving",
                    age=age,
                    open=is_open,
                    accepted=accepted,
                    events=0,
                    bytes_in=0,
                    bytes_out=0,
                    accepted_rate=0.0,
                    events_rate=0.0,
                    bytes_in_rate=0.0,
                    bytes_out_rate=0.0,
                    cpu=0.0,
                    cpu_percent=0.0,
                    memory=0,
                    restarts=0,
                    silent=0.0,
                )
            ],
            listeners=[
                ListenerStats(
                    name=config.name,
                    handler=config.handler,
                    plugins=list(config.plugins),
                    addresses=list(map(str, config.bind)),
                    open=is_open,
                    max_connections=config.max_connections,
                    accepted=accepted,
                    accepted_rate=0.0,
                    queued=None,
                    waiting=0,
                    homeless=0,
                    paused=False,
                    refusals={},
                )
            ],
            programs=[],
            recent_refusals=[],
        )
