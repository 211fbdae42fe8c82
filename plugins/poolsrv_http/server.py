"""An HTTP/1.1 server on the connections of one listener, and the base class of plugins that are one."""

from __future__ import annotations

import logging
from typing import ClassVar

import msgspec

from poolsrv import Child, ConfigError, Connection, Worker, hookimpl

from .connection import Handler, HttpConnection
from .options import HttpOptions, http_problems
from .request import Request
from .response import Response
from .shared import Shared

__all__ = ["HttpPlugin", "HttpServer"]


class HttpServer:
    """One per listener. It is made in the parent; a plugin passes on to it what its hooks are told.

    :param options: the plugin's own, which inherit from `HttpOptions`.
    :param handler: called as `handler(request, response)` for each request.
    :param log: for what concerns no connection.
    """

    def __init__(self, options: HttpOptions, handler: Handler, log: logging.Logger | None = None) -> None:
        self._shared = Shared(options, log or logging.getLogger("poolsrv.http"))
        self._handler = handler

    @property
    def believes_proxies(self) -> bool:
        """Whether proxies say who their clients are: for the plugin's attribute of the same name."""
        return bool(self._shared.forwarding.names)

    def open(self, worker: Worker) -> None:
        """Of `on_worker_start`.

        :raises ConfigError: the access log can't be opened.
        """
        self._shared.open(worker)

    def on_connection_init(self, conn: Connection) -> None:
        """A new client: it has `header_timeout` for its first request. `conn.state` is the server's."""
        conn.state = HttpConnection(self._shared, self._handler, conn)

    def on_readable(self, conn: Connection) -> None:
        """More of a head, of a body, or of what comes after it."""
        conn.state.on_readable()

    def on_writable(self, conn: Connection) -> None:
        """The client has caught up."""
        conn.state.on_writable()

    def on_connection_close(self, conn: Connection) -> None:
        """The client is gone, or the connection has done its work."""
        if conn.state is not None:  # it is None where on_connection_init has failed
            conn.state.gone()
            conn.state = None  # no reference cycle

    def on_drain(self, conn: Connection) -> None:
        """No further request on this connection; one that is being served, or on its way, may finish."""
        conn.state.drain()

    def on_child_exit(self, child: Child) -> None:
        """In the parent, a worker has been reaped: what it has kept of bodies is gone with it."""
        if child.role == "worker":
            self._shared.spooled.worker_ended(child.pid)


class HttpPlugin:
    """A plugin that answers HTTP requests: inherit from it, and fill `on_request`.

    A plugin with options of its own has `Options` inherit from `HttpOptions`, and calls `super().__init__(options)`.

    :ivar options: as the config has them.
    :ivar http: the server.
    :ivar believes_proxies: whether the options name fields that proxies set.
    """

    Options: ClassVar[type[msgspec.Struct]] = HttpOptions
    half_close = "timely"

    def __init__(self, options: HttpOptions) -> None:
        """
        :raises ConfigError: an option is wrong.
        """
        for key, message in http_problems(options):
            raise ConfigError(key, message)
        self.options = options
        self.http = HttpServer(options, self.on_request)
        self.believes_proxies = self.http.believes_proxies

    def on_request(self, request: Request, response: Response) -> None:
        """A request is here: its head; the body may still be on its way. Answer now or later."""
        raise NotImplementedError

    @hookimpl
    def on_worker_start(self, worker: Worker) -> None:
        self.http.open(worker)

    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        self.http.on_connection_init(conn)

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        self.http.on_readable(conn)

    @hookimpl
    def on_writable(self, conn: Connection) -> None:
        self.http.on_writable(conn)

    @hookimpl
    def on_connection_close(self, conn: Connection, reason: str) -> None:
        self.http.on_connection_close(conn)

    @hookimpl
    def on_drain(self, conn: Connection) -> None:
        self.http.on_drain(conn)

    @hookimpl
    def on_child_exit(self, child: Child) -> None:
        self.http.on_child_exit(child)
