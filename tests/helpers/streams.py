"""Streams in this process, each with its peer: raw or over TLS, on a loop that the test turns."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poolsrv.core.event_loop import MAX_WAIT, READ, EventLoop
from poolsrv.net.connector import OutgoingStream
from poolsrv.net.descriptor import STATE_NAMES, Descriptor
from poolsrv.net.stream import Stream
from poolsrv.net.tls import ClientTls
from poolsrv.net.tls_transport import Handshake, TlsTransport

LONGEST = 20.0  # seconds, on a busy machine
Contexts = tuple[ssl.SSLContext, ssl.SSLContext]  # of a server and of its client
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close(2) sends a reset


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, that know resets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    return one, other


def turn_until(loop: EventLoop, condition: Callable[[], object], *peers: Peer) -> None:
    """Turn the loop, and let peers read, until something is so."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        loop.turn(0.005)
        for peer in peers:
            peer.take()


class StandingLoop(EventLoop):
    """A loop whose time only `pass_time` moves: no timer is due because this machine was slow."""

    def wait(self, longest: float = MAX_WAIT) -> list[tuple[int, int]]:
        now = self.now
        events = super().wait(longest)
        self._looked = self.now = now
        return events


def pass_time(loop: EventLoop, seconds: float) -> None:
    """Call the timers that are due in so many seconds, as if these had passed."""
    loop.now += seconds
    loop._looked = loop.now
    loop.dispatch([])


class Owner:
    """In the place of a connection, for the streams that belong to it."""

    def __init__(self) -> None:
        self.ended: list[Descriptor] = []
        self.faults: list[tuple[str, BaseException]] = []
        self.peer_finished = False
        self.is_open = True

    def _stream_ended(self, stream: Descriptor) -> None:
        self.ended.append(stream)

    def _fault(self, what: str, error: BaseException) -> None:
        self.faults.append((what, error))

    def _peer_has_finished(self) -> bool:
        return self.peer_finished

    def _is_open(self) -> bool:
        return self.is_open


class Subject(Stream):
    """A stream that lingers, as a connection does."""

    __slots__ = ()

    def _always_lingers(self) -> bool:
        return True


