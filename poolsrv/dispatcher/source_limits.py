"""Limits per source address: how many connections each source has open, and how fast it opens them.

A source is an IPv4 address, or an IPv6 network of the length ``ipv6_prefix``, for a client with one IPv6 address mostly
has a /64 of them. What is kept of a source goes once it is of no use: its count with its last connection, its bucket
once that is full again. A client with many networks could still fill the memory with buckets. Past ``MAX_BUCKETS`` the
least recently used one is forgotten, which has the effect of filling it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from .token_bucket import NEVER_USED, Rate

MAX_BUCKETS: Final = 65536  # some 10 MB


class SourceLimits:
    """The sources of one listener.

    :param max_open: open connections of one source; 0 for no limit.
    :param rate: new connections of one source; None for no limit.
    :param ipv6_prefix: the number of bits of an IPv6 address that name the source.
    """

    def __init__(self, max_open: int, rate: Rate | None, ipv6_prefix: int) -> None:
        self._max_open = max_open
        self._rate = rate
        self._shift = 128 - ipv6_prefix
        self._open: dict[int, int] = {}  # by source
        self._source_of: dict[int, int] = {}  # by the connection's id
        self._full_at: OrderedDict[int, float] = OrderedDict()  # each source's bucket, most recently used last

    def __len__(self) -> int:
        """Count the sources of which something is kept."""
        return len(self._open.keys() | self._full_at.keys())

    def source_of(self, bits: int, number: int) -> int:
        """Map an address to its source, which is one number; those of IPv6 are below 0."""
        return number if bits == 32 else ~(number >> self._shift)

    def refusal(self, source: int, now: float) -> str | None:
        """Name the config key that refuses one more connection of the source; None if it is admitted."""
        if self._max_open and self._open.get(source, 0) >= self._max_open:
            return "max_per_source"
        if self._rate is not None and not self._rate.has_token(self._full_at.get(source, NEVER_USED), now):
            return "rate_per_source"
        return None

    def opened(self, connection: int, source: int, now: float) -> None:
        """Count a connection of the source as admitted."""
        if self._max_open:
            self._open[source] = self._open.get(source, 0) + 1
            self._source_of[connection] = source
        if self._rate is not None:
            buckets = self._full_at
            buckets[source] = self._rate.taken(buckets.get(source, NEVER_USED), now)
            buckets.move_to_end(source)
            if len(buckets) > MAX_BUCKETS:
                buckets.popitem(last=False)

    def closed(self, connection: int) -> None:
        """Count a connection as closed; one without a source here (another listener's, a refused one) is ignored."""
        source = self._source_of.pop(connection, None)
        if source is not None:
            if self._open[source] > 1:
                self._open[source] -= 1
            else:
                del self._open[source]

    def forget_full(self, now: float) -> bool:
        """Forget buckets that are full again.

        They are in the order of their latest use. One behind another that is not full may stay a little longer than it
        must, but never longer than a bucket takes to fill.

        :returns: whether others are left.
        """
        buckets = self._full_at
        while buckets and next(iter(buckets.values())) <= now:
            buckets.popitem(last=False)
        return bool(buckets)
