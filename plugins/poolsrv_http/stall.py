"""A timeout for what stands still: a body of which no more comes, a program that prints nothing.

A timer for each request would cost more than its parsing. So all requests of a listener share one timer for each kind
of wait: what may stand still for seconds need not be looked at more than a few times in between.
"""

from __future__ import annotations

from collections.abc import Callable

from poolsrv import Handle, Worker

__all__ = ["StallTimeout", "Watch"]

LOOKS = 4  # in each timeout: it may be late by a quarter of its length


class Watch:
    """One thing that must not stand still.

    :param progress: returns what must change, such as a count of bytes; None while it may stand still.
    :param expired: called once, when it has been the same for too long.
    """

    __slots__ = ("expired", "progress", "same", "seen")

    def __init__(self, progress: Callable[[], int | None], expired: Callable[[], object]) -> None:
        self.progress = progress
        self.expired = expired
        self.seen: int | None = None
        self.same = 0

    def excuse(self) -> None:
        """Start the time again."""
        self.seen = None


class StallTimeout:
    """Watches any number of things.

    :param seconds: how long each may stand still; 0: for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._watches: dict[Watch, None] = {}
        self._worker: Worker
        self._looking: Handle | None = None

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self._worker = worker

    def add(self, watch: Watch) -> None:
        """Watch one more, until it is removed or has expired."""
        if self._seconds:
            self._watches[watch] = None
            if self._looking is None:
                self._looking = self._worker.every(self._seconds / LOOKS, self._look)

    def remove(self, watch: Watch) -> None:
        """Watch it no more. Harmless where it is not watched."""
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