class Peer:
    """The other side.

    :ivar received: all that has been taken.
    :ivar end: ``""``, ``"eof"`` (over TLS: a proper one), ``"truncated"`` or ``"reset"``.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None = None, name: str = "localhost") -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.received: bytes | bytearray = bytearray()  # grows without being copied
        self.end = ""
        self.tls: ssl.SSLObject | None = None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._shaken = context is None
        if context is not None:
            server_side = context.protocol == ssl.PROTOCOL_TLS_SERVER
            self.tls = context.wrap_bio(
                self._in, self._out, server_side=server_side, server_hostname=None if server_side else name
            )

    def begin(self) -> None:
        """Send the first message of the handshake."""
        assert self.tls is not None
        self._unseal(self.tls)

    def seal(self, data: bytes) -> bytes:
        """As it goes over the network."""
        if self.tls is None:
            return data
        self.tls.write(data)
        return self._out.read()

    def send(self, data: bytes) -> None:
        self.sock.sendall(self.seal(data))

    def finish(self) -> None:
        """No more bytes: over TLS an alert says so, too."""
        if self.tls is not None:
            self._alert()
        self.sock.shutdown(socket.SHUT_WR)

    def _alert(self) -> None:
        assert self.tls is not None
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass  # it waits for the other side's
        self.sock.sendall(self._out.read())

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def take(self) -> None:
        """All that is there now; for a handshake: go on with it."""
        while not self.end and self.sock.fileno() >= 0 and self._take():
            pass

    def _take(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            data = None
        except OSError:
            self.end = "reset"
            return False
        if self.tls is None:
            if data is not None:
                self.received += data
                self.end = "" if data else "eof"
        else:
            if data:
                self._in.write(data)
            elif data is not None:
                self._in.write_eof()
            self._unseal(self.tls)
        return data is not None

    def _unseal(self, tls: ssl.SSLObject) -> None:
        try:
            if not self._shaken:
                tls.do_handshake()
                self._shaken = True
            while True:
                piece = tls.read(65536)
                if not piece:
                    self.end = "eof"
                    break
                self.received += piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.end = "eof"
        except ssl.SSLError:
            self.end = "truncated"
        if self._out.pending:
            try:
                self.sock.sendall(self._out.read())
            except OSError:
                pass  # the stream is gone


class Pair:
    """A stream in OPEN, its peer, and what the stream has called.

    :param contexts: of a server and a client, for TLS.
    :ivar calls: the names of the callbacks, in order.
    :ivar error: what ``on_close`` was given.
    """

    def __init__(self, loop: EventLoop, contexts: Contexts | None = None) -> None:
        self.loop = loop
        self.owner = Owner()
        self.calls: list[str] = []
        self.error: BaseException | None = None
        self.took: bytes | bytearray = bytearray()
        ours, theirs = tcp_pair()
        self.stream = Subject(loop, ours.detach(), self.owner)
        self.peer = Peer(theirs, contexts[1] if contexts else None)
        if contexts is None:
            self._open()
        else:
            self.stream._state = 0
            transport = TlsTransport(
                lambda incoming, outgoing: contexts[0].wrap_bio(incoming, outgoing, server_side=True), self.stream._fd
            )
            self.stream._use(transport)
            handshake = Handshake(self.stream, transport, self._open, self._failed)
            self.stream._await_opening(READ, handshake.on_event)
            turn_until(loop, lambda: self.state == "OPEN", self.peer)
            turn_until(loop, lambda: self.peer._shaken, self.peer)
        self._watch(self.stream)

    def _open(self) -> None:
        self.stream._stage_over()
        self.stream._opened()
        self.stream._start()

    def _failed(self, error: OSError) -> None:
        raise error

    def _watch(self, stream: Stream) -> None:
        stream.on_readable = self.on_readable
        stream.on_writable = lambda stream: self.calls.append("on_writable")
        stream.on_close = self.on_close

    def on_readable(self, stream: Stream) -> None:
        self.calls.append("on_readable")
        self.took += stream.recv()

    def on_close(self, stream: Stream, error: BaseException | None) -> None:
        self.calls.append("on_close")
        self.error = error

    @property
    def state(self) -> str:
        return STATE_NAMES[self.stream._state]

    def until(self, condition: Callable[[], object], reads: bool = True) -> None:
        turn_until(self.loop, condition, *([self.peer] if reads else []))

    def turns(self, number: int = 3) -> None:
        """A few, in which nothing is waited for."""
        for _ in range(number):
            self.loop.turn(0.0)

    def feed(self, data: bytes) -> None:
        """Have the peer send more than the kernel takes at once."""
        sealed = self.peer.seal(data)
        while sealed:
            try:
                sealed = sealed[self.peer.sock.send(sealed) :]
            except BlockingIOError:
                self.loop.turn(0.005)

    def keep(self) -> int:
        """Send more than the kernel takes; how much that is."""
        sent = 0
        while not self.stream.unsent:
            self.stream.send(bytes(1 << 20))
            sent += 1 << 20
        return sent

    def congest(self) -> int:
        """Send more than the kernel takes, and than the stream keeps without being congested; how much that is."""
        sent = self.keep()
        while not self.stream.congested:
            self.stream.send(bytes(1 << 20))
            sent += 1 << 20
        return sent

    def go_to(self, state: str) -> None:
        """From OPEN."""
        if state == "CLOSING":
            self.keep()
            self.stream.close("bye")
        elif state == "LINGERING":
            self.stream.close("bye")
            self.turns()
        elif state == "CLOSED":
            self.stream.abort("gone")
        assert self.state == state

    def end(self) -> None:
        """At the end of a test."""
        self.stream.abort()
        self.turns()
        self.peer.close()


class Connecting(Pair):
    """A stream in CONNECTING: an outgoing one, whose peer accepts it, and shakes hands, when told."""

    def __init__(
        self,
        loop: EventLoop,
        contexts: Contexts | None = None,
        tls: ClientTls | None = None,
        timeout: float = 1000.0,
    ) -> None:
        self.loop = loop
        self.owner = Owner()
        self.calls = []
        self.error = None
        self.took = bytearray()
        self._context = contexts[0] if contexts else None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.stream: Any = OutgoingStream(loop, self.owner, self.address, Path(), timeout, tls)
        self._watch(self.stream)

    def accept(self) -> None:
        sock, _ = self._listening.accept()
        self.peer = Peer(sock, self._context)

    def establish(self) -> None:
        """Let it come to OPEN, or to where it goes from there."""
        self.accept()
        self.until(lambda: not self.stream._is_connecting())

    def end(self) -> None:
        self.stream.abort()
        self.turns()
        self._listening.close()
        if hasattr(self, "peer"):
            self.peer.close()


def fill(fd: int) -> int:
    """Write zeros to a non-blocking descriptor until the kernel takes not one more; how many."""
    written = 0
    for size in (65536, 256, 1):
        try:
            while True:
                written += os.write(fd, bytes(size))
        except BlockingIOError:
            pass
    return written


def wait_readable(fd: int) -> None:
    """Wait until the kernel has something to read."""
    assert select.select([fd], [], [], LONGEST)[0]
