"""The header in which a proxy names its client (the PROXY protocol).

Theory. The header is looked at (MSG_PEEK) before it is taken, so no byte after it ever is. What the client has sent
stays with the kernel for the next reader: the plugin, TLS, or a program that is given the connection. While the header
is incomplete, all that has come belongs to it, and is taken; otherwise the loop would spin.

Most often the header comes together with the connection. Then it is read at once, and nothing is watched or timed.

A header is believed, so its sender matters. A connection from an address that is not in ``trusted_proxies`` has
bypassed the proxy, and is closed. On a unix socket the permissions of its file control access.

If limits depend on the client's address, the dispatcher is asked before any plugin is told of the connection
(admission_client.py). A connection that the proxy opens for itself needs no answer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from ..config.model import has_to_ask
from ..core.event_loop import READ, EventLoop
from ..core.throttle import Throttle
from ..net.addresses import format_peer
from ..net.proxy_protocol import Header, parse
from .admission_client import AdmissionClient
from .connection import Connection

if TYPE_CHECKING:
    from ..config.model import ListenerConfig


log = logging.getLogger("poolsrv.proxied")

PEEK_SIZE: Final = 1024  # bytes; more than most headers have
LOG_INTERVAL: Final = 60.0  # seconds


class Opener(Protocol):
    """The service of the listener that proxies connect to."""

    name: str
    loop: EventLoop

    def trusts(self, host: str) -> bool:
        """Whether what a proxy at this address says of its clients is believed."""

    def open_identified(self, connection: Connection) -> None:
        """The client is known, and admitted: serve it."""


class ProxyHeaders:
    """The headers of one listener's connections.

    :param admission_client: where the listener has limits that go by the client.
    :ivar refused: connections that have been closed for want of a good header.
    """

    def __init__(self, opener: Opener, config: ListenerConfig, admission_client: AdmissionClient | None) -> None:
        self.opener = opener
        self.timeout = config.proxy_header_timeout
        self.refused = 0
        self.admission_client = admission_client if has_to_ask(config) else None
        self._message = Throttle(LOG_INTERVAL)

    def read_header(self, connection: Connection) -> None:
        """Learn who the client of a new connection is, and then have it served."""
        if self.opener.trusts(connection.peer[0]):
            HeaderReader(self, connection).start()
        else:
            self.refuse(connection, "it is none of trusted_proxies")

    def refuse(self, connection: Connection, why: str) -> None:
        """Close it. Count it, and say so now and then."""
        self.refused += 1
        name, peer = self.opener.name, format_peer(connection.peer)
        log.debug("%s: PROXY protocol: refused a connection from %s: %s", name, peer, why)
        if self._message.allows(self.opener.loop.now):
            log.warning(
                "%s: PROXY protocol: connections are refused (number %d in this worker, from %s): %s",
                name,
                self.refused,
                peer,
                why,
                extra={"listener": name, "connection": connection.id, "peer": peer, "reason": why},
            )
        connection._refuse("no PROXY header")


class HeaderReader:
    """Reads the header of one connection."""

    __slots__ = ("_connection", "_data", "_proxies")

    def __init__(self, proxies: ProxyHeaders, connection: Connection) -> None:
        self._proxies = proxies
        self._connection = connection
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
        connection = self._connection
        try:
            seen = connection._look_at_input(PEEK_SIZE)
            header = parse(self._data + seen) if seen else None
            connection._discard_input(len(seen) if header is None else header.length - len(self._data))
        except BlockingIOError:
            return False
        except ValueError as error:
            self._proxies.refuse(connection, str(error))
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
        if header.peer is None:  # the proxy's own connection, such as a health check
            self._serve()
            return
        connection._identify(header.peer, header.local)
        if admission_client is None:
            self._serve()
        else:
            admission_client.ask_admission(connection, self._serve)

    def _serve(self) -> None:
        self._proxies.opener.open_identified(self._connection)

    def _closed(self) -> None:
        """Handle a close before the header was complete, such as a load balancer's health check."""
        log.debug("%s: closed before its PROXY header was there", self._connection)
        self._connection._end("no PROXY header")

    def _too_late(self) -> None:
        self._proxies.refuse(self._connection, "no whole header within proxy_header_timeout")
