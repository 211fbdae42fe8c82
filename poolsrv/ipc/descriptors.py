"""Descriptors that travel beside a message (SCM_RIGHTS, unix(7))."""

from __future__ import annotations

import array
import socket
from collections.abc import Iterable
from typing import Final

DESCRIPTOR_SIZE: Final = array.array("i").itemsize

_LEVEL: Final = int(socket.SOL_SOCKET)
_RIGHTS: Final = int(socket.SCM_RIGHTS)


def descriptors_in(ancillary: Iterable[tuple[int, int, bytes]]) -> array.array[int]:
    """Return the descriptors that ``recvmsg`` has received; they are the receiver's to close."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == _LEVEL and kind == _RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % DESCRIPTOR_SIZE])
    return fds
