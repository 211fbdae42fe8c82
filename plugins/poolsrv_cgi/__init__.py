"""Run programs for clients: CGI/1.1 over HTTP, the classic raw protocol of one line, or inetd's.

`options` is what can be set. `scripts` finds what to run; `environment` is what goes into a program, `cgi_header` what
comes out of it; these three know of no connection. `programs` runs it, within limits, and `warm` does so for Python
without the start of an interpreter. A server for each protocol puts them together on a connection: `line_server`,
`inetd_server`, and for CGI `exchange` with `output`, on top of `poolsrv_http`, which is HTTP itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from poolsrv_http import HttpServer

from poolsrv import Child, ConfigError, Connection, Worker, hookimpl

from .exchange import CgiService
from .inetd_server import InetdServer
from .line_server import LineServer
from .options import Options as CgiOptions
from .options import problems
from .programs.runner import ProgramRunner

__all__ = ["Cgi"]

log = logging.getLogger("poolsrv.cgi")


class Cgi:
    """Runs programs: by CGI/1.1 over HTTP, by a line that names one, or one for each connection as inetd does.

    One instance per listener; the protocol's server does the work.
    """

    Options = CgiOptions

    def __init__(self, options: CgiOptions) -> None:
        for key, message in problems(options):
            raise ConfigError(key, message)
        self._runner = ProgramRunner(options)
        self._server: HttpServer | LineServer | InetdServer
        self._service: CgiService | None = None
        self.half_close = "finish"
        if options.protocol == "line":
            self._server = LineServer(self._runner)
        elif options.protocol == "inetd":
            self._server = InetdServer(self._runner)
        else:
            self._service = CgiService(self._runner)
            self._server = server = HttpServer(options, self._service.on_request, log)
            self.believes_proxies = server.believes_proxies
            self.half_close = "timely"

    @property
    def capture_folder(self) -> Path | None:
        """Where captures are (for `poolsrv replay`)."""
        return self._runner.options.capture

    def explain(self, question: str) -> Iterator[tuple[str, str]]:
        """Explain what would answer a URL, or a line, or a connection (for `poolsrv explain`).

        :raises ValueError: nobody could ask that.
        """
        from . import explain  # nothing else needs it

        if isinstance(self._server, InetdServer):
            return explain.explain_inetd(self._runner)
        if isinstance(self._server, LineServer):
            return explain.explain_line(question, self._runner, self._server.paths)
        assert self._service is not None
        return explain.explain_http(question, self._runner, self._service)

    @hookimpl
    def on_worker_start(self, worker: Worker) -> None:
        self._runner.open(worker)
        self._server.open(worker)
        if self._service is not None:
            self._service.open(worker)

    @hookimpl
    def on_worker_stop(self, worker: Worker) -> None:
        self._runner.close()

    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        self._server.on_connection_init(conn)

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        self._server.on_readable(conn)

    @hookimpl
    def on_writable(self, conn: Connection) -> None:
        self._server.on_writable(conn)

    @hookimpl
    def on_child_exit(self, child: Child, conn: Connection | None) -> None:
        self._runner.child_ended(child)
        if child.role == "worker" and isinstance(self._server, HttpServer):
            self._server.on_child_exit(child)

    @hookimpl
    def on_connection_close(self, conn: Connection, reason: str) -> None:
        self._server.on_connection_close(conn)

    @hookimpl
    def on_drain(self, conn: Connection) -> None:
        self._server.on_drain(conn)
