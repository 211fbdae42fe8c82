"""One listener in a worker: its connections, the callers of its hooks, idle connections and deadlines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..core.native import mypyc_attr
from ..core.throttle import Throttle
from ..errors import ConfigError
from ..ipc.worker_channel import PeerAddress
from ..net.access_list import AccessList, number_of
from ..net.addresses import client_name, format_peer
from ..net.programs import Child
from .connection import Connection
from .deadlines import Deadlines
from .end_log import EndLog
from .hooks import Caller
from .newcomers import Newcomers
from .proxy_header import ProxyHeaders

if TYPE_CHECKING:
    from ..core.event_loop import EventLoop
    from ..ipc.told_once import ToldOnce
    from ..net.programs import Reaper
    from ..net.tls import ServerTls
    from .admission_client import AdmissionClient
    from .blocking_threads import BlockingThreads
    from .descriptor_room import DescriptorRoom
    from .engine_metrics import WorkerMetrics
    from .spec import ListenerSpec
    from .worker import Worker


log = logging.getLogger("poolsrv.plugins")

# Sweeps for idle connections per idle_timeout, at most; it bounds how late a connection is closed.
SWEEPS_PER_TIMEOUT = 20
HANDSHAKE_LOG_INTERVAL = 60.0  # seconds


class ServiceOwner(Protocol):
    """What a service needs of the process that it runs in."""

    worker: Worker
    loop: EventLoop
    reaper: Reaper
    threads: BlockingThreads
    room: DescriptorRoom
    metrics: WorkerMetrics
    told: ToldOnce
    admission_client: AdmissionClient | None
    graceful_timeout: float
    start_failed: bool

    def connection_closed(self, number: int) -> None:
        """The descriptor of the connection with this id has been closed."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Service:
    """One listener, in each worker.

    :param listener: its config, its plugins, its TLS.
    :param base: the config file's directory, against which the paths of unix sockets count.
    :param connection_type: of connections without TLS.
    """

    def __init__(
        self,
        owner: ServiceOwner,
        listener: ListenerSpec,
        base: Path,
        connection_type: type[Connection] = Connection,
    ) -> None:
        config, hooks = listener.config, listener.hooks
        self._owner = owner
        self._connection_type = connection_type
        self.worker = owner.worker
        self.loop = loop = owner.loop
        self.reaper = owner.reaper if listener.launch is None else listener.launch(owner.reaper, loop)
        self.threads = owner.threads
        self.config = config
        self.name = config.name
        self.hooks = hooks
        self.base = base
        self.max_unsent = config.max_unsent
        self.half_close: str = listener.half_close
        self.watches_half_close = listener.half_close != "finish"
        self.on_connection_init = hooks.on_connection_init
        self.on_readable = hooks.on_readable or _ignore
        self.on_writable = hooks.on_writable
        self.on_connection_close = hooks.on_connection_close
        self.connections: dict[int, Connection] = {}
        self.newcomers = Newcomers(loop)
        self.bytes_in = 0  # of closed connections
        self.bytes_out = 0
        self.metrics = owner.metrics.of_listener[config.name]
        # Times go into these lists, and are sorted into buckets later, many at once.
        self.durations: list[float] = self.metrics.durations.new
        self.hand_over_times: list[float] = self.metrics.handed_over.new
        self.first_byte_times: list[float] = self.metrics.first_byte.new
        self._trusted = AccessList(config.trusted_proxies, ()) if config.trusted_proxies else None
        self._idle_timeout = config.idle_timeout
        self._sweep_due = False
        self._proxies = ProxyHeaders(self, config, owner.admission_client) if config.proxy_protocol else None
        self._server_tls = listener.server_tls
        self.handshake_timeout = 0.0
        if listener.server_tls is not None:
            self.handshake_timeout = listener.server_tls.handshake_timeout
            from . import tls_connection  # noqa: F401 - now, and not with the first client; ssl takes a while to import
        self.failed_handshakes = 0
        self._handshake_message = Throttle(HANDSHAKE_LOG_INTERVAL)
        # For those that are over their lifetime and may finish: as in a worker that is to end.
        self._last_call: Deadlines[Connection] = Deadlines(loop, owner.graceful_timeout, _always, _out_of_time)
        self._end_log = EndLog(config.name) if config.log_connections else None
        self._deadlines: list[Deadlines[Connection]] = []  # that begin with a connection
        if config.first_byte_timeout:
            self._deadlines.append(
                Deadlines(loop, config.first_byte_timeout, Connection._awaits_first_byte, _first_byte_is_late)
            )
        if config.connection_lifetime:
            self._deadlines.append(Deadlines(loop, config.connection_lifetime, _always, self._lifetime_over))
        self._concerning: Connection | None = None  # that a notification is being called for

    def begin(self) -> None:
        """In the process that serves: have faults in notifications logged and counted."""
        self.hooks.fault_handler = self._notification_failed

    # --- connections

    def open(self, fd: int, number: int, peer: PeerAddress, accepted_at: float) -> None:
        """Make a connection of what has been accepted, and begin to serve it.

        :param number: its id.
        :param peer: the client's address, as accept(2) gives it.
        :param accepted_at: in seconds of ``time.monotonic``.
        """
        if type(peer) is not tuple or len(peer) != 2:
            peer = client_name(peer)
        if self._server_tls is None:
            connection = self._connection_type(self, fd, number, peer)
        else:
            connection = self._open_over_tls(fd, number, peer, self._server_tls)
        self.connections[number] = connection
        connection._accepted_at = accepted_at
        self.hand_over_times.append(self.loop.now - accepted_at)
        if not self._sweep_due and self._idle_timeout:
            self._sweep_in(self._idle_timeout)
        if self._deadlines:
            for deadlines in self._deadlines:
                deadlines.add(connection)
        if self._proxies is not None:
            self._proxies.read_header(connection)  # and then as below
        else:
            connection._begin()  # on_connection_init; with TLS the handshake comes first

    def _open_over_tls(self, fd: int, number: int, peer: tuple[str, int], server_tls: ServerTls) -> Connection:
        from .tls_connection import TlsConnection

        return TlsConnection(self, fd, number, peer, server_tls)

    def open_identified(self, connection: Connection) -> None:
        """A proxy has said who the client of a new connection is: serve it."""
        connection._begin()
        self.opened_after_drain(connection)

    def opened_after_drain(self, connection: Connection) -> None:
        """Call ``on_drain`` for a connection that plugins have been told of only now, after a header or a handshake.
        Those that were open when the worker began to drain have had the call."""
        if self.worker.draining:
            self._drain_one(connection)

    def closed(self, connection: Connection, reason: str, running: Sequence[Child]) -> None:
        """Forget a connection whose descriptor is closed, for this reason, and whose programs may run on."""
        del self.connections[connection.id]
        if self._deadlines:
            for deadlines in (*self._deadlines, self._last_call):
                deadlines.discard(connection)
        self.bytes_in += connection.bytes_in
        self.bytes_out += connection.bytes_out
        duration = self.loop.now - connection._accepted_at
        self.durations.append(duration)
        if self._end_log is not None:
            self._end_log.closed(connection, duration, reason, running)
        self._owner.connection_closed(connection.id)

    def handshake_failed(self, connection: Connection, why: str) -> None:
        """Count a failed handshake, and log one now and then: scanners cause them all the time."""
        self.failed_handshakes += 1
        log.debug("%s: TLS handshake with %s failed: %s", self.name, format_peer(connection.peer), why)
        if self._handshake_message.allows(self.loop.now):
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
        if on_drain is not None and connection._is_open() and connection not in self._last_call:
            connection._guarded("on_drain", on_drain, connection)

    def abort_all(self, reason: str) -> None:
        """End every connection at once."""
        for connection in list(self.connections.values()):
            connection.abort(reason)

    def close_inherited(self) -> None:
        """In a copy of the worker: close its copies of all connections, or their clients would not see an end."""
        self.hooks.abandon()
        for connection in self.connections.values():
            connection._close_inherited()

    def totals(self) -> tuple[int, int]:
        """Bytes in and out, of connections open and closed."""
        bytes_in, bytes_out = self.bytes_in, self.bytes_out
        for connection in self.connections.values():
            bytes_in += connection.bytes_in
            bytes_out += connection.bytes_out
        return bytes_in, bytes_out

    def descriptors(self) -> int:
        """How many are open for connections."""
        return sum(connection._count_descriptors() for connection in self.connections.values())

    def trusts(self, host: str) -> bool:
        """Whether what a proxy at this address says of its clients is believed; ``host`` as in ``Connection.peer``.

        The permissions of a unix socket decide which users may connect to it.
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
        """Close what has been idle too long, and set the timer for the next connection that may be.

        One timer for all connections: an event costs no timer, and the sweep's own cost is bounded however many
        there are.
        """
        now, timeout = self.loop.now, self._idle_timeout
        oldest = now
        for connection in list(self.connections.values()):
            idle_since = connection._idle_since()
            if now - idle_since >= timeout:
                connection._give_up_on("idle timeout")
            elif idle_since < oldest:
                oldest = idle_since
        self._sweep_due = False
        if self.connections:
            self._sweep_in(oldest + timeout - now)

    # --- deadlines

    def closer_after_ended_chain(self) -> Caller | None:
        """The caller of ``on_connection_close`` for a connection whose ``on_connection_init`` has just ended early: for
        the plugins that have been told of it."""
        return self.hooks.closer_after_ended_chain() if len(self.hooks.plugins) > 1 else self.on_connection_close

    def may_finish_only(self, connection: Connection) -> bool:
        """Whether the connection is over its lifetime."""
        return connection in self._last_call

    def _lifetime_over(self, connection: Connection) -> None:
        """Let a connection finish what it has begun, as if the worker were to end. If no plugin has ``on_drain``, bytes
        that are kept are still written."""
        self._last_call.add(connection)
        if connection._is_connecting():
            connection.abort("connection lifetime")
        elif connection._is_open():
            if self.hooks.on_drain is not None:
                connection._guarded("on_drain", self.hooks.on_drain, connection)
            else:
                connection.close("connection lifetime")

    # --- programs and faults

    def child_exited(self, child: Child, connection: Connection | None) -> None:
        """A program of one of this listener's connections has been reaped."""
        if self._end_log is not None:
            self._end_log.program_ended(child, connection)
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
        """Log which plugin has raised, in which hook or callback, for which connection."""
        self._log_fault(self.hooks.culprit(error), hook, connection, error)

    def _log_fault(self, plugin: str, hook: str, connection: Connection | None, error: BaseException) -> None:
        self._owner.room.doubt(error)
        self.metrics.fault(plugin, hook)
        tags: dict[str, object] = {"listener": self.name}
        concerning = ""
        if connection is not None:
            peer = format_peer(connection.peer)
            tags |= {"connection": connection.id, "peer": peer}
            concerning = f", connection #{connection.id} from {peer}"
        if hook == "on_worker_start" and not self._owner.told.is_new(f"{self.name} {plugin}", error):
            what = f"{type(error).__name__}: {error}"
            log.error("%s: plugin %r failed in %s again, as above: %s", self.name, plugin, hook, what, extra=tags)
            return
        if hook == "on_worker_start" and isinstance(error, ConfigError):
            log.error("%s: plugin %r failed in %s: %s", self.name, plugin, hook, error, extra=tags)
            return
        log.error("%s: plugin %r failed in %s%s", self.name, plugin, hook, concerning, exc_info=error, extra=tags)

    def _notification_failed(self, hook: str, plugin: str, arguments: dict[str, Any], error: BaseException) -> None:
        # The connection is not taken from the arguments: the plugin need not have asked for it.
        self._log_fault(plugin, hook, self._concerning, error)
        if hook == "on_child_exit" and self._concerning is not None:
            self._concerning._fail()
        elif hook == "on_worker_start":
            self._owner.start_failed = True


def _always(connection: Connection) -> bool:
    return True


def _first_byte_is_late(connection: Connection) -> None:
    connection._give_up_on("first byte timeout")


def _out_of_time(connection: Connection) -> None:
    connection.abort("connection lifetime")


def _ignore(connection: Connection) -> None:
    """For a listener without ``on_readable``: what arrives stays in the buffer."""
