"""The service manager: readiness notification (sd_notify(3)), its watchdog, and socket activation (sd_listen_fds(3)).

All of it is controlled by environment variables; without them nothing happens. They are removed from the environment,
so that neither pools nor programs that plugins start see them.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Final

from .inherited import inherited_descriptors
from .text import one_line

log = logging.getLogger("poolsrv.sdnotify")

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_DIGITS: Final = 18  # a number with as many digits, or more, can't be meant
_MOST: Final = 10**_DIGITS
LONGEST_ASSIGNMENT: Final = 500  # characters; systemd takes 4096 bytes in all


class Notifier:
    """Notifies the service manager of the server's state, if it wants to know.

    :ivar watchdog: seconds within which it expects a sign of life (sd_watchdog_enabled(3)); 0: never.
    """

    def __init__(self) -> None:
        self._address = _address(os.environ.pop("NOTIFY_SOCKET", ""))
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        meant = pid in ("", str(os.getpid())) and microseconds.isdecimal() and len(microseconds) < _DIGITS
        self.watchdog = int(microseconds) / 1e6 if meant and self._address else 0.0

    def send(self, *assignments: str) -> None:
        """Send assignments such as ``"READY=1"`` in one message, without waiting for the service manager."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(_message(assignments), self._address)
        except OSError:
            pass  # the service manager can't be told

    def reloading(self) -> None:
        """Notify that a reload has begun; ``READY=1`` will end it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def _message(assignments: Sequence[str]) -> bytes:
    # systemd ignores a message with control characters, or one that is no text.
    return "\n".join(one_line(line.replace("\n", " "))[:LONGEST_ASSIGNMENT] for line in assignments).encode()


def _address(name: str) -> str:
    if name.startswith("@"):
        return "\0" + name[1:]  # an abstract socket, unix(7)
    return name if name.startswith("/") else ""


def take_sockets() -> list[tuple[str, socket.socket]]:
    """Take over the listening sockets that the service manager has opened for this process.

    Other descriptors that it has passed are closed. A descriptor counts as passed if it stays open over an exec, as it
    did when this process was started. Descriptors that this process has opened itself do not (PEP 446), whatever their
    numbers, and are not touched.

    :returns: each with its name (``FileDescriptorName=``, or ``unknown``).
    :raises ValueError: the environment does not match the open descriptors; then nothing has been touched.
    """
    pid, number = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not number:
        return []
    if not (number.isascii() and number.isdecimal()):
        raise ValueError(f"LISTEN_FDS: got {one_line(number)[:40]!r}, expected how many sockets have been passed")
    passed = inherited_descriptors()
    count = int(number) if len(number) < _DIGITS else _MOST
    missing = count - sum(1 for fd in passed if fd < FIRST_FD + count)
    if missing:
        open_ones = ", ".join(map(str, passed)) or "none"
        raise ValueError(
            f"LISTEN_FDS: {number[:_DIGITS]} sockets are to have been passed, as descriptors from {FIRST_FD} on, and of"
            f" these there are: {open_ones}"
        )
    found = []
    for index, fd in enumerate(passed[:count]):
        os.set_inheritable(fd, False)
        name = names[index] if index < len(names) and names[index] else "unknown"
        sock = _listening(fd)
        if sock is not None:
            found.append((name, sock))
        else:
            log.warning("descriptor %d of the service manager (%s) is no listening stream socket: closed", fd, name)
    return found


def _listening(fd: int) -> socket.socket | None:
    """Return the socket if it is a listening stream socket; else close it."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:  # a file, or a FIFO
        os.close(fd)
        return None
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        return None
    sock.setblocking(False)
    return sock
