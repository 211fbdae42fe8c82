"""Deadlines that are equally long for all connections of a listener.

Theory. Where everybody gets the same time, deadlines fall due in the order in which they were set. So they are kept in
that order, and one timer is enough, for the first of those that still matter: to set one and to take it back are a
dictionary's insertion and deletion, and any number of idle connections wake nobody up before the first of them is due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.event_loop import EventLoop

if TYPE_CHECKING:
    from .connection import Connection


class Deadlines:
    """One deadline each, for any number of connections.

    :param seconds: how long each gets, from when it is added.
    :param matters: whether a connection's deadline still means anything; asked when it might be due, and never again
        once it has said no.
    :param missed: called with each connection whose deadline has come and matters.
    """

    def __init__(
        self,
        loop: EventLoop,
        seconds: float,
        matters: Callable[[Connection], bool],
        missed: Callable[[Connection], object],
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._matters = matters
        self._missed = missed
        self._pending: dict[int, tuple[float, Connection]] = {}  # when due; the earliest first
        self._timer_is_set = False

    def add(self, connection: Connection) -> None:
        """From now on it has so many seconds."""
        self._pending[connection.id] = (self._loop.now + self._seconds, connection)
        if not self._timer_is_set:
            self._set_timer(self._seconds)

    def discard(self, connection: Connection) -> None:
        """It is closed. Harmless where it has no deadline."""
        self._pending.pop(connection.id, None)

    def __contains__(self, connection: Connection) -> bool:
        """Whether it has a deadline that has not come."""
        return connection.id in self._pending

    def _set_timer(self, seconds: float) -> None:
        self._timer_is_set = True
        self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_is_set = False
        now = self._loop.now
        done: list[int] = []
        late: list[Connection] = []
        for number, (due, connection) in self._pending.items():
            if self._matters(connection):
                if due > now:
                    self._set_timer(due - now)
                    break
                late.append(connection)
            done.append(number)
        for number in done:
            del self._pending[number]
        for connection in late:
            self._missed(connection)
