"""A connection over TLS: to plugins like any other.

Theory. OpenSSL never touches the socket. What arrives is put into one buffer (a BIO), from which OpenSSL takes records
and gives bytes; what is sent goes the other way, through a second one. ``Transport.read`` and ``write`` stand in the
place of read(2) and write(2), with their conventions, and all above them stays as it is. Three things differ:

- Bytes, or the end of stream, may be in the first buffer, of which the kernel knows nothing: its event would never
  come. A connection with such is on the ready list: it is looked at again at the end of the turn.
- Bytes that OpenSSL has sealed can't be taken back. Where the kernel does not take all of a record, ``write`` says that
  it would block, and remembers; called again with the same bytes, it goes on, and says how many it has taken.
- The end of stream is an alert (close_notify, RFC 8446, section 6.1). An end of the socket's stream without it may be
  an attacker's, and is a reset.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Final

from ..core.event_loop import READ, WRITE
from ..net.descriptor import CLOSING, CONNECTING, OPEN
from ..net.stream import MAX_EXTRA_READS
from ..net.tls import ServerTls, Tls, Transport, agreed, failure
from .connection import KILL_GRACE, Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..core.event_loop import Timer
    from ..net.programs import Child
    from .service import Service


log = logging.getLogger("poolsrv.tls")
LAST_WORDS_TIME: Final = 1.0  # seconds from a program's end until it is told, where its output goes on


class TlsConnection(Connection):
    """See the module's docstring."""

    _end_is_data = True

    __slots__ = ("_agreed", "_bridged", "_in_time", "_looked_for", "_transport")

    def __init__(self, service: Service, fd: int, number: int, peer: tuple[str, int], server_tls: ServerTls) -> None:
        super().__init__(service, fd, number, peer)
        self._transport = Transport(server_tls, self._fd)
        self._read = self._transport.read
        self._write = self._transport.write
        self._agreed: Tls | None = None
        self._in_time: Timer | None = None
        self._bridged: dict[Child, Bridge] | None = None  # programs that write here
        self._looked_for = False  # it is on the ready list

    @property
    def tls(self) -> Tls | None:
        return self._agreed

    # --- the handshake

    def _begin(self) -> None:
        """The handshake first; plugins hear of the connection only after it."""
        self._state = CONNECTING
        self._call_on_close = None
        self._interest = READ
        self._loop.register(self._fd, READ, self._on_handshake)
        timeout = self._service.handshake_timeout
        if timeout:
            self._in_time = self._loop.call_later(timeout, self._too_slow)

    def _on_handshake(self, mask: int) -> None:
        try:
            done = self._transport.shake_hands()
        except BlockingIOError:
            done = False
        except OSError as error:
            self._service.handshake_failed(self, failure(error))
            self._end("handshake failed")
            return
        wanted = READ | WRITE if self._transport.has_unsent else READ
        if not done:
            if wanted != self._interest:
                self._interest = wanted
                self._loop.modify(self._fd, wanted)
            return
        self._cancel_in_time()
        self._unwatch()
        self._agreed = agreed(self._transport.object)
        self._state = OPEN
        self._call_on_close = self._service.on_connection_close
        super()._begin()
        self._service.opened_after_drain(self)
        self._look_for_more()

    def _too_slow(self) -> None:
        if self._state == CONNECTING:
            self._service.handshake_failed(self, "handshake_timeout")
            self.abort("handshake_timeout")

    def _cancel_in_time(self) -> None:
        if self._in_time is not None:
            self._in_time.cancel()
            self._in_time = None

    # --- the ready list

    def _look_for_more(self) -> None:
        if self._transport.ready and self._reading and not self._looked_for:
            self._looked_for = True
            self._loop.at_end_of_turn(self._more)

    def _more(self) -> None:
        self._looked_for = False
        if self._transport.ready and self._reading and self._state == OPEN:
            self._callback()(READ)

    def _on_event(self, mask: int, again: int = MAX_EXTRA_READS) -> None:
        super()._on_event(mask, again)
        self._look_for_more()

    def _update(self) -> None:
        super()._update()
        self._look_for_more()

    # --- the end

    def _finish_sending(self) -> None:
        self._transport.finish()
        super()._finish_sending()

    def _finish_close(self) -> None:
        if self._state == CLOSING:
            self._transport.finish()
        super()._finish_close()

    def _end(self, reason: str) -> None:
        self._cancel_in_time()
        super()._end(reason)

    def _can_splice(self) -> bool:
        return False

    # --- programs

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
    ) -> Child:
        """As ``Connection.spawn``. A program that is to have this connection gets a socket in its place, from and to
        which all is relayed."""
        if self not in (stdin, stdout, stderr):
            return super().spawn(argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, limits=limits)
        ours, theirs = socket.socketpair()
        try:
            given = [theirs.fileno() if one is self else one for one in (stdin, stdout, stderr)]
            child = super().spawn(
                argv, env=env, cwd=cwd, stdin=given[0], stdout=given[1], stderr=given[2], limits=limits
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        stream = self.open_stream(ours.detach())
        if stdin is self:
            self.relay_to(stream)
        if self in (stdout, stderr):
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
    :ivar done: to be called once nobody has that socket any more.
    """

    __slots__ = ("done", "ended", "told")

    def __init__(self) -> None:
        self.ended = False
        self.told = False
        self.done: Callable[[], object] | None = None
