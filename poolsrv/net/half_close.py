"""When a peer has finished sending: with its last bytes, or long after them.

A peer that has closed and one that has only finished sending look the same: the kernel has got a FIN. In most cases the
time of the FIN tells them apart: a client that asks and finishes at once wants the answer, and one that finishes after
a long silence has lost patience. The kernel remembers when it last received data, sent data, and got an
acknowledgement, which a FIN is too. So the answer does not depend on when this process had time to look.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Final

IN_TIME: Final = 1.0  # seconds from the last byte in either direction to the end of stream

LONGEST_END: Final = 128  # bytes of an alert, sealed
# struct tcp_info (linux/tcp.h): milliseconds since data was sent, since it was received, since the last ACK.
_TIMES = struct.Struct("=44xI4xII")
_INT = struct.Struct("=i")


def finished_in_time(sock: socket.socket, silent_for: float, end_is_data: bool) -> bool:
    """Whether a peer's end of stream came within ``IN_TIME`` of the last byte in either direction, or while bytes are
    still on their way to it. Call it when the end of stream has arrived.

    :param silent_for: seconds since the last byte, as this process has seen it: for what the kernel does not tell.
    :param end_is_data: the end of stream comes as bytes, such as those of a TLS alert, which are data to the kernel.
    """
    try:
        if _asked(sock, termios.TIOCOUTQ):
            return True  # SIOCOUTQ, tcp(7) and unix(7): the peer has not got all
        if end_is_data:
            return silent_for <= IN_TIME or _asked(sock, termios.FIONREAD) > LONGEST_END
        sent, received, acknowledged = _TIMES.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TIMES.size))
    except (OSError, struct.error):
        return silent_for <= IN_TIME  # no TCP
    return bool(min(sent, received) - acknowledged <= IN_TIME * 1000)


def _asked(sock: socket.socket, what: int) -> int:
    return int(_INT.unpack(fcntl.ioctl(sock, what, bytes(_INT.size)))[0])
