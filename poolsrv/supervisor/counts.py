"""What pools have counted: kept while they come and go, so that no counter of ``poolsrv status`` goes back.

Theory. Each pool reports what it has counted itself: once a second if that has changed, and before it shows it to
anyone. So everything that has been shown is here, even if the pool crashes a moment later. The pool that answers
``status`` is told what all others have counted: those that have ended, and those that still drain.

At a reload, the new pool does not answer before it knows what the old one has shown last. When the old one is told to
stop, it closes its control socket and reports its counts, marked as the *last* ones before the stop. (What it counts
while it drains follows.) Then the new one is told that its picture is *complete*.
"""

from __future__ import annotations

from typing import Any, Final

from ..core.event_loop import EventLoop
from ..ipc.counted import MOST_KEYS, added, packed, unpacked
from ..ipc.pieces import in_pieces
from .pool import PoolProcess
from .run_keeper import RunKeeper

AGAIN_AFTER: Final = 0.2  # seconds, where a pool has no room for a message


class Counts:
    """The counts of all pools, and their records of runs, which travel in the same messages."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._runs = RunKeeper(loop)
        self._ended: dict[str, Any] = {}  # key to amount, packed
        self._of_pools: dict[int, dict[str, Any]] = {}  # the same, by pid
        self._receiver: PoolProcess | None = None
        self._awaited: PoolProcess | None = None  # whose last counts the receiver has to have
        self._untold: set[str] = set()
        self._complete_untold = False
        self._retry_due = False

    def tell(self, pool: PoolProcess, former: PoolProcess | None) -> None:
        """Tell this pool, from now on, what others count.

        :param former: the pool that has answered until now, and has been told to stop.
        """
        self._receiver, self._awaited = pool, former
        self._untold = {key for keys in (self._ended, *self._of_pools.values()) for key in keys}
        self._complete_untold = True
        self._send()
        self._runs.tell(pool)

    def taken(self, pool: PoolProcess, fields: dict[str, Any]) -> None:
        """A pool has told what it has counted, or of runs."""
        self._runs.taken(pool, fields)
        counted = fields.get("counted")
        if counted:
            own = self._of_pools.setdefault(pool.pid, {})
            for key, amount in counted:
                if key in own or len(own) < MOST_KEYS:
                    own[key] = packed(amount)
                    self._untold.add(key)
        if fields.get("last") and pool is self._awaited:
            self._awaited = None
        if pool is not self._receiver:
            self._send()

    def ended(self, pool: PoolProcess) -> None:
        """A pool has ended; its last messages are here."""
        self._runs.ended(pool)
        for key, amount in self._of_pools.pop(pool.pid, {}).items():
            if key in self._ended or len(self._ended) < MOST_KEYS:
                self._ended[key] = packed(added(unpacked(self._ended.get(key)), unpacked(amount)))
        if pool is self._receiver:
            self._receiver = None
        if pool is self._awaited:
            self._awaited = None
        self._send()

    def _send(self) -> None:
        receiver = self._receiver
        if receiver is None or self._awaited is not None or not (self._untold or self._complete_untold):
            return
        others = [self._ended, *(own for pid, own in self._of_pools.items() if pid != receiver.pid)]
        try:
            for piece in list(in_pieces([(key, _sum(others, key)) for key in self._untold])):
                receiver.link.send("counted", counted=[one for one in piece if one[1] is not None])
                self._untold.difference_update(key for key, _ in piece)
            if self._complete_untold:
                receiver.link.send("counted", counted=[], complete=True)
                self._complete_untold = False
        except OSError:
            if not self._retry_due:
                self._retry_due = True
                self._loop.call_later(AGAIN_AFTER, self._try_again)

    def _try_again(self) -> None:
        self._retry_due = False
        self._send()


def _sum(counts: list[dict[str, Any]], key: str) -> Any:
    total = None
    for one in counts:
        if key in one:
            total = added(total, unpacked(one[key]))
    return total
