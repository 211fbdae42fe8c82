"""The answer to HAProxy's agent-check: how much of its share of the clients this server can take.

HAProxy connects, sends nothing, and reads one line (its Configuration Manual, "agent-check"): "up 75%", or "down" and a
reason. It never says "ready" or "drain": these would undo what an administrator has set in HAProxy by hand.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from poolsrv import Connection, ServerReport, Worker, hookimpl

NOT_COUNTED = ("agent", "status")  # handlers of listeners whose clients are not HAProxy's

Percent = Annotated[int, msgspec.Meta(ge=1, le=100)]


class Agent:
    """Answers HAProxy's agent-check with the share of the clients that this server can take."""

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        """The options.

        :ivar least: the percentage that a server without any room asks for: with none it could not show that it has
            room again. Other servers may have even less.
        """

        least: Percent = 10

    apart = True  # it answers while all workers are busy, and may ask how busy they are
    defaults: ClassVar = {"max_connections": 64, "idle_timeout": 10.0}

    def __init__(self, options: Options) -> None:
        self._least = options.least
        self._worker: Worker

    @hookimpl
    def on_worker_start(self, worker: Worker) -> None:
        self._worker = worker

    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        conn.hold()
        self._worker.server_report(lambda report: self._answer(conn, report))

    def _answer(self, conn: Connection, report: ServerReport) -> None:
        conn.send(answer(report, self._least).encode(errors="replace"))
        conn.close()


def answer(report: ServerReport, least: int) -> str:
    """Say whether the server wants clients, and what percentage of its usual share."""
    if not report.is_ready or report.status is None:
        return f"down#{report.readiness}\n"
    return f"up {max(least, 100 - round(100 * load(report)))}%\n"


def load(report: ServerReport) -> float:
    """Tell how busy the server is, from 0 to 1.

    It is as busy as its workers' CPUs (the mean of 5 seconds), or as the listener that has the least room.
    """
    assert report.status is not None
    status = report.status
    busy = [status.totals.cpu_percent / 100 / max(1, len(status.workers))]
    full = [each for each in status.listeners if each.max_connections and each.handler not in NOT_COUNTED]
    busy += [each.open / each.max_connections for each in full]
    return min(1.0, max(busy))
