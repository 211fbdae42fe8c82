"""How the bytes of a stream get to the kernel: plainly, through a descriptor shared with a program, or over TLS.

A stream calls ``read`` and ``write`` of its transport in the place of read(2) and write(2), with their conventions.
``tls_transport.py`` has the one for TLS, so that ``ssl`` is imported only where TLS is used.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from .tls import Tls


_DONT_WAIT: Final = int(socket.MSG_DONTWAIT)
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Transport(Protocol):
    """What a stream needs of its transport."""

    @property
    def can_splice(self) -> bool:
        """Whether splice(2) may move bytes from the descriptor and to it."""

    @property
    def is_plain(self) -> bool:
        """Whether the kernel sees what the stream sees. Otherwise there may be bytes, or the end of stream, of which it
        knows nothing, and the peer's end of stream arrives as bytes, which are data to the kernel."""

    @property
    def ready(self) -> bool:
        """Whether something may be there now of which the kernel knows nothing."""

    @property
    def tls(self) -> Tls | None:
        """What was agreed on with the peer; None without TLS, and before the handshake is done."""

    def read(self, fd: int, size: int, /) -> bytes:
        """As read(2) of a non-blocking descriptor.

        :raises OSError: the same errors; ``BlockingIOError`` where there is nothing to read.
        """

    def write(self, fd: int, data: Any, /) -> int:
        """As write(2) of a non-blocking descriptor. After ``BlockingIOError`` it has to be called with the same bytes,
        or more of them.

        :raises OSError: the same errors; ``BlockingIOError`` where nothing can be written.
        """

    def finish(self) -> None:
        """Tell the peer that nothing more comes, where the protocol has a message for that. Harmless when repeated."""


class RawTransport:
    """The bytes as they are. It has no state: all streams share one."""

    __slots__ = ("read", "write")

    can_splice: Final = True
    is_plain: Final = True
    ready: Final = False
    tls: Final = None

    def __init__(self) -> None:
        self.read: Callable[[int, int], bytes] = os.read
        self.write: Callable[[int, Any], int] = os.write

    def finish(self) -> None:
        """Nothing to tell: the end of the socket's stream is the end."""


RAW: Final = RawTransport()


class SharedTransport:
    """The bytes as they are, through a blocking socket: a program has a copy of its descriptor."""

    __slots__ = ("_sock",)

    can_splice: Final = False  # splice(2) knows no MSG_DONTWAIT
    is_plain: Final = True
    ready: Final = False
    tls: Final = None

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, fd: int, size: int) -> bytes:
        """As recv(2) with MSG_DONTWAIT."""
        return self._sock.recv(size, _DONT_WAIT)

    def write(self, fd: int, data: Any) -> int:
        """As send(2) with MSG_DONTWAIT."""
        return self._sock.send(data, _SEND_FLAGS)

    def finish(self) -> None:
        """Nothing to tell: the end of the socket's stream is the end."""
