"""Limits per source address: how many connections each has open, and how fast it opens them.

A source is an IPv4 address, or an IPv6 network of the length ``ipv6_prefix``: who has one IPv6 address mostly has a /64
of them. What is kept of a source goes when it is of no use any more: its count with its last connection, its bucket
once it is full again. A client with many networks could still fill the memory with buckets; past ``MOST_BUCKETS`` the
one that has not been used for the longest time is forgotten, which is as if it were full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from .token_bucket import NEVER_USED, Rate

MOST_BUCKETS: Final = 65536  # some 10 MB


class Sources:
    """Of one listener.

    :param max_open: connections open at a time from one source; 0 is no limit.
    :param rate: new ones a second from one source; None is no limit.
    :param ipv6_prefix: how many bits of an IPv6 address are the source.
    """

    def __init__(self, max_open: int, rate: Rate | None, ipv6_prefix: int) -> None:
        self._max_open = max_open
        self._rate = rate
        self._shift = 128 - ipv6_prefix
        self._open: dict[int, int] = {}  # by source
        self._source_of: dict[int, int] = {}  # by the connection's id
        self._full_at: OrderedDict[int, float] = OrderedDict()  # each source's bucket, see Rate; the latest used last

    def __len__(self) -> int:
        """How many sources something is known of."""
        return len(self._open.keys() | self._full_at.keys())

    def source_of(self, bits: int, number: int) -> int:
        """The source that an address belongs to, as one number: those of IPv6 are below 0."""
        return number if bits == 32 else ~(number >> self._shift)

    def refusal(self, source: int, now: float) -> str | None:
        """The key that refuses one more connection, ``"max_per_source"`` or ``"rate_per_source"``; None: it may."""
        if self._max_open and self._open.get(source, 0) >= self._max_open:
            return "max_per_source"
        if self._rate is not None and not self._rate.has_token(self._full_at.get(source, NEVER_USED), now):
            return "rate_per_source"
        return None

    def opened(self, connection: int, source: int, now: float) -> None:
        """A connection of that source has been admitted."""
        if self._max_open:
            self._open[source] = self._open.get(source, 0) + 1
            self._source_of[connection] = source
        if self._rate is not None:
            buckets = self._full_at
            buckets[source] = self._rate.taken(buckets.get(source, NEVER_USED), now)
            buckets.move_to_end(source)
            if len(buckets) > MOST_BUCKETS:
                buckets.popitem(last=False)

    def closed(self, connections: Iterable[int]) -> None:
        """These connections are no more; those that are of no source here (other listeners', refused) are skipped."""
        for connection in connections:
            source = self._source_of.pop(connection, None)
            if source is not None:
                if self._open[source] > 1:
                    self._open[source] -= 1
                else:
                    del self._open[source]

    def forget_full(self, now: float) -> bool:
        """Forget buckets that are full again; whether there are others left.

        They are in the order of their latest use, so what is behind one that is not full may wait a little longer than
        it must: never more than the time in which a bucket fills.
        """
        buckets = self._full_at
        while buckets and next(iter(buckets.values())) <= now:
            buckets.popitem(last=False)
        return bool(buckets)
