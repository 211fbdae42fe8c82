"""Tells the supervisor what this pool has counted, and learns what other pools have (supervisor/counts.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..core.event_loop import EventLoop
from ..ipc.metrics import BUCKETS, COUNTER, HISTOGRAM, Distribution, Series
from ..ipc.pieces import in_pieces
from ..ipc.pool_link import PoolLink
from .ledger import Amount, Ledger

TELL_EVERY: Final = 1.0  # seconds
LONGEST_WAIT: Final = 2.0  # seconds for a former pool's counts, which may hang


class LedgerLink:
    """Keeps the ledgers of all pools together.

    :param update: has everything entered into the ledger.
    :param on_complete: called once, when it is known what other pools have counted, or too long has passed.
    :param is_supported: whether the supervisor does its part; one of an older version does not.
    :ivar is_complete: whether it is known what other pools have counted, or was waited for too long.
    """

    def __init__(
        self,
        loop: EventLoop,
        link: PoolLink,
        ledger: Ledger,
        *,
        update: Callable[[], object],
        on_complete: Callable[[], object],
        is_supported: bool,
    ) -> None:
        self._loop = loop
        self._link = link
        self._ledger = ledger
        self._update = update
        self._on_complete = on_complete
        self._is_supported = is_supported
        self.is_complete = False
        self._told: dict[Series, float] = {}
        self._events_seen = -1

    def begin(self) -> None:
        """Begin to tell, once a second while there are events."""
        if self._is_supported:
            self._tell_regularly()
        else:
            self.complete()

    def wait(self) -> None:
        """Wait for what the former pool has counted; not for ever."""
        self._loop.call_later(LONGEST_WAIT, self.complete)

    def complete(self) -> None:
        """Go on without waiting any longer."""
        if not self.is_complete:
            self.is_complete = True
            self._on_complete()

    def learn(self, fields: dict[str, Any]) -> None:
        """Take over what other pools have counted."""
        for key, amount in fields["counted"]:
            series = _series(key)
            if series is not None:
                self._ledger.learn(series, _amount(amount))
        if fields.get("complete"):
            self.complete()

    def _tell_regularly(self) -> None:
        self._update()
        self.tell()
        if self._loop.events != self._events_seen:
            self._events_seen = self._loop.events
            self._loop.call_later(TELL_EVERY, self._tell_regularly)
        else:
            self._loop.before_next_turn(self._wake)  # a server at rest is not to wake up

    def _wake(self, events: Sequence[object]) -> None:
        if events:
            self._loop.call_later(TELL_EVERY, self._tell_regularly)
        else:
            self._loop.before_next_turn(self._wake)  # only a timer was due

    def tell(self, last: bool = False) -> None:
        """Tell what has changed.

        :param last: this pool has been told to stop, and answers no more questions.
        """
        if not self._is_supported:
            return
        own = self._ledger.own()
        progress = {
            _key(series): (series, reached)
            for series, amount in own.items()
            if (reached := _progress(amount)) != self._told.get(series, 0)
        }
        try:
            for piece in in_pieces((key, _as_json(own[series])) for key, (series, _) in progress.items()):
                self._link.send("alive", counted=piece)
                self._told.update(progress[key] for key, _ in piece)
            if last:
                self._link.send("alive", last=True)
        except OSError:
            return  # the supervisor is held up: the rest follows in a second


def _progress(amount: Amount) -> float:
    return amount.count if isinstance(amount, Distribution) else amount


def _as_json(amount: Amount) -> Any:
    return [amount.sum, amount.filled()] if isinstance(amount, Distribution) else amount


def _key(series: Series) -> str:
    return json.dumps([series.kind, series.name, series.labels])


def _series(key: str) -> Series | None:
    """Read a key; None if it is a later version's, after a downgrade."""
    try:
        kind, name, labels = json.loads(key)
        if kind in (COUNTER, HISTOGRAM) and isinstance(name, str):
            return Series(kind, name, tuple((str(label), str(value)) for label, value in labels))
    except (ValueError, TypeError):
        pass
    return None


def _amount(amount: Any) -> Amount:
    if not isinstance(amount, list):
        return float(amount) if isinstance(amount, float) else int(amount)
    distribution = Distribution()
    distribution.grow(amount[0], [(bucket, times) for bucket, times in amount[1] if bucket < BUCKETS])
    return distribution
