"""One client's connection: what a plugin is given, and everything that belongs to it and ends with it.

A connection is a stream (see stream.py for its states) that calls the hooks of its listener, and that owns programs,
outgoing streams, timers and blocking calls. At end of stream the engine closes it by itself, once nothing is left to
write and nothing holds it: a running program, an open stream, a relay, a blocking call, a ``hold()``.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..core import forked_copies
from ..core.event_loop import ERROR, HANGUP, PEER_FINISHED, READ
from ..core.native import mypyc_attr
from ..core.sandbox import Sandbox
from ..net.addresses import format_peer, peer_name
from ..net.connector import OutgoingStream
from ..net.descriptor import CLOSED, CONNECTING, LINGERING, OPEN, Descriptor
from ..net.half_close import finished_in_time
from ..net.handover import Handover
from ..net.programs import Child
from ..net.stream import Pipe, Stream
from .connection_log import logger_of
from .waiting import Waiting

if TYPE_CHECKING:
    from ..net.tls import ClientTls
    from .host import Host
    from .worker import Worker


KILL_GRACE: Final = 5.0  # seconds from TERM to KILL for the programs of a connection that has failed


@mypyc_attr(allow_interpreted_subclasses=True)
class Connection(Waiting):
    """One client's connection, as a plugin sees it; see ``Stream`` for the members that both have.

    :ivar id: a number unique in this run of the server.
    :ivar peer: the client's address: ``(host, port)``; of a unix socket ``("unix:" + path, 0)``. With
        ``proxy_protocol``, as the proxy says.
    :ivar opened_at: when it was accepted by its worker, in seconds since the epoch.
    :ivar state: the handler's own; None at first.

    For the engine, beside those of ``Stream`` and ``Owner``: ``_begin``, ``_guarded``, ``_fail``, ``_give_up_on``,
    ``_idle_since``, ``_awaits_first_byte``; of the PROXY header, ``_look_at_input``, ``_discard_input``, ``_identify``
    and ``_refuse``; ``_accepted_at``, ``_on_readable``, ``_count_descriptors``, ``_close_inherited``.
    """

    __slots__ = (
        "_call_on_close", "_children", "_ends_programs", "_extra", "_finished_in_time", "_given", "_host", "_local",
        "_log", "_streams", "id", "opened_at", "peer", "state",
    )  # fmt: skip

    def __init__(self, host: Host[Connection], fd: int, number: int, peer: tuple[str, int]) -> None:
        Stream.__init__(self, host.loop, fd)
        self._holds = self._own_holds = 0  # these three are of Waiting
        self._timers = None
        self._host = host
        self._on_readable = host.on_readable
        self._on_writable = host.on_writable
        self._call_on_close: Callable[..., Any] | None = None  # until plugins have been told of the connection
        self._state = CONNECTING  # until `_begin`, whatever comes before
        self._children: list[Child] | None = None
        self._streams: list[Stream] | None = None
        self._extra: dict[str, Any] | None = None
        self._log: logging.LoggerAdapter[logging.Logger] | None = None
        self._ends_programs = False
        # Programs that have the connection itself, each with what is called once no other process has it.
        self._given: dict[Child, tuple[Handover, Callable[[], object]] | None] | None = None
        self._finished_in_time = False  # the client has finished sending, and waits for the answer
        self._local: tuple[str, int] | None = None  # as a proxy has said
        self.id = number
        self.peer = peer
        self.opened_at = time.time()
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<Connection {self.id} on {self.listener} from {format_peer(self.peer)}>"

    # --- what it is

    @property
    def listener(self) -> str:
        """The listener's name in the config."""
        return self._host.name

    @property
    def local(self) -> tuple[str, int]:
        """The address that the client has connected to, in the form of ``peer``."""
        if self._local is not None:
            return self._local
        try:
            return peer_name(self._sock.getsockname())
        except OSError:
            return ("", 0)

    def trusts(self, host: str) -> bool:
        """Whether an address, in the form of ``peer[0]``, is among the listener's ``trusted_proxies``: what it says
        of its clients may be believed. Peers on unix sockets always are."""
        return self._host.trusts(host)

    @property
    def extra(self) -> dict[str, Any]:
        """For the further plugins, by their names."""
        if self._extra is None:
            self._extra = {}
        return self._extra

    @property
    def worker(self) -> Worker:
        """The worker that serves this connection."""
        return self._host.worker

    @property
    def draining(self) -> bool:
        """True once the worker is to end, or this is over its lifetime: finish what is begun, take nothing new."""
        return self._host.worker.draining or self._host.may_finish_only(self)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines name this connection."""
        if self._log is None:
            self._log = logger_of(self.listener, self.id, format_peer(self.peer))
        return self._log

    def _is_held(self) -> bool:
        held = self._holds or self._children or self._streams
        return bool(held) or self._relay_in is not None or self._relay_out is not None

    # --- programs and other streams

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: Connection | int | None = None,
        stdout: Connection | int | None = None,
        stderr: Connection | int | None = None,
        limits: Mapping[int, int] | None = None,
        sandbox: Sandbox | None = None,
    ) -> Child:
        """Start a program in a process group of its own, with only these three descriptors.

        Each of ``stdin``, ``stdout`` and ``stderr`` is None (the null device), ``PIPE`` (this side is a ``Stream`` of
        the child), this connection, or the descriptor of an open file. Where it is this connection as ``stdin``,
        reading is paused. ``on_child_exit`` is called when it has ended. The program is ended when the connection is
        reset, aborted, or fails; a plain ``close`` leaves it running.

        :param env: its whole environment; None: nothing but a PATH.
        :param cwd: its working directory; None: the server's.
        :param limits: resource limits, ``{resource.RLIMIT_NOFILE: 64}``; each is both the soft and the hard limit.
        :param sandbox: None: it may do what its user may.
        :raises OSError: it can't be started, or the connection is closed.
        """
        if self._state != OPEN:
            raise OSError(errno.ENOTCONN, "the connection is closed")
        ends = (stdin, stdout, stderr)
        for end in ends:
            if isinstance(end, Connection) and end is not self:
                raise ValueError("a program can be given its own connection only")
        on_exit, spawn = self._child_exited, self._host.reaper.spawn
        start: Callable[..., Child] = partial(
            spawn, argv, env=env, cwd=cwd, limits=limits, sandbox=sandbox, owner=self, on_exit=on_exit
        )
        child = self._start_with_this(ends, start) if self in ends else start(sources=ends)
        self._children = [*(self._children or ()), child]
        streams = [stream for stream in (child.stdin, child.stdout, child.stderr) if stream is not None]
        self._streams = [*self._streams, *streams] if self._streams else streams
        return child

    def _start_with_this(self, ends: Sequence[Connection | int | None], start: Callable[..., Child]) -> Child:
        """Start a program that is given this connection, by ``start(sources=...)``."""
        for relay in (self._relay_in, self._relay_out):
            if relay is not None:
                relay.copy_from_now_on()
        self._share()
        child = start(sources=[self._fd if isinstance(end, Connection) else end for end in ends])
        self._given = {**(self._given or {}), child: None}
        if ends[0] is self:
            self.pause_reading()
        return child

    def open_stream(self, fd: int) -> Stream:
        """A stream over a descriptor that the plugin has opened: its end of a pipe, or a connected socket.

        The descriptor is the stream's from now on, also where this raises. Nothing is read until the stream's
        ``on_readable`` is set. It holds this connection, and is aborted with it.

        :raises OSError: it is no open descriptor, or the connection is closed.
        """
        if self._state != OPEN:
            os.close(fd)
            raise OSError(errno.ENOTCONN, "the connection is closed")
        stream = (Stream if stat.S_ISSOCK(os.fstat(fd).st_mode) else Pipe)(self._loop, fd, self)
        try:
            stream._start()
        except BaseException:
            stream._close_descriptor()
            raise
        return self._own(stream)

    def connect(
        self,
        address: str,
        *,
        on_readable: Callable[[Stream], object],
        on_writable: Callable[[Stream], object] | None = None,
        on_close: Callable[[Stream, BaseException | None], object] | None = None,
        timeout: float = 10.0,
        tls: bool | ClientTls = False,
    ) -> Stream:
        """Connect to somewhere else, without blocking; what is sent meanwhile is kept.

        :param address: as in a listener's ``bind``: an IP address with a port, or ``unix:PATH``.
        :param timeout: seconds within which the connection has to be established, the TLS handshake included.
        :param tls: True: over TLS, where the server's certificate has to be for the address, and to come from an
            authority that the system trusts. ``ClientTls`` says more.
        :returns: the stream; every failure arrives as ``on_close(stream, error)``, that of a bad address too. At end of
            stream (``eof``) it stays open for sending, until it has finished that too, or the client has.
        """
        if tls is True:
            from ..net.tls import ClientTls  # ssl takes a while to import

            tls = ClientTls()
        stream = OutgoingStream(self._loop, self, address, self._host.base, timeout, tls or None)
        stream.on_readable = on_readable
        stream.on_writable = on_writable
        stream.on_close = on_close
        self._own(stream)
        if self._state == CLOSED:
            stream.abort("the connection is closed")
        return stream

    def _own(self, stream: Stream) -> Stream:
        self._streams = [*(self._streams or ()), stream]
        return stream

    def _peer_has_finished(self) -> bool:
        return self._eof_told

    def _stream_ended(self, stream: Descriptor) -> None:
        if self._streams and stream in self._streams:
            self._streams.remove(stream)
            self._close_if_done()

    def await_last_copy(self, child: Child, done: Callable[[], object]) -> bool:
        """Of a program that had this connection itself and has ended: whether another process that it has left behind
        has it, too. Then ``done()`` is called once none has it any more, or the connection is closed; until then the
        connection is held, and what is in the program's group is ended with it as the program would be.

        :returns: False if no process has it; ``done`` is not called then.
        """
        if self._given is None or child not in self._given or self._state == CLOSED:
            return False
        others = self._host.reaper.running
        handover = Handover(self._loop, self._fd, child.pid, others, lambda: self._last_copy_closed(child))
        if not handover.begin():
            return False
        self._given[child] = (handover, done)
        self._holds += 1
        return True

    def _last_copy_closed(self, child: Child) -> None:
        handover, done = (self._given or {}).pop(child, None) or (None, None)
        if handover is not None and done is not None:
            handover.cancel()
            self._holds -= 1
            self._guarded("await_last_copy", done)
            self._close_if_done()

    def _child_exited(self, child: Child) -> None:
        if self._children:
            self._children.remove(child)
        self._host.child_exited(child, self if self._state != CLOSED else None)
        if self._given and self._given.get(child) is None:
            self._given.pop(child, None)
        self._close_if_done()

    # --- what the engine does

    def _begin(self) -> None:
        """Call ``on_connection_init``, then have the loop watch, and read what is there; for the worker, once."""
        host = self._host
        if self._opening:
            self._opened()  # a header or a handshake came first
            self._last_active = self._loop.now
        elif self._state == CONNECTING:
            self._state = OPEN
        self._call_on_close = host.on_connection_close
        if host.on_connection_init is not None:
            try:
                ended = host.on_connection_init(self) is not None
            except BaseException as error:  # noqa: BLE001 - as in _guarded
                ended = True
                self._fault("on_connection_init", error)
            if ended:
                self._call_on_close = host.closer_after_ended_chain()
        if self._interest < 0 and self._state == OPEN:
            self._read_first()

    def _look_at_input(self, size: int) -> bytes:
        """What has come, at most ``size`` bytes; it stays with the kernel.

        :raises OSError: as recv(2).
        """
        return self._sock.recv(size, socket.MSG_PEEK)

    def _discard_input(self, size: int) -> None:
        """Throw away bytes that have been looked at."""
        self._sock.recv(size)

    def _identify(self, peer: tuple[str, int], local: tuple[str, int] | None) -> None:
        """A proxy has said who the client is, and to which address it has connected."""
        self.peer = peer
        self._local = local

    def _refuse(self, reason: str) -> None:
        """Close at once, with a reset, before any plugin has been told of the connection."""
        self._reset_at_close()
        self._end(reason)

    def _idle_since(self) -> float:
        """Since when nothing has moved, in seconds of the loop's clock; what is held is not idle."""
        return self._loop.now if self._state == OPEN and self._is_held() else self._last_active

    def _count_descriptors(self) -> int:
        """How many descriptors the connection and its streams have, without those of programs."""
        relays = (self._relay_in is not None) + (self._relay_out is not None)
        return 1 + len(self._streams or ()) + 2 * relays

    def _close_inherited(self) -> None:
        """In a copy of the worker: close its copies of the descriptors."""
        for stream in (self, *(self._streams or ())):
            stream._abandon()

    def _at_eof(self) -> None:
        Stream._at_eof(self)
        for stream in list(self._streams) if self._streams else ():
            stream._close_if_done()
        if self._state == OPEN and self._host.watches_half_close and self._has_left():
            self.abort("client closed")

    def _has_left(self) -> bool:
        """Whether the end of the client's stream means that it is gone, and does not wait for an answer."""
        if self._host.half_close == "abort":
            return True
        if not self._finished_in_time:
            still_written_to = self._out is not None or (self._relay_out is not None and self._relay_out.wants_write)
            self._finished_in_time = still_written_to or finished_in_time(
                self._sock, self._loop.now - self._last_active, not self._transport.is_plain
            )
        return not self._finished_in_time

    def _wanted(self) -> int:
        wanted = Stream._wanted(self)
        if self._host.watches_half_close and not wanted & READ and self._may_finish():
            wanted |= PEER_FINISHED  # the plugin does not read now, but the end has to be noticed
        return wanted

    def _may_finish(self) -> bool:
        return self._state == OPEN and not self.eof and not self._finished_in_time

    def _on_hangup(self, mask: int) -> None:
        if mask & PEER_FINISHED and not mask & ERROR and self._host.watches_half_close:
            if self._has_left():
                self.eof = True
                self.abort("client closed")
                return
            if not mask & HANGUP:
                self._update()  # what it has sent before is still to be read, and then its end
                return
        Stream._on_hangup(self, mask)

    def _fault(self, what: str, error: BaseException) -> None:
        forked_copies.end_if_made(what)
        self._host.log_fault(what, self, error)
        self._fail()

    def _fail(self) -> None:
        """A plugin has failed: close, and end the programs."""
        self._ends_programs = True
        self._terminate_programs()
        self.close("plugin failed")

    def _terminate_programs(self) -> None:
        for child in (*(self._children or ()), *(self._given or ())):
            if not child.outlives:
                child.terminate(KILL_GRACE)

    def abort(self, reason: str = "") -> None:
        self._ends_programs = True
        super().abort(reason)

    def _connection_lost(self, error: OSError) -> None:
        self._ends_programs = True
        Stream._connection_lost(self, error)
        self._error = None  # which nobody is told of; as in Stream._tell_closed

    def _buffer_write(self, data: bytes | bytearray | memoryview) -> None:
        super()._buffer_write(data)
        if self.unsent > self._host.max_unsent:
            self.abort("max_unsent exceeded")

    def _tell_closed(self) -> None:
        if self._ends_programs and (self._children or self._given):
            self._terminate_programs()
        for stream in self._streams or ():
            if stream._state != LINGERING:  # that has nothing left to say, and ends by itself
                stream.abort("the connection is closed")
        if self._call_on_close is not None:
            self._host.tell_closed(self._call_on_close, self, self._reason)

    def _release(self) -> None:
        # As the base does it, without the calls that most connections have no need of.
        if self._call_on_close is not None or self._streams or self._ends_programs:
            self._tell_closed()
        if self._made is None:
            try:
                os.close(self._fd)
            except OSError:
                pass  # as in _close_descriptor
            self._fd = -1
        else:
            self._shut_down_and_close()
        if self._given:
            for child in list(self._given):
                self._last_copy_closed(child)
        self._host.closed(self, self._reason, self._children or ())
