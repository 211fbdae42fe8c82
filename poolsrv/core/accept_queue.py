"""How many connections wait in the kernel's accept queue of a listening socket.

For a TCP socket, TCP_INFO has it (``tcpi_unacked`` and ``tcpi_sacked``, linux/tcp.h). For a unix socket, only
sock_diag(7) does, over netlink(7). ``ss -l`` shows the same.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, NamedTuple

_TCP_INFO: Final = struct.Struct("24xII")

# linux/netlink.h, sock_diag.h, unix_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_SHOW_QUEUE: Final = 0x10
_QUEUE: Final = 4  # UNIX_DIAG_RQLEN
_ANY_COOKIE: Final = 0xFFFFFFFF
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBHIIIII")
_ANSWER: Final = struct.Struct("=BBBBIII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_LENGTHS: Final = struct.Struct("=II")
_SIZE: Final = 8192  # bytes of an answer


class AcceptQueue(NamedTuple):
    """An accept queue.

    :ivar queued: connections that wait in it.
    :ivar limit: how many there can be.
    """

    queued: int
    limit: int


def accept_queue(sock: socket.socket) -> AcceptQueue | None:
    """Look at a listening socket's queue; None if the kernel does not tell."""
    try:
        if sock.family == socket.AF_UNIX:
            return _of_unix(os.fstat(sock.fileno()).st_ino)
        return AcceptQueue(*_TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)))
    except (OSError, struct.error):
        return None


def _of_unix(inode: int) -> AcceptQueue | None:
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode & 0xFFFFFFFF, _SHOW_QUEUE, _ANY_COOKIE, _ANY_COOKIE)
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as netlink:
        netlink.send(header + request)
        answer = netlink.recv(_SIZE)  # the kernel has answered within send()
    length, message, *_ = _HEADER.unpack_from(answer)
    at = _HEADER.size + _ANSWER.size
    while message == _SOCK_DIAG_BY_FAMILY and at + _ATTRIBUTE.size <= min(length, len(answer)):
        size, attribute = _ATTRIBUTE.unpack_from(answer, at)
        if attribute == _QUEUE:
            return AcceptQueue(*_LENGTHS.unpack_from(answer, at + _ATTRIBUTE.size))
        at += max((size + 3) & ~3, _ATTRIBUTE.size)
    return None
