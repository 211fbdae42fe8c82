"""Who is admitted at one listener, and what is remembered of those who were not.

Theory. There are two kinds of limits. Those over the whole pool (``max_connections``, ``connection_rate``) hold, as
``when_full`` says, by *waiting*: nothing is accepted, and who comes stays in the kernel's queue; or by *refusing*:
who comes is accepted and closed at once. Those that go by who comes (``allow``, ``deny``, and the limits per source)
can only refuse, for the address is known once a connection is accepted. A connection that is refused takes no token
and no place; it never gets near a worker.

A refused connection is closed with a reset: the kernel then keeps nothing of it (no TIME_WAIT), and a flood leaves
nothing behind.

The log tells edges. An *episode* begins with the first refusal for a reason, or when the first has to wait; it ends
when that has not happened for ``QUIET`` seconds. So a limit that is reached again and again is two lines in the log.
Each connection that was refused is counted, and the last ``RECENT`` of the whole server are kept.

Where a proxy stands in front and says who its client is, the worker learns that from the connection's first bytes.
Then the dispatcher checks only the limits over the pool when it accepts; for the rest the worker asks.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..config.model import has_to_ask, limits_sources
from ..core.event_loop import EventLoop, Timer
from ..core.words import counted
from ..net.access_list import AccessList, number_of
from ..net.addresses import client_name, format_peer
from ..net.descriptor import RESET_AT_CLOSE
from .source_limits import Sources
from .token_bucket import Rate, TokenBucket

if TYPE_CHECKING:
    from ..config.model import ListenerConfig
    from .listener import Listener


log = logging.getLogger("poolsrv.admission")

QUIET: Final = 5.0  # seconds without a refusal, or without one who has to wait, after which an episode has ended
RECENT: Final = 20  # refusals that are kept


class Refusal(msgspec.Struct, frozen=True):
    """One connection that was refused.

    :ivar time: in seconds since the epoch.
    :ivar listener: the listener's name.
    :ivar peer: the client's address, as logs write it.
    :ivar reason: the key of the config that refused it.
    """

    time: float
    listener: str
    peer: str
    reason: str


class LimitEvent(msgspec.Struct, eq=False):
    """While a limit holds.

    :ivar latest: when it has last been felt, in the loop's time.
    :ivar refused: how many have been refused.
    """

    latest: float
    refused: int = 0
    timer: Timer | None = None


class AdmissionControl:
    """Of one listener; runs in the dispatcher.

    :param recent: the last refusals of all listeners.
    :param resume: called when somebody may be admitted who had to wait.
    :ivar refusals: how many connections have been refused, by the key of the config that refused them.
    """

    def __init__(
        self,
        loop: EventLoop,
        listener: Listener,
        config: ListenerConfig,
        recent: deque[Refusal],
        resume: Callable[[], object],
    ) -> None:
        self.refusals: dict[str, int] = {}
        self._loop = loop
        self._listener = listener
        self._config = config
        self._recent = recent
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
        self._sources: Sources | None = None
        if config.max_per_source or config.rate_per_source:
            rate = None
            if config.rate_per_source:
                rate = Rate(config.rate_per_source, _burst(config.rate_per_source, config.rate_per_source_burst))
            self._sources = Sources(config.max_per_source, rate, config.ipv6_prefix)
        self._by_address = limits_sources(config) and not has_to_ask(config)  # when it is accepted
        self._episodes: dict[tuple[str, bool], LimitEvent] = {}  # by reason, and whether connections are refused for it
        self._token_timer: Timer | None = None
        self._forget_timer: Timer | None = None

    # --- before accepting

    def must_wait(self) -> str | None:
        """The key of the limit for which nobody is to be accepted now; None: nobody has to wait."""
        if self._waits:
            if 0 < self._max <= self._listener.open:
                return "max_connections"
            if self._bucket is not None and not self._bucket.has_token(self._loop.now):
                return "connection_rate"
        return None

    def waits(self, reason: str) -> None:
        """Nobody is accepted, for this limit: say so, and have the rate's next token noticed."""
        if reason == "connection_rate" and self._bucket is not None and self._token_timer is None:
            self._token_timer = self._loop.call_later(self._bucket.delay(self._loop.now), self._token_is_there)
        self._limit_hit(reason, refusing=False, peer="")

    def _token_is_there(self) -> None:
        self._token_timer = None
        self._resume()

    def is_full(self) -> bool:
        """Whether whoever is accepted now will be refused, so that no worker is needed."""
        return not self._waits and 0 < self._max <= self._listener.open

    # --- once accepted

    def admit(self, number: int, fd: int, peer: Any) -> bool:
        """Decide on a connection that has been accepted; it is closed where it is refused.

        :param number: the id that it is to have.
        """
        now = self._loop.now
        # A unix socket's peer has no address; who may connect there is who may write to its file.
        address = number_of(peer[0]) if self._by_address and type(peer) is tuple else None
        reason = self._refusal(address, now) if address is not None else None
        if reason is None:
            if self.is_full():
                reason = "max_connections"
            elif self._bucket is not None and not self._bucket.has_token(now):
                reason = "connection_rate"
        if reason is not None:
            self._refused(reason, format_peer(client_name(peer)))
            _close_with_reset(fd, peer)
            return False
        if self._bucket is not None:
            self._bucket.take(now)
        if address is not None:
            self._opened(number, address, now)
        return True

    def admit_client(self, number: int, peer: tuple[str, int]) -> str | None:
        """Decide on a connection that has been admitted, and whose client is only now known.

        :returns: the key of the config that refuses it; None: it is admitted.
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

    def closed(self, connections: Iterable[int]) -> None:
        """Connections of any listener have been closed, by their ids."""
        if self._sources is not None:
            self._sources.closed(connections)

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
        """Runs while there are buckets."""
        self._forget_timer = None
        assert self._sources is not None
        if self._sources.forget_full(self._loop.now):
            self._forget_timer = self._loop.call_later(QUIET, self._forget)

    # --- what is remembered and told

    def _refused(self, reason: str, peer: str) -> None:
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        self._recent.append(Refusal(time.time(), self._listener.name, peer, reason))
        self._limit_hit(reason, refusing=True, peer=peer)

    def _limit_hit(self, reason: str, refusing: bool, peer: str) -> None:
        """A limit has had its effect on somebody."""
        key = (reason, refusing)
        episode = self._episodes.get(key)
        if episode is None:
            episode = self._episodes[key] = LimitEvent(self._loop.now)
            if refusing:
                log.warning(
                    "%s: refusing connections for %s, first that of %s",
                    self._listener.name,
                    self._words(reason),
                    peer,
                    extra={**self._listener.tags, "peer": peer, "reason": reason},
                )
            else:
                tags = {**self._listener.tags, "reason": reason}
                log.warning("%s: connections have to wait for %s", self._listener.name, self._words(reason), extra=tags)
            self._look_again(key, episode, QUIET)
        episode.latest = self._loop.now
        episode.refused += refusing

    def _look_again(self, key: tuple[str, bool], episode: LimitEvent, seconds: float) -> None:
        episode.timer = self._loop.call_later(seconds, lambda: self._limit_cleared(key, episode))

    def _limit_cleared(self, key: tuple[str, bool], episode: LimitEvent) -> None:
        reason, refusing = key
        if not refusing and self._listener.paused and self.must_wait() == reason:
            episode.latest = self._loop.now
        left = episode.latest + QUIET - self._loop.now
        if left > 0:
            self._look_again(key, episode, left)
        else:
            self._end(key)

    def _end(self, key: tuple[str, bool]) -> None:
        (reason, refusing), episode = key, self._episodes.pop(key)
        if episode.timer is not None:
            episode.timer.cancel()
        name, words, tags = self._listener.name, self._words(reason), {**self._listener.tags, "reason": reason}
        if refusing:
            log.info(
                "%s: no longer refusing connections for %s: %s refused",
                name,
                words,
                counted(episode.refused, "was", "were"),
                extra=tags,
            )
        else:
            log.info("%s: connections no longer have to wait for %s", name, words, extra=tags)

    def close(self) -> None:
        """Nothing is accepted any more: say what there is to say."""
        for key in list(self._episodes):
            self._end(key)
        for timer in (self._token_timer, self._forget_timer):
            if timer is not None:
                timer.cancel()

    def _words(self, reason: str) -> str:
        """A key with its value, where that is one number."""
        value = getattr(self._config, reason)
        return reason if isinstance(value, tuple) else f"{reason} = {value:g}"


def _burst(rate: float, burst: int) -> int:
    """What the config says, or else a second's worth."""
    return burst or max(1, round(rate))


def _close_with_reset(fd: int, peer: Any) -> None:
    if type(peer) is tuple:
        # The family does not matter here, and with one given no system call is made to find it out.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        sock.close()
    else:
        os.close(fd)
