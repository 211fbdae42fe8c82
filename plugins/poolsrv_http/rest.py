"""An answer that is there before its request's body: wait for the rest, so that the connection can go on.

What comes at once is waited for, and what no reader takes of it is thrown away. What comes slowly, or is much, is not
worth the wait: then the connection ends with this answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from poolsrv import Connection

__all__ = ["REST_LIMIT", "Rest", "RestOwner"]

REST_LIMIT = 1 << 20  # bytes that are waited for
REST_STILL = 0.25  # seconds without any
REST_TIME = 2.0  # seconds
REST_LOOK = 0.02  # seconds from one look to the next


class RestOwner(Protocol):
    """The body that the rest is of."""

    def rest_may_come(self) -> bool:
        """Whether there is something to wait for."""

    def throw_away(self) -> None:
        """Take what is here and has no reader."""

    @property
    def is_here(self) -> bool:
        """Whether all of the body has come."""


class Rest:
    """One wait.

    :param came: called once all is here, or does not come soon; not from inside the first `look`.
    :ivar is_over: nothing is waited for any more.
    """

    __slots__ = ("_came", "_conn", "_owner", "_still", "_waited", "is_over")

    def __init__(self, conn: Connection, owner: RestOwner, came: Callable[[], object]) -> None:
        self._conn = conn
        self._owner = owner
        self._came = came
        self._still = 0.0  # seconds without a byte
        self._waited = 0.0
        self.is_over = False

    def look(self, seen: int) -> None:
        """See what has come; again and again until the wait is over.

        :param seen: the connection's `bytes_in` at the look before.
        """
        if self.is_over:
            return
        received = self._conn.bytes_in
        if received > seen:
            self._still = 0.0
        self._owner.throw_away()
        if not self._owner.rest_may_come() or self._still >= REST_STILL or self._waited >= REST_TIME:
            self.is_over = True
            if self._waited:
                self._came()
            return
        self._still += REST_LOOK
        self._waited += REST_LOOK
        self._conn.call_later(REST_LOOK, lambda: self.look(received))

    def on_input(self) -> None:
        """Bytes have come."""
        self._owner.throw_away()
        if self._owner.is_here and not self.is_over:
            self.is_over = True
            self._came()
