"""The systemd journal, where standard error goes to it (JOURNAL_STREAM, systemd.exec(5)).

A line of the stream may begin with its priority (sd-daemon(3)). The stream ends a record at each line break, so a
record of several lines, such as a traceback, goes to the journal's own socket in one message
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"


def is_at(fd: int) -> bool:
    """Whether what is written to a descriptor goes to the journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def priority(level: int) -> int:
    """The priority of syslog(3) for a level of `logging`."""
    if level >= logging.CRITICAL:
        return 2
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


def send(message: bytes, level: int) -> bool:
    """Send a record of any number of lines, without waiting.

    :returns: False if the journal does not take it: it is not there, is busy, or the record is too long for it.
    """
    fields = b"PRIORITY=%d\nSYSLOG_IDENTIFIER=poolsrv\n" % priority(level)
    fields += b"MESSAGE\n" + len(message).to_bytes(8, "little") + message + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(fields, SOCKET)
    except OSError:
        return False
    return True
