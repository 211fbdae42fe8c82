"""The end of patience: deadlines of many programs, and things that do not move any more.

A timer for each request would cost more than parsing it. So all of one listener share one timer for each kind of wait:
those with the same timeout come due in the order in which they began, and what may stand still for seconds need not be
looked at more than now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from poolsrv import Handle, Worker

__all__ = ["Deadlines", "StallTimeout", "Watch"]

LOOKS = 4  # per timeout: by a quarter of it may the end of patience be late


class Deadlines:
    """Calls each back that is still there after so many seconds.

    :param seconds: 0 is for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[Callable[[], object], float] = {}  # monotonic; the earliest first
        self._worker: Worker
        self._set = False

    def open(self, worker: Worker) -> None:
        """In a worker, before the first."""
        self._worker = worker

    def add(self, callback: Callable[[], object]) -> None:
        """Call it back, once."""
        if self._seconds:
            self._due[callback] = time.monotonic() + self._seconds
            if not self._set:
                self._set = True
                self._worker.call_later(self._seconds, self._on_timer)

    def remove(self, callback: Callable[[], object]) -> None:
        """It is no longer to be called. Harmless when it is not there."""
        self._due.pop(callback, None)

    def _on_timer(self) -> None:
        self._set = False
        while self._due:
            callback, due = next(iter(self._due.items()))
            left = due - time.monotonic()
            if left > 0:
                self._set = True
                self._worker.call_later(left, self._on_timer)
                return
            del self._due[callback]
            callback()


class Watch:
    """One thing that is looked at.

    :param progress: what is looked at, such as a count of bytes; None where nobody is to blame at the moment.
    :param expired: called once, when it has been the same for long enough.
    """

    __slots__ = ("expired", "progress", "same", "seen")

    def __init__(self, progress: Callable[[], int | None], expired: Callable[[], object]) -> None:
        self.progress = progress
        self.expired = expired
        self.seen: int | None = None
        self.same = 0

    def excuse(self) -> None:
        """Begin to count anew."""
        self.seen = None


class StallTimeout:
    """Looks at things from time to time.

    :param seconds: how long one may stay the same; 0 is for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._watches: dict[Watch, None] = {}
        self._worker: Worker
        self._looking: Handle | None = None

    def open(self, worker: Worker) -> None:
        """In a worker, before the first."""
        self._worker = worker

    def add(self, watch: Watch) -> None:
        """Watch it, until it is removed or has expired."""
        if self._seconds:
            self._watches[watch] = None
            if self._looking is None:
                self._looking = self._worker.every(self._seconds / LOOKS, self._look)

    def remove(self, watch: Watch) -> None:
        """No more looks at it. Harmless when it is not there."""
        self._watches.pop(watch, None)

    def _look(self) -> None:
        if not self._watches and self._looking is not None:
            self._looking.cancel()
            self._looking = None
        for watch in list(self._watches):
            seen = watch.progress()
            if seen is None or seen != watch.seen:  # also at the first look
                watch.same = 0
            else:
                watch.same += 1
            watch.seen = seen
            if watch.same == LOOKS and watch in self._watches:
                del self._watches[watch]
                watch.expired()
