"""New connections that need not be watched: they end in the iteration of the loop in which they came.

Theory. Many clients send a request, take the answer and close. If such a client is near, it has often closed by the
time that the worker has served the others which came together with it. So a connection that has had its first bytes
waits for the end of the iteration, unwatched, and is read once more. If that brings its end, it has never been in
epoll: two system calls and an event fewer. Otherwise it is watched from then on.

To read in vain costs a system call and an exception. If that is what happens, it is tried less and less often.
"""

from __future__ import annotations

from typing import Final, Protocol

from ..core.event_loop import EventLoop
from ..core.native import mypyc_attr

FEWEST: Final = 16  # connections that are watched at once after it was in vain
MOST: Final = 4096  # the same, if it was in vain each time
WORTH: Final = 4  # it is not in vain if one of so many has ended


class Newcomer(Protocol):
    """A new connection, which has had its first bytes."""

    def _start(self) -> None:
        """Have the loop watch it."""

    def _end_or_be_watched(self) -> bool:
        """Read it, and have the loop watch it if its end has not come; whether it has."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Newcomers:
    """The new connections of one listener, in a worker."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._waiting: list[Newcomer] = []
        self._at_once = 0  # so many more are watched at once
        self._back_off = FEWEST  # and so many the next time that this proves right

    def add(self, connection: Newcomer) -> None:
        """Watch a connection: from the end of the iteration on, or from now on."""
        if self._at_once:
            self._at_once -= 1
            connection._start()
            return
        if not self._waiting:
            self._loop.at_end_of_turn(self._look)
        self._waiting.append(connection)

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, []
        ended = 0
        for connection in waiting:
            ended += connection._end_or_be_watched()
        if ended * WORTH >= len(waiting):
            self._back_off = FEWEST
        else:
            self._at_once = self._back_off
            self._back_off = min(2 * self._back_off, MOST)
