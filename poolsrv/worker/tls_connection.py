"""A connection over TLS: its handshake, and its programs. To plugins it is like any other.

The bytes are the transport's part (net/tls_transport.py). The plugins learn of the connection once the handshake is
done. A program can't have a connection over TLS itself, so it gets one end of a socket pair in its place (a bridge).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from ..core.event_loop import READ
from ..net.tls import ServerTls, failure
from ..net.tls_transport import Handshake, TlsTransport
from .connection import KILL_GRACE, Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..net.programs import Child
    from .host import Host


LAST_WORDS_TIME: Final = 1.0  # seconds from a program's end until it is told, where its output goes on


class TlsConnection(Connection):
    """See the module's docstring."""

    __slots__ = ("_bridged",)

    def __init__(
        self, host: Host[Connection], fd: int, number: int, peer: tuple[str, int], server_tls: ServerTls
    ) -> None:
        super().__init__(host, fd, number, peer)
        self._bridged: dict[Child, Bridge] | None = None  # programs that write here
        self._use(TlsTransport(server_tls.accept, self._fd))

    # --- the handshake

    def _begin(self) -> None:
        """The handshake first; the plugins learn of the connection only after it."""
        assert isinstance(self._transport, TlsTransport)
        handshake = Handshake(self, self._transport, self._handshake_done, self._handshake_failed)
        self._await_opening(READ, handshake.on_event, self._host.handshake_timeout, self._too_slow)

    def _handshake_done(self) -> None:
        self._stage_over()
        super()._begin()
        self._host.opened_after_drain(self)

    def _handshake_failed(self, error: OSError) -> None:
        self._host.handshake_failed(self, failure(error))
        self._end("handshake failed")

    def _too_slow(self) -> None:
        self._host.handshake_failed(self, "handshake_timeout")
        self.abort("handshake_timeout")

    # --- programs

    def _start_with_this(self, ends: Sequence[Connection | int | None], start: Callable[..., Child]) -> Child:
        """The program gets a socket in place of this connection, from and to which all is relayed."""
        ours, theirs = socket.socketpair()
        try:
            child = start(sources=[theirs.fileno() if end is self else end for end in ends])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        stream = self.open_stream(ours.detach())
        if ends[0] is self:
            self.relay_to(stream)
        if self in ends[1:]:
            self._bridged = {**(self._bridged or {}), child: Bridge()}
            stream.relay_to(self, done=lambda moved: self._all_is_said(child))
        return child

    def _child_exited(self, child: Child) -> None:
        """What it has written last may still be on its way; its end is told after that."""
        bridge = (self._bridged or {}).get(child)
        if bridge is None:
            super()._child_exited(child)
        else:
            bridge.ended = True
            self._loop.call_later(LAST_WORDS_TIME, lambda: self._tell_end(child, bridge))

    def _tell_end(self, child: Child, bridge: Bridge) -> None:
        if bridge.ended and not bridge.told:
            bridge.told = True
            super()._child_exited(child)

    def _all_is_said(self, child: Child) -> None:
        """All that the program, and what it has left behind, has written is here."""
        bridge = (self._bridged or {}).pop(child, None)
        if bridge is not None:
            if bridge.ended and self._ends_programs and not child.outlives:
                child.terminate(KILL_GRACE)  # what it has left behind
            self._tell_end(child, bridge)
            if bridge.done is not None:
                self._guarded("await_last_copy", bridge.done)

    def await_last_copy(self, child: Child, done: Callable[[], object]) -> bool:
        """As ``Connection.await_last_copy``: the socket in this one's place has told no end yet."""
        bridge = (self._bridged or {}).get(child)
        if bridge is not None:
            bridge.done = done
        return bridge is not None


class Bridge:
    """A program that has a socket in the place of this connection.

    :ivar ended: it has ended.
    :ivar told: and the plugins know.
    :ivar done: called once no process has that socket any more.
    """

    __slots__ = ("done", "ended", "told")

    def __init__(self) -> None:
        self.ended = False
        self.told = False
        self.done: Callable[[], object] | None = None
