"""The token bucket: a rate, with bursts after a pause.

Theory. A bucket holds at most ``burst`` tokens, gets ``rate`` of them a second, and each event takes one. It is enough
to remember when the bucket will be full again: each token that is taken puts that off by ``1 / rate`` seconds. This is
the generic cell rate algorithm (ITU-T I.371), with one number in place of a count and a time. So a bucket per source
costs one float. A bucket that is full again is like one that was never used, and can be forgotten.
"""

from __future__ import annotations

from typing import Final

NEVER_USED: Final = float("-inf")


class Rate:
    """The rate at which buckets fill. The caller keeps the buckets: floats, the time at which each is full again.

    :param rate: tokens a second, above 0.
    :param burst: the most that a bucket holds, from 1.
    :ivar fill_time: seconds in which an empty bucket fills.
    """

    __slots__ = ("_interval", "_latest", "fill_time")

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1.0 / rate
        self.fill_time = burst * self._interval
        # A bucket has a token if it will be full within this time; the hundredth is for rounding.
        self._latest = (burst - 0.99) * self._interval

    def has_token(self, full_at: float, now: float) -> bool:
        """Tell whether a token can be taken now."""
        return full_at - now <= self._latest

    def taken(self, full_at: float, now: float) -> float:
        """Take a token, and return the bucket's new value."""
        return (full_at if full_at > now else now) + self._interval

    def next_token(self, full_at: float) -> float:
        """Earliest time of a token, rounded up so that a waiter finds one."""
        return full_at - self._latest + 0.01 * self._interval


class TokenBucket:
    """One bucket, full at first.

    :param rate: tokens a second, above 0.
    :param burst: the most that it holds, from 1.
    """

    __slots__ = ("_full_at", "_rate")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = Rate(rate, burst)
        self._full_at = NEVER_USED

    def has_token(self, now: float) -> bool:
        """Tell whether a token can be taken; ``now`` is in seconds of any monotonic clock."""
        return self._rate.has_token(self._full_at, now)

    def take(self, now: float) -> bool:
        """Take a token; False if there is none."""
        if not self._rate.has_token(self._full_at, now):
            return False
        self._full_at = self._rate.taken(self._full_at, now)
        return True

    def delay(self, now: float) -> float:
        """Seconds until there is a token; 0 if there is one."""
        return max(self._rate.next_token(self._full_at) - now, 0.0)
