"""The server's status over HTTP: for Prometheus, for load balancers, for scripts, and as a page for a browser.

A worker of its own serves it (`apart`), and asks the dispatcher: so it answers while all other workers hang.

- `/metrics`: `exposition`, in Prometheus's two text formats.
- `/status.json`: the record, as `poolsrv status --json` prints it.
- `/healthz`, `/readyz`: 200 or 503, with the reason.
- `/events`: `event_stream`, the record once a second, as server-sent events; the page lives on them.
- `/`: `page`, one file that shows what `/events` says.

It only reads: nothing that a client sends changes anything, or comes back in an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import ClassVar
from urllib.parse import urlsplit

from poolsrv_http import HttpOptions, HttpPlugin, Request, Response

from poolsrv import ConfigError, Connection, ServerReport, Worker, hookimpl

from .event_stream import RETRY_AFTER, EventStream
from .page_answer import PageAnswer
from .shared_work import SharedWork

__all__ = ["Status"]

log = logging.getLogger("poolsrv.status")

TEXT = "text/plain; charset=utf-8"
# Of every answer: it is of this moment, and only for who has asked.
FRESH = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Answer = Callable[[Request, Response, ServerReport], None]


class Status(HttpPlugin):
    """Answers requests for the server's status."""

    class Options(HttpOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """The options of the status plugin: those of `HttpOptions`."""

    apart = True
    defaults: ClassVar = {"max_connections": 256}

    def __init__(self, options: Options) -> None:
        try:
            from . import exposition
        except ImportError as error:
            raise ConfigError("", f"needs prometheus-client ({error}): pip install prometheus-client") from None
        super().__init__(options)
        self._encode = exposition.encode
        self._page = PageAnswer()
        self._answers: dict[str, Answer] = {
            "/metrics": self._metrics,
            "/status.json": _json,
            "/healthz": _health,
            "/readyz": _readiness,
        }
        self._worker: Worker
        self._events: EventStream
        self._encodings: SharedWork

    def explain(self, question: str) -> Iterator[tuple[str, str]]:
        """Explain what would answer a URL, or its path (for `poolsrv explain`)."""
        path = urlsplit(question).path or "/"
        if path in self._answers or path == "/events":
            yield "answer", f"the server's status, {path}"
        elif path == "/":
            yield "answer", "the live page"
        else:
            yield "answer", "404: there is nothing of that name"

    @hookimpl
    def on_worker_start(self, worker: Worker) -> None:
        super().on_worker_start(worker)
        self._worker = worker
        self._events = EventStream(worker)
        self._encodings = SharedWork(worker, self._encode)

    @hookimpl
    def on_drain(self, conn: Connection) -> None:
        self._events.close()  # browsers connect again, and reach the pool that serves
        super().on_drain(conn)

    def on_request(self, request: Request, response: Response) -> None:
        answer = self._answers.get(request.path)
        if answer is None and request.path not in ("/", "/events"):
            response.error(404)
        elif request.method not in ("GET", "HEAD"):
            response.error(405, headers={"Allow": "GET, HEAD"})
        elif answer is not None:
            self._worker.server_report(lambda report: answer(request, response, report))
        elif request.path == "/":
            self._page.answer(request, response)
        else:
            self._events.add(request, response)

    def _metrics(self, request: Request, response: Response, report: ServerReport) -> None:
        if report.status is None:
            _no_status(response, report)
            return

        def encoded(future: Future[tuple[bytes, str]]) -> None:
            if isinstance(future.exception(), OSError):  # no thread could be started: too many processes
                response.error(503, retry_after=RETRY_AFTER)
                return
            body, content_type = future.result()
            response.respond(200, body, {"Content-Type": content_type, **FRESH})

        # With many listeners it takes long, and `/healthz` is not to wait for it.
        self._encodings.ask(report, request.header("accept") or "", encoded)


def _json(request: Request, response: Response, report: ServerReport) -> None:
    if report.status is None:
        _no_status(response, report)
    else:
        response.respond(200, report.json() + b"\n", {"Content-Type": "application/json", **FRESH})


def _health(request: Request, response: Response, report: ServerReport) -> None:
    _say(response, report.health != "down", report.reason)


def _readiness(request: Request, response: Response, report: ServerReport) -> None:
    _say(response, report.is_ready, report.readiness)


def _no_status(response: Response, report: ServerReport) -> None:
    _say(response, False, report.reason)


def _say(response: Response, is_well: bool, line: str) -> None:
    headers = {"Content-Type": TEXT, **FRESH}
    if not is_well:
        headers["Retry-After"] = "1"
    response.respond(200 if is_well else 503, f"{line}\n".encode(errors="backslashreplace"), headers)
