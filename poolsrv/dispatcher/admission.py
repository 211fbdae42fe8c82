"""Admission control: the limits of one listener, and a record of refused connections.

Theory. There are two kinds of limits. Those over the whole pool (``max_connections``, ``connection_rate``) act as
``when_full`` says. Either by *waiting*: nothing is accepted, and new connections stay in the kernel's queue. Or by
*refusing*: a connection is accepted and closed at once. Limits that depend on the client (``allow``, ``deny``, and the
limits per source) can only refuse, for the address is known once a connection is accepted. A refused connection takes
no token and no place, and never gets near a worker.

A refused connection is closed with a reset. The kernel then keeps nothing of it (no TIME_WAIT), so a flood leaves
nothing behind.

The log tells edges. A *limit event* begins with the first refusal for a reason, or when the first connection has to
wait. It ends when that has not happened for ``QUIET`` seconds. So a limit that is reached again and again makes two
lines in the log. Each refused connection is counted, and the last ``RECENT`` of the whole server are kept.

If a proxy in front tells who its client is, the worker learns that from the connection's first bytes. Then the
dispatcher checks only the limits over the pool when it accepts; for the rest the worker asks.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ..config.model import ListenerConfig, has_to_ask, limits_sources
from ..core.event_loop import EventLoop, Timer
from ..core.words import counted
from ..net.accepting import close_with_reset
from ..net.access_list import AccessList, number_of
from ..net.addresses import client_name, format_peer
from .source_limits import SourceLimits
from .token_bucket import Rate, TokenBucket

log = logging.getLogger("poolsrv.admission")

QUIET: Final = 5.0  # seconds without a refused or a waiting connection after which a limit event has ended
RECENT: Final = 20  # refusals that are kept


class Refusal(msgspec.Struct, frozen=True):
    """One refused connection.

    :ivar time: in seconds since the epoch.
    :ivar listener: the listener's name.
    :ivar peer: the client's address, as logs write it.
    :ivar reason: the config key that refused it.
    """

    time: float
    listener: str
    peer: str
    reason: str


class ListenerCounts:
    """The connections of one listener. (No struct: its attributes take longer to set.)

    :ivar open: over all workers, those without a worker included.
    :ivar accepted: since the pool's start.
    :ivar paused: whether none are accepted at the moment.
    """

    __slots__ = ("accepted", "open", "paused")

    def __init__(self) -> None:
        self.open = 0
        self.accepted = 0
        self.paused = False


class LimitEvent(msgspec.Struct, eq=False):
    """The time during which a limit has effect.

    :ivar latest: when it last had, in the loop's time.
    :ivar refused: the number of refused connections.
    """

    latest: float
    refused: int = 0
    timer: Timer | None = None


class AdmissionControl:
    """The limits of one listener.

    :param counts: the listener's; the dispatcher keeps them.
    :param recent: the last refusals of all listeners.
    :param resume: called when a connection may be admitted that had to wait.
    :ivar refusals: the number of refused connections, by the config key that refused them.
    """

    def __init__(
        self,
        loop: EventLoop,
        config: ListenerConfig,
        counts: ListenerCounts,
        recent: deque[Refusal],
        resume: Callable[[], object],
    ) -> None:
        self.refusals: dict[str, int] = {}
        self._loop = loop
        self._counts = counts
        self._config = config
        self._recent = recent
        self._tags = {"listener": config.name}
        self._resume = resume
        self._max = config.max_connections
        self._waits = config.when_full == "wait"
        self._bucket: TokenBucket | None = None
        if config.connection_rate:
            self._bucket = TokenBucket(
                config.connection_rate, _burst(config.connection_rate, config.connection_rate_burst)
            )
        self._access: AccessList | None = None
        if config.allow or config.deny:
            self._access = AccessList(config.allow, config.deny)
        self._sources: SourceLimits | None = None
        if config.max_per_source or config.rate_per_source:
            rate = None
            if config.rate_per_source:
                rate = Rate(config.rate_per_source, _burst(config.rate_per_source, config.rate_per_source_burst))
            self._sources = SourceLimits(config.max_per_source, rate, config.ipv6_prefix)
        self._by_address = limits_sources(config) and not has_to_ask(config)  # at accept
        self._events: dict[tuple[str, bool], LimitEvent] = {}  # by reason, and whether it refuses connections
        self._token_timer: Timer | None = None
        self._forget_timer: Timer | None = None

    # --- before accept

    def must_wait(self) -> str | None:
        """Name the limit for which connections have to wait now; None if they need not."""
        if self._waits:
            if 0 < self._max <= self._counts.open:
                return "max_connections"
            if self._bucket is not None and not self._bucket.has_token(self._loop.now):
                return "connection_rate"
        return None

    def waits(self, reason: str) -> None:
        """Learn that connections wait for this limit: log it, and resume when the rate has its next token."""
        if reason == "connection_rate" and self._bucket is not None and self._token_timer is None:
            self._token_timer = self._loop.call_later(self._bucket.delay(self._loop.now), self._token_available)
        self._limit_hit(reason, refusing=False, peer="")

    def _token_available(self) -> None:
        self._token_timer = None
        self._resume()

    def is_full(self) -> bool:
        """Tell whether a connection that is accepted now will be refused, so that it needs no worker."""
        return not self._waits and 0 < self._max <= self._counts.open

    # --- after accept

    def admit(self, number: int, fd: int, peer: Any) -> bool:
        """Decide on an accepted connection. A refused one is closed.

        :param number: the id that the connection will have.
        """
        now = self._loop.now
        # A unix socket's peer has no address; file permissions control access to the socket.
        address = number_of(peer[0]) if self._by_address and type(peer) is tuple else None
        reason = self._refusal(address, now) if address is not None else None
        if reason is None:
            if self.is_full():
                reason = "max_connections"
            elif self._bucket is not None and not self._bucket.has_token(now):
                reason = "connection_rate"
        if reason is not None:
            self._refused(reason, format_peer(client_name(peer)))
            close_with_reset(fd, peer)
            return False
        if self._bucket is not None:
            self._bucket.take(now)
        if address is not None:
            self._opened(number, address, now)
        return True

    def admit_client(self, number: int, peer: tuple[str, int]) -> str | None:
        """Decide on an open connection whose client is known only now.

        :returns: the config key that refuses it; None if it is admitted.
        """
        address = number_of(peer[0])
        if address is None:
            return None
        reason = self._refusal(address, self._loop.now)
        if reason is not None:
            self._refused(reason, format_peer(peer))
        else:
            self._opened(number, address, self._loop.now)
        return reason

    def closed(self, connection: int) -> None:
        """Count a connection as closed, by its id; those of other listeners are ignored."""
        if self._sources is not None:
            self._sources.closed(connection)

    def _refusal(self, address: tuple[int, int], now: float) -> str | None:
        bits, number = address
        if self._access is not None and (reason := self._access.refusal(bits, number)) is not None:
            return reason
        if self._sources is not None:
            return self._sources.refusal(self._sources.source_of(bits, number), now)
        return None

    def _opened(self, connection: int, address: tuple[int, int], now: float) -> None:
        if self._sources is not None:
            self._sources.opened(connection, self._sources.source_of(*address), now)
            if self._config.rate_per_source and self._forget_timer is None:
                self._forget_timer = self._loop.call_later(QUIET, self._forget)

    def _forget(self) -> None:
        """Forget buckets that are full again. The timer runs while there are buckets."""
        self._forget_timer = None
        assert self._sources is not None
        if self._sources.forget_full(self._loop.now):
            self._forget_timer = self._loop.call_later(QUIET, self._forget)

    # --- records and log lines

    def refused_by_worker(self, reason: str, peer: str) -> None:
        """Record a client that a worker has refused when it accepted."""
        self._refused(reason, peer)

    def _refused(self, reason: str, peer: str) -> None:
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        self._recent.append(Refusal(time.time(), self._config.name, peer, reason))
        self._limit_hit(reason, refusing=True, peer=peer)

    def _limit_hit(self, reason: str, refusing: bool, peer: str) -> None:
        """Note that a limit had effect on a connection."""
        key = (reason, refusing)
        event = self._events.get(key)
        if event is None:
            event = self._events[key] = LimitEvent(self._loop.now)
            if refusing:
                log.warning(
                    "%s: refusing connections for %s, first that of %s",
                    self._config.name,
                    self._words(reason),
                    peer,
                    extra={**self._tags, "peer": peer, "reason": reason},
                )
            else:
                tags = {**self._tags, "reason": reason}
                log.warning("%s: connections have to wait for %s", self._config.name, self._words(reason), extra=tags)
            self._check_later(key, event, QUIET)
        event.latest = self._loop.now
        event.refused += refusing

    def _check_later(self, key: tuple[str, bool], event: LimitEvent, seconds: float) -> None:
        event.timer = self._loop.call_later(seconds, lambda: self._limit_cleared(key, event))

    def _limit_cleared(self, key: tuple[str, bool], event: LimitEvent) -> None:
        reason, refusing = key
        if not refusing and self._counts.paused and self.must_wait() == reason:
            event.latest = self._loop.now
        left = event.latest + QUIET - self._loop.now
        if left > 0:
            self._check_later(key, event, left)
        else:
            self._end(key)

    def _end(self, key: tuple[str, bool]) -> None:
        (reason, refusing), event = key, self._events.pop(key)
        if event.timer is not None:
            event.timer.cancel()
        name, words, tags = self._config.name, self._words(reason), {**self._tags, "reason": reason}
        if refusing:
            log.info(
                "%s: no longer refusing connections for %s: %s refused",
                name,
                words,
                counted(event.refused, "was", "were"),
                extra=tags,
            )
        else:
            log.info("%s: connections no longer have to wait for %s", name, words, extra=tags)

    def close(self) -> None:
        """End all limit events, for nothing is accepted any more."""
        for key in list(self._events):
            self._end(key)
        for timer in (self._token_timer, self._forget_timer):
            if timer is not None:
                timer.cancel()

    def _words(self, reason: str) -> str:
        """Write a key, with its value if that is one number."""
        value = getattr(self._config, reason)
        return reason if isinstance(value, tuple) else f"{reason} = {value:g}"


def _burst(rate: float, burst: int) -> int:
    """Use the config's value, or else a second's worth."""
    return burst or max(1, round(rate))
