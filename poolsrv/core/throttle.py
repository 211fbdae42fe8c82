"""Keeps a message that may be due all the time to once in so many seconds."""

from __future__ import annotations


class Throttle:
    """Of one kind of message.

    :param seconds: the least time between two of them.
    """

    __slots__ = ("_latest", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._latest = float("-inf")

    def allows(self, now: float) -> bool:
        """Whether the message may be logged now; if so, the time starts again.

        :param now: in seconds of ``time.monotonic``.
        """
        if now - self._latest < self._seconds:
            return False
        self._latest = now
        return True
