"""What the dispatcher and a worker share when they accept: which errors matter, how many to expect, how to refuse."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

from .descriptor import RESET_AT_CLOSE

MAX_SINGLE_ITERATIONS: Final = 16  # with one connection each, before the acceptor looks for more again

# accept(2): these errors concern the new connection, which is gone. EPERM comes from a firewall.
OF_THE_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)


class Arrivals:
    """How connections arrive at a listener: alone, or several together."""

    def __init__(self) -> None:
        self._last_iteration = 0  # the loop's latest iteration in which there was something to accept
        self._single_iterations = 0  # so many accept one connection only, although they come close together
        self._back_off = 1  # and so many after the next time that this proves right

    def expects_one(self, iteration: int) -> bool:
        """Guess whether the connection that has come is alone.

        To look for a second one in vain costs a system call and an exception. The guess is yes if the iteration before
        brought none. It is also yes if looking has found a single one each time; then the listener looks more and more
        seldom. If there are more after all, the next iteration follows at once.

        :param iteration: the number of the loop's iteration.
        """
        close = iteration - self._last_iteration <= 1
        self._last_iteration = iteration
        if close and self._single_iterations:
            self._single_iterations -= 1
            return True
        return not close

    def found(self, count: int) -> None:
        """Learn how many connections were accepted after ``expects_one`` had said no."""
        if count > 1:
            self._single_iterations, self._back_off = 0, 1
        elif count == 1:
            self._single_iterations = self._back_off
            self._back_off = min(2 * self._back_off, MAX_SINGLE_ITERATIONS)


def close_with_reset(fd: int, peer: Any) -> None:
    """Close an accepted connection so that the kernel keeps nothing of it (no TIME_WAIT).

    :param peer: its client's address, as accept(2) gives it.
    """
    if type(peer) is tuple:
        # The family does not matter here; without one, Python would make a system call to find it.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        sock.close()
    else:
        os.close(fd)
