"""Connections that come through a proxy: who the client is, the proxy says in a header (the PROXY protocol).

Theory. The header is looked at (MSG_PEEK) before it is taken, so that no byte behind it ever is: what the client has
sent stays with the kernel, for whoever reads next. That may be the plugin, TLS, or a program that is given the
connection. While the header is not whole, all that is there belongs to it, and is taken; otherwise the loop would spin
on it.

Most often the header comes together with the connection: then it is read at once, and nothing is watched or timed.

A header is believed, so it matters who sends it. A connection from an address that is none of ``trusted_proxies`` is
closed: it has come past the proxy. On a unix socket its file's permissions say who may connect.

Where limits go by who the client is, the dispatcher is asked before anybody hears of the connection (inquiries.py).
What the proxy opens for itself needs no answer.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

from ..config.model import has_to_ask
from ..core.event_loop import READ
from ..net.addresses import format_peer
from ..net.proxy_protocol import Header, parse
from .connection import Connection

if TYPE_CHECKING:
    from ..config.model import ListenerConfig
    from .service import Service


log = logging.getLogger("poolsrv.proxied")

PEEK_SIZE: Final = 1024  # bytes; more than most headers have
LOG_INTERVAL: Final = 60.0  # seconds


class Proxies:
    """The proxies in front of one listener, as a worker sees them.

    :ivar refused: connections that have been closed for want of a good header.
    """

    def __init__(self, service: Service, config: ListenerConfig) -> None:
        self.service = service
        self.timeout = config.proxy_header_timeout
        self.refused = 0
        self.admission_client = service.worker._admission_client if has_to_ask(config) else None
        self._told_at = float("-inf")

    def begin(self, connection: Connection) -> None:
        """Learn who the client of a new connection is, and then serve it; for the service, once."""
        if self.service.trusts(connection.peer[0]):
            HeaderReader(self, connection).start()
        else:
            self.refuse(connection, "it is none of trusted_proxies")

    def refuse(self, connection: Connection, why: str) -> None:
        """Close it. Count it, and say so now and then."""
        self.refused += 1
        name, peer = self.service.name, format_peer(connection.peer)
        log.debug("%s: PROXY protocol: refused a connection from %s: %s", name, peer, why)
        if self.service.loop.now - self._told_at >= LOG_INTERVAL:
            self._told_at = self.service.loop.now
            log.warning(
                "%s: PROXY protocol: connections are refused (number %d in this worker, from %s): %s",
                name,
                self.refused,
                peer,
                why,
                extra={"listener": name, "connection": connection.id, "peer": peer, "reason": why},
            )
        connection._reset_at_close()
        connection._end("no PROXY header")


class HeaderReader:
    """Reads the header of one connection."""

    __slots__ = ("_connection", "_data", "_proxies", "_sock")

    def __init__(self, proxies: Proxies, connection: Connection) -> None:
        self._proxies = proxies
        self._connection = connection
        self._sock = connection._sock
        self._data = b""  # of the header, as far as it has come

    def start(self) -> None:
        """Read what is there; wait for the rest."""
        if self._read():
            return
        self._connection._await_opening(READ, self._on_event, self._proxies.timeout, self._too_late)

    def _on_event(self, mask: int) -> None:
        self._read()

    def _read(self) -> bool:
        """Read what is there; True where that has decided about the connection."""
        try:
            seen = self._sock.recv(PEEK_SIZE, socket.MSG_PEEK)
            header = parse(self._data + seen) if seen else None
            self._sock.recv(len(seen) if header is None else header.length - len(self._data))
        except BlockingIOError:
            return False
        except ValueError as error:
            self._proxies.refuse(self._connection, str(error))
            return True
        except OSError:
            seen, header = b"", None
        if header is not None:
            self._identify(header)
            return True
        if not seen:
            self._closed()
            return True
        self._data += seen
        return False

    def _identify(self, header: Header) -> None:
        connection, admission_client = self._connection, self._proxies.admission_client
        connection._stage_over()
        if header.peer is None:
            self._serve()
            return
        connection.peer = header.peer
        connection._local = header.local
        if admission_client is None:
            self._serve()
        else:
            admission_client.ask_admission(connection, self._serve)

    def _serve(self) -> None:
        self._proxies.service.peer_known(self._connection)

    def _closed(self) -> None:
        """Closed before the header was whole: as load balancers do that only want to see whether somebody listens."""
        log.debug("%s: closed before its PROXY header was there", self._connection)
        self._connection._end("no PROXY header")

    def _too_late(self) -> None:
        self._proxies.refuse(self._connection, "no whole header within proxy_header_timeout")
