"""Notices that nothing moves any more."""

from __future__ import annotations

from collections.abc import Callable

from poolsrv import Connection, Timer

__all__ = ["Watchdog"]

LOOKS = 4  # per timeout: by a quarter of it may the end of patience be late


class Watchdog:
    """Looks at something from time to time, and calls back once it has been the same for long enough.

    An event would cost a timer each; a look costs nothing but itself.

    :param conn: whose timers it uses: it ends with the connection.
    :param seconds: how long; 0 is for ever.
    :param progress: what is looked at, such as a count of bytes; None where nobody is to blame at the moment.
    :param expired: called once.
    """

    __slots__ = ("_conn", "_expired", "_progress", "_same", "_seconds", "_seen", "_timer")

    def __init__(
        self, conn: Connection, seconds: float, progress: Callable[[], int | None], expired: Callable[[], object]
    ) -> None:
        self._conn = conn
        self._seconds = seconds
        self._progress = progress
        self._expired = expired
        self._seen: int | None = progress()
        self._same = 0
        self._timer: Timer | None = None
        if seconds:
            self._timer = conn.call_later(seconds / LOOKS, self._look)

    def _look(self) -> None:
        seen = self._progress()
        if seen is None or seen != self._seen:
            self._same = 0
        else:
            self._same += 1
        self._seen = seen
        if self._same == LOOKS:
            self._expired()
        else:
            self._timer = self._conn.call_later(self._seconds / LOOKS, self._look)

    def excuse(self) -> None:
        """Begin to count anew."""
        self._same = 0
        self._seen = None

    def stop(self) -> None:
        """No more looks. Harmless when called again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
