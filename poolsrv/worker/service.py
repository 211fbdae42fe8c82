"""One listener, as a worker serves it: its connections, the hooks resolved to callers, idleness and deadlines."""

from __future__ import annotations

import logging
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ipc.worker_channel import AcceptedConnection
from ..net.access_list import AccessList, number_of
from ..net.addresses import client_name, format_peer
from ..net.descriptor import CONNECTING, OPEN
from ..net.programs import Child
from .connection import Connection
from .deadlines import Deadlines
from .hooks import Caller, Hooks
from .proxy_header import Proxies

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config.model import ListenerConfig
    from ..core.event_loop import EventLoop
    from ..net.tls import ServerTls
    from .process import Worker


log = logging.getLogger("poolsrv.plugins")

# A sweep for idle connections runs at most this often per idle_timeout: how late a connection may be closed.
SWEEPS_PER_TIMEOUT = 20
HANDSHAKE_LOG_INTERVAL = 60.0  # seconds


class Service:
    """Exists in each worker that serves the listener.

    :param half_close: ``"finish"``, ``"abort"`` or ``"timely"``, the handler's default applied.
    :param server_tls: where the listener has TLS.
    :param base: the config file's directory, against which the paths of unix sockets count.
    """

    def __init__(
        self,
        worker: Worker,
        loop: EventLoop,
        config: ListenerConfig,
        hooks: Hooks,
        half_close: str,
        base: Path,
        server_tls: ServerTls | None = None,
    ) -> None:
        self.worker = worker
        self.loop = loop
        self.name = config.name
        self.hooks = hooks
        self.base = base
        self.max_unsent = config.max_unsent
        self.half_close = half_close
        self.watches_half_close = half_close != "finish"
        self.has_further_plugins = len(hooks.plugins) > 1
        self.on_connection_init = hooks.on_connection_init
        self.on_readable = hooks.on_readable or _ignore
        self.on_writable = hooks.on_writable
        self.on_connection_close = hooks.on_connection_close
        self.connections: dict[int, Connection] = {}
        self.bytes_in = 0  # of closed connections
        self.bytes_out = 0
        self._trusted = AccessList(config.trusted_proxies, ()) if config.trusted_proxies else None
        self._idle_timeout = config.idle_timeout
        self._sweep_due = False
        self._begin: Callable[[Connection], object] = (
            Proxies(self, config).begin if config.proxy_protocol else methodcaller("_begin")
        )
        self._make = Connection if server_tls is None else _over_tls(server_tls)
        self.handshake_timeout = server_tls.handshake_timeout if server_tls is not None else 0.0
        self.failed_handshakes = 0
        self._handshakes_told_at = float("-inf")
        # For those that are over their lifetime and may finish: as in a worker that is to end.
        self._last_call = Deadlines(loop, worker._config.pool.graceful_timeout, _always, _out_of_time)
        self._deadlines: list[Deadlines] = []  # that begin with a connection
        if config.first_byte_timeout:
            self._deadlines.append(Deadlines(loop, config.first_byte_timeout, _is_awaited, _first_byte_is_late))
        if config.connection_lifetime:
            self._deadlines.append(Deadlines(loop, config.connection_lifetime, _always, self._lifetime_over))
        self._concerning: Connection | None = None  # that a notification is being called for
        hooks.fault_handler = self._notification_failed

    # --- connections

    def open(self, handed: AcceptedConnection) -> None:
        """Make a connection of what the dispatcher has handed over, and begin to serve it."""
        peer = handed.peer
        name = peer if type(peer) is tuple and len(peer) == 2 else client_name(peer)
        connection = self._make(self, handed.fd, handed.id, name)
        self.connections[handed.id] = connection
        if self._idle_timeout and not self._sweep_due:
            self._sweep_in(self._idle_timeout)
        for deadlines in self._deadlines:
            deadlines.add(connection)
        self._begin(connection)

    def peer_known(self, connection: Connection) -> None:
        """A proxy has said who its client is: serve it."""
        connection._begin()
        self.opened_after_drain(connection)

    def opened_after_drain(self, connection: Connection) -> None:
        """Plugins have heard of the connection only now, after a header or a handshake: of those that were there when
        the worker began to drain, all others have been told of that."""
        if self.worker.draining:
            self._drain_one(connection)

    def closed(self, connection: Connection) -> None:
        """The connection's descriptor is closed: the last that is heard of it."""
        del self.connections[connection.id]
        if self._deadlines:
            for deadlines in (*self._deadlines, self._last_call):
                deadlines.discard(connection)
        self.bytes_in += connection.bytes_in
        self.bytes_out += connection.bytes_out
        self.worker._connection_closed(connection.id)

    def handshake_failed(self, connection: Connection, why: str) -> None:
        """Count it, and say so now and then: scanners make it happen all the time."""
        self.failed_handshakes += 1
        log.debug("%s: TLS handshake with %s failed: %s", self.name, format_peer(connection.peer), why)
        if self.loop.now - self._handshakes_told_at >= HANDSHAKE_LOG_INTERVAL:
            self._handshakes_told_at = self.loop.now
            log.info(
                "%s: a TLS handshake has failed (number %d in this worker, with %s): %s",
                self.name,
                self.failed_handshakes,
                format_peer(connection.peer),
                why,
                extra={"listener": self.name, "connection": connection.id, "reason": why},
            )

    def drain(self) -> None:
        """Tell every connection that the worker is to end."""
        if self.hooks.on_drain is not None:
            for connection in list(self.connections.values()):
                self._drain_one(connection)

    def _drain_one(self, connection: Connection) -> None:
        on_drain = self.hooks.on_drain
        if on_drain is not None and connection._state == OPEN and connection not in self._last_call:
            connection._guarded("on_drain", on_drain, connection)

    def abort_all(self, reason: str) -> None:
        """End every connection at once."""
        for connection in list(self.connections.values()):
            connection.abort(reason)

    def abandon(self) -> None:
        """In a copy of the worker: close its copies of all connections, or their clients would not see an end."""
        self.hooks.abandon()
        for connection in self.connections.values():
            for stream in (connection, *(connection._streams or ())):
                stream._close_descriptor()

    def totals(self) -> tuple[int, int]:
        """Bytes in and out, of connections open and closed."""
        bytes_in, bytes_out = self.bytes_in, self.bytes_out
        for connection in self.connections.values():
            bytes_in += connection.bytes_in
            bytes_out += connection.bytes_out
        return bytes_in, bytes_out

    def descriptors(self) -> int:
        """How many are open for connections."""
        count = 0
        for connection in self.connections.values():
            relays = (connection._relay_in is not None) + (connection._relay_out is not None)
            count += 1 + len(connection._streams or ()) + 2 * relays
        return count

    def trusts(self, host: str) -> bool:
        """Whether what a proxy at this address says of its clients is believed; ``host`` as in ``Connection.peer``.

        Who may connect to a unix socket is said by its permissions.
        """
        if host.startswith("unix:"):
            return True
        address = number_of(host)
        return address is not None and self._trusted is not None and self._trusted.refusal(*address) is None

    # --- idleness

    def _sweep_in(self, seconds: float) -> None:
        self._sweep_due = True
        self.loop.call_later(max(seconds, self._idle_timeout / SWEEPS_PER_TIMEOUT), self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle too long, and come back when the next one may be.

        One timer for all connections: an event costs no timer, and the sweep's own cost is bounded however many
        there are.
        """
        now, timeout = self.loop.now, self._idle_timeout
        oldest = now
        for connection in list(self.connections.values()):
            if connection._state == OPEN and connection._is_held():
                continue
            if now - connection._last_active >= timeout:
                connection._give_up_on("idle timeout")
            elif connection._last_active < oldest:
                oldest = connection._last_active
        self._sweep_due = False
        if self.connections:
            self._sweep_in(oldest + timeout - now)

    # --- deadlines

    def may_finish_only(self, connection: Connection) -> bool:
        """Whether the connection is over its lifetime."""
        return connection in self._last_call

    def _lifetime_over(self, connection: Connection) -> None:
        """As when the worker is to end: what is begun may be finished. Without a plugin that knows what that would be,
        what is kept is still written."""
        self._last_call.add(connection)
        if connection._state == CONNECTING:
            connection.abort("connection lifetime")
        elif connection._state == OPEN:
            if self.hooks.on_drain is not None:
                connection._guarded("on_drain", self.hooks.on_drain, connection)
            else:
                connection.close("connection lifetime")

    # --- programs and faults

    def child_exited(self, child: Child, connection: Connection | None) -> None:
        """A program of one of this listener's connections has been reaped."""
        self._notify("on_child_exit", self.hooks.on_child_exit, connection, child, connection)

    def tell_closed(self, caller: Caller | None, connection: Connection, reason: str) -> None:
        """Tell the plugins, by the caller for those that have seen the connection, that it is closed."""
        self._notify("on_connection_close", caller, connection, connection, reason)

    def _notify(self, hook: str, caller: Caller | None, concerning: Connection | None, *arguments: object) -> None:
        if caller is None:
            return
        self._concerning = concerning
        try:
            caller(*arguments)
        except BaseException as error:  # noqa: BLE001 - a wrapper around the notification has raised
            self._notification_failed(hook, self.hooks.culprit(error), {}, error)
        finally:
            self._concerning = None

    def log_fault(self, hook: str, connection: Connection | None, error: BaseException) -> None:
        """Say which plugin has raised, in which hook or callback, for which connection."""
        self._log_fault(self.hooks.culprit(error), hook, connection, error)

    def _log_fault(self, plugin: str, hook: str, connection: Connection | None, error: BaseException) -> None:
        self.worker._room.doubt(error)
        tags: dict[str, object] = {"listener": self.name}
        concerning = ""
        if connection is not None:
            peer = format_peer(connection.peer)
            tags |= {"connection": connection.id, "peer": peer}
            concerning = f", connection #{connection.id} from {peer}"
        if hook == "on_worker_start" and not self.worker._told.is_new(f"{self.name} {plugin}", error):
            what = f"{type(error).__name__}: {error}"
            log.error("%s: plugin %r failed in %s again, as above: %s", self.name, plugin, hook, what, extra=tags)
            return
        log.error("%s: plugin %r failed in %s%s", self.name, plugin, hook, concerning, exc_info=error, extra=tags)

    def _notification_failed(self, hook: str, plugin: str, arguments: dict[str, Any], error: BaseException) -> None:
        # The connection is not taken from the arguments: the plugin need not have asked for it.
        self._log_fault(plugin, hook, self._concerning, error)
        if hook == "on_child_exit" and self._concerning is not None:
            self._concerning._fail()
        elif hook == "on_worker_start":
            self.worker._start_failed = True


def _over_tls(server_tls: ServerTls) -> Callable[[Service, int, int, tuple[str, int]], Connection]:
    from .tls_connection import TlsConnection  # ssl takes a while to import

    return lambda service, fd, number, peer: TlsConnection(service, fd, number, peer, server_tls)


def _always(connection: Connection) -> bool:
    return True


def _is_awaited(connection: Connection) -> bool:
    """Whether nothing has come of it yet, and somebody reads. While a plugin does not read, or a program does in its
    place, nothing is known of the client. What comes before the first byte for a plugin (TLS) is not that byte."""
    state = connection._state
    return connection.bytes_in == 0 and (state == CONNECTING or (state == OPEN and connection._reading))


def _first_byte_is_late(connection: Connection) -> None:
    connection._give_up_on("first byte timeout")


def _out_of_time(connection: Connection) -> None:
    connection.abort("connection lifetime")


def _ignore(connection: Connection) -> None:
    """For a listener without ``on_readable``: what arrives stays in the buffer."""
