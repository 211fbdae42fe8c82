"""`/events`: the server's status once a second, as server-sent events (WHATWG HTML, section 9.2).

Two events come each second. `health` has the verdict, also when there is no status to be had:

    event: health
    data: {"health":"well","reason":"well: 2 workers, 3 connections","is_ready":true,"readiness":"ready: ..."}

`status` has the record of `/status.json` in one line, if the dispatcher has given one:

    event: status
    data: {"time":1790000000.0,"server":{...},"totals":{...},"workers":[...], ...}

The first two come at once. The dispatcher is asked once for all clients, and not at all while there are none. Nothing
is kept for a client that reads too slowly: it misses events, and after `PATIENCE` seconds without one its connection is
reset. On a reload and a stop the stream ends; a browser connects again after the two seconds that `retry` says.
"""

from __future__ import annotations

import msgspec
from poolsrv_http import Request, Response

from poolsrv import Handle, ServerReport, Worker

__all__ = ["EventStream"]

MOST_CLIENTS = 64
INTERVAL = 1.0  # seconds
PATIENCE = 10  # seconds for a client to read
RETRY_AFTER = 5  # seconds
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Accel-Buffering": "no",  # nginx passes each event on at once
}
_BEGIN = b"retry: 2000\n\n"
_COME_BACK = b"retry: 100\n\n"  # on another connection, which leads to the pool that serves


class EventStream:
    """All clients of `/events`, in one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._missed: dict[Response, int] = {}  # by client, events in a row that it has missed
        self._new: list[Response] = []  # clients that have had no event
        self._ticks: Handle | None = None
        self._is_asking = False

    def add(self, request: Request, response: Response) -> None:
        """Serve a client from now on, or refuse it."""
        if len(self._missed) >= MOST_CLIENTS:
            response.error(503, retry_after=RETRY_AFTER)
            return
        if self._worker.draining:
            # On the connection of a stream that has just ended. After an error the browser would not come back.
            response.start(200, HEADERS, first=_COME_BACK)
            response.end()
            return
        response.start(200, HEADERS, first=_BEGIN)
        if request.method == "HEAD":
            response.end()
            return
        self._missed[response] = 0
        self._new.append(response)
        response.on_cancel = lambda: self._missed.pop(response, None)
        if self._ticks is None:
            self._ticks = self._worker.every(INTERVAL, self._tick)
        if not self._is_asking:
            self._ask()

    def close(self) -> None:
        """End all streams."""
        clients, self._missed, self._new = list(self._missed), {}, []
        for response in clients:
            response.end()
        self._rest()

    def _rest(self) -> None:
        if self._ticks is not None and not self._missed:
            self._ticks.cancel()
            self._ticks = None

    def _tick(self) -> None:
        self._rest()
        if self._missed and not self._is_asking:
            self._new = list(self._missed)
            self._ask()

    def _ask(self) -> None:
        self._is_asking = True
        self._worker.server_report(self._send)

    def _send(self, report: ServerReport) -> None:
        self._is_asking = False
        clients, self._new = self._new, []
        event = _event_of(report)
        for response in clients:
            if response not in self._missed:
                continue  # it is gone
            if not response.congested:
                self._missed[response] = 0
                response.send(event)
            elif self._missed[response] >= PATIENCE:
                del self._missed[response]
                response.abort("it reads too slowly")
            else:
                self._missed[response] += 1


def _event_of(report: ServerReport) -> bytes:
    verdict = {
        "health": report.health,
        "reason": report.reason,
        "is_ready": report.is_ready,
        "readiness": report.readiness,
    }
    event = b"event: health\ndata: %b\n\n" % msgspec.json.encode(verdict)
    if report.status is not None:
        event += b"event: status\ndata: %b\n\n" % report.compact_json()
    return event
