"""A server of the page whose events are those that a test has written."""

from __future__ import annotations

import json
import select
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final

import msgspec
from poolsrv_status.page import CONTENT_SECURITY_POLICY, page

from poolsrv.ipc.metrics import BOUNDS, Distribution
from poolsrv.ipc.stats import (
    HistogramStats,
    LauncherStats,
    ListenerStats,
    MetricStats,
    ProgramStats,
    RefusalStats,
    SeriesStats,
    ServerStats,
    Status,
    Totals,
    WorkerStats,
)

BEGAN: Final = 1_795_000_000.0
Document = dict[str, Any]


class Scripted:
    """Sends the same events to every tab: those so far to a new one, then each that comes."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._grown = threading.Condition()
        self._epoch = 0
        self.answers = 200  # the status of the next answer to /events
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/":
                    self._respond(200, "text/html; charset=utf-8")
                    self.wfile.write(page())
                elif self.path == "/events":
                    self._respond(scripted.answers, "text/event-stream" if scripted.answers == 200 else "text/plain")
                    if scripted.answers == 200:
                        scripted._follow(self)
                else:
                    self._respond(404, "text/plain")

            def _respond(self, status: int, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def _follow(self, handler: BaseHTTPRequestHandler) -> None:
        sent, epoch = 0, self._epoch
        handler.wfile.write(b"retry: 100\n\n")
        while epoch == self._epoch and not select.select([handler.connection], [], [], 0)[0]:
            with self._grown:
                events = self._events[sent:]
                sent += len(events)
                if not events:
                    self._grown.wait(0.1)
            try:
                handler.wfile.write(b"".join(events))
            except OSError:
                return

    def begin(self) -> None:
        """Forget the events of an earlier test."""
        with self._grown:
            self._events = []
            self.answers = 200

    def send(
        self,
        document: Document | None = None,
        health: str = "well",
        reason: str = "2 workers, 1 connection",
        ready: bool = True,
    ) -> None:
        """Send a verdict, and a document."""
        verdict = {"health": health, "reason": f"{health}: {reason}", "is_ready": ready and health != "down"}
        verdict["readiness"] = f"{'ready' if verdict['is_ready'] else 'not ready'}: {verdict['reason']}"
        text = f"event: health\ndata: {json.dumps(verdict)}\n\n"
        if document is not None:
            text += f"event: status\ndata: {json.dumps(document)}\n\n"
        with self._grown:
            self._events.append(text.encode())
            self._grown.notify_all()

    def hang_up(self) -> None:
        """End all streams."""
        with self._grown:
            self._epoch += 1
            self._grown.notify_all()

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.hang_up()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def worker(slot: int, pid: int, state: str = "serving") -> WorkerStats:
    counts = dict.fromkeys(("open", "accepted", "events", "bytes_in", "bytes_out", "restarts"), 1)
    rates = dict.fromkeys(("accepted_rate", "events_rate", "bytes_in_rate", "bytes_out_rate"), 1.5)
    times = {"age": 70.0, "cpu": 1.0, "cpu_percent": 2.0, "silent": 0.1, "lag": 0.0007}
    fields = {"slot": slot, "pid": pid, "state": state, "memory": 20 << 20, **counts, **rates, **times}
    return msgspec.convert(fields, WorkerStats)


def listener(name: str, handler: str = "echo", refusals: dict[str, int] | None = None) -> ListenerStats:
    return ListenerStats(
        name=name, handler=handler, plugins=[], addresses=["127.0.0.1:7007"], open=1, max_connections=20,
        accepted=5, accepted_rate=1.0, queued=0, waiting=0, homeless=0, paused=False, refusals=refusals or {},
    )  # fmt: skip


def program(pid: int, command: str) -> ProgramStats:
    return ProgramStats(pid=pid, worker=0, worker_pid=11, command=command, age=3.0, cpu=0.5, memory=1 << 20)


def launcher(pid: int, user: str, listener: str = "hello") -> LauncherStats:
    return LauncherStats(
        pid=pid, listener=listener, user=user, worker=0, worker_pid=11, age=3.0, cpu=0.5, memory=1 << 20, programs=2
    )


def refusal(peer: str, listener: str = "hello") -> RefusalStats:
    return RefusalStats(time=BEGAN, listener=listener, peer=peer, reason="max_connections")


def histogram(name: str, values: list[float], labels: dict[str, str] | None = None) -> MetricStats:
    found = Distribution()
    for value in values:
        found.observe(value)
    buckets = [(BOUNDS[bucket] if bucket < len(BOUNDS) else None, times) for bucket, times in found.filled()]
    quantiles = [found.quantile(share) for share in (0.5, 0.9, 0.99)]
    stats = HistogramStats(found.count, found.sum, buckets, *quantiles)
    return MetricStats(name, "histogram", "", [SeriesStats(labels or {"listener": "hello"}, histogram=stats)])


def document(second: float, accepted: int = 100, *, pid: int = 10, generation: int = 1, **parts: Any) -> Document:
    """The record of a server, so many seconds after its start."""
    server = ServerStats(
        version="0.1.0", config=parts.pop("config", "/etc/poolsrv.toml"), pid=pid, dispatcher_pid=pid + 1000,
        generation=generation, state="serving", started_at=BEGAN + pid, uptime=second, pool_started_at=BEGAN,
        restarts=0, last_reload=parts.pop("last_reload", None), leaving=[],
    )  # fmt: skip
    totals = Totals(
        open=1, accepted=accepted, accepted_rate=0.0, events_rate=0.0, bytes_in_rate=0.0, bytes_out_rate=0.0,
        programs=len(parts.get("programs", ())), cpu_percent=2.0, memory=40 << 20, cpu=second / 50,
    )  # fmt: skip
    status = Status(
        time=BEGAN + second, server=server, totals=totals, workers=parts.pop("workers", [worker(0, 11), worker(1, 12)]),
        listeners=parts.pop("listeners", [listener("hello")]), programs=parts.pop("programs", []),
        launchers=parts.pop("launchers", []), recent_refusals=parts.pop("refusals", []),
        metrics=parts.pop("metrics", []),
    )  # fmt: skip
    assert not parts
    found: Document = msgspec.to_builtins(status)
    return found
