"""The end of a stream whose peer may still be sending: what it sends is read and thrown away.

A socket that is closed while its peer still sends answers with a reset, and the reset may overtake the last bytes
written. Who closes first therefore finishes sending first, and reads on for a while (Apache and nginx call it lingering
close). A client that has seen the end closes, and that ends it.

Some clients send all that they have before they read. So what they send is thrown away already while bytes are kept
for them: otherwise each side would wait for the other.
"""

from __future__ import annotations

from typing import Final

from ..core.event_loop import ERROR, HANGUP, READ, WRITE, EventLoop, Timer
from .descriptor import CLOSING, LINGERING, Owner
from .input import RECV_SIZE, Input

LINGER_TIME: Final = 30.0  # seconds that a peer may go on sending
LINGER_LOOK: Final = 2.0  # seconds from one look at what it has sent to the next
LINGER_LEAST: Final = 2048  # bytes that have to come from one look to the next


class Closing(Input):
    """See the module's docstring."""

    __slots__ = ("_linger", "_linger_until")

    # Whether close() waits for the peer to close even where nothing of its is waiting to be read.
    _always_lingers = False

    def __init__(self, loop: EventLoop, fd: int, owner: Owner | None = None) -> None:
        super().__init__(loop, fd, owner)
        self._linger: Timer | None = None
        self._linger_until = 0.0

    def _throws_away(self) -> bool:
        """Whether what comes now is to be read and thrown away, while there is something to be written."""
        return self._state == CLOSING and self._always_lingers and not self.eof

    def _on_event_closing(self, mask: int) -> None:
        """In the place of ``_on_event`` in CLOSING."""
        if self._reading and mask & (READ | ERROR | HANGUP):
            try:
                if not self._read(self._fd, RECV_SIZE):
                    self.eof = True
                    self._update()
            except BlockingIOError:
                pass
            except OSError as error:
                self._connection_lost(error)
                return
        if mask & WRITE:
            self._flush()
        elif mask & (ERROR | HANGUP) and not self._reading:
            self._on_hangup(mask)

    def _finish_close(self) -> None:
        """In CLOSING, all written: close now, unless the peer is, or may be, still sending."""
        if self._state != CLOSING:
            return
        if self.eof or not self._is_socket():
            self._end(self._reason)
            return
        try:
            goes_on = bool(self._read(self._fd, RECV_SIZE))
        except BlockingIOError:
            goes_on = self._always_lingers
        except OSError:
            goes_on = False
        if goes_on:
            self._start_lingering()
        else:
            self._end(self._reason)

    def _start_lingering(self) -> None:
        try:
            self._finish_sending()
        except OSError:
            self._end(self._reason)  # the peer was faster
            return
        self._state = LINGERING
        if self._interest < 0:
            self._loop.register(self._fd, READ, self._on_event_lingering)
        else:
            self._loop.modify(self._fd, READ)
            self._loop.set_callback(self._fd, self._on_event_lingering)
        self._interest = READ
        self._linger_until = self._loop.now + LINGER_TIME
        self._linger_on()

    def _on_event_lingering(self, mask: int) -> None:
        """In the place of ``_on_event`` in LINGERING."""
        try:
            data = self._read(self._fd, RECV_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._read_ahead += len(data)
        if not data:
            self._end(self._reason)

    def _linger_on(self) -> None:
        self._read_ahead = 0  # what has come since the latest look
        self._linger = self._loop.call_later(LINGER_LOOK, self._look_at_lingering)

    def _look_at_lingering(self) -> None:
        if self._read_ahead < LINGER_LEAST or self._loop.now >= self._linger_until:
            self._end(self._reason)
        else:
            self._linger_on()

    def _end(self, reason: str) -> None:
        if self._linger is not None:
            self._linger.cancel()
        super()._end(reason)

    # --- what Stream does

    def _finish_sending(self) -> None:
        raise NotImplementedError

    def _flush(self) -> None:
        raise NotImplementedError

    def _connection_lost(self, error: OSError) -> None:
        raise NotImplementedError

    def _on_hangup(self, mask: int) -> None:
        raise NotImplementedError
