"""Deadlines of equal length, for any number of connections.

Theory. Deadlines of equal length fall due in the order in which they were set. They are kept in that order, so one
timer is enough, for the first that still matters. Setting a deadline and taking it back are the insertion and the
deletion of a dictionary, and any number of idle connections wake no process before the first deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ..core.event_loop import EventLoop

K = TypeVar("K")


class Deadlines(Generic[K]):
    """One deadline for each key; in a worker, for each connection.

    :param seconds: from when a key is added to its deadline.
    :param matters: whether a key's deadline still means anything. It is asked when the deadline might be due; after a
        no, the deadline is dropped.
    :param missed: called with each key whose deadline has come and matters.
    """

    def __init__(
        self,
        loop: EventLoop,
        seconds: float,
        matters: Callable[[K], bool],
        missed: Callable[[K], object],
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._matters = matters
        self._missed = missed
        self._pending: dict[K, float] = {}  # when due, the earliest first
        self._timer_is_set = False

    def add(self, key: K) -> None:
        """Set the deadline of a key that has none."""
        self._pending[key] = self._loop.now + self._seconds
        if not self._timer_is_set:
            self._set_timer(self._seconds)

    def discard(self, key: K) -> None:
        """Take a deadline back. Harmless where there is none."""
        self._pending.pop(key, None)

    def __contains__(self, key: K) -> bool:
        """Whether the key has a deadline that has not come."""
        return key in self._pending

    def _set_timer(self, seconds: float) -> None:
        self._timer_is_set = True
        self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_is_set = False
        now = self._loop.now
        done: list[K] = []
        late: list[K] = []
        for key, due in self._pending.items():
            if self._matters(key):
                if due > now:
                    self._set_timer(due - now)
                    break
                late.append(key)
            done.append(key)
        for key in done:
            del self._pending[key]
        for key in late:
            self._missed(key)
