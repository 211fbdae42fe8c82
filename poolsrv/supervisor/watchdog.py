"""The supervisor's watch over the dispatcher of the pool that serves: one that is silent for too long is replaced.

A dispatcher says "alive" as often as it has been told to, from its loop. It is silent where that does not turn: a
plugin's ``on_child_exit`` does not return, or a signal has stopped it. (Whoever stops the whole server, as Ctrl-Z does,
stops the supervisor too.) Then it is continued, asked where it hangs, and killed unless it is heard of. Where the
supervisor was itself held up, nothing can be said of the dispatcher, and its time begins again.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from ..core.event_loop import EventLoop, Timer
from .pool import PoolProcess

log = logging.getLogger("poolsrv.supervisor")

DEFAULT_PATIENCE: Final = 30.0  # seconds, where hang_timeout is 0: hardly any plugin has code that runs there
LEAST_PATIENCE: Final = 5.0  # a dispatcher that forks hundreds of workers takes its time
SIGNS: Final = 4  # of life, in that time


def patience_with(pool: PoolProcess) -> float:
    """Seconds that its dispatcher may be silent."""
    return max(pool.hang_timeout, LEAST_PATIENCE) if pool.hang_timeout else DEFAULT_PATIENCE


class Watch:
    """Over one pool at a time."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._timer: Timer | None = None

    def begin(self, pool: PoolProcess) -> None:
        """Watch this pool, and no other."""
        self.end()
        pool.last_heard = self._loop.now
        self._look_later(pool)

    def end(self) -> None:
        """Watch nobody."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self, pool: PoolProcess) -> None:
        interval = patience_with(pool) / SIGNS
        self._timer = self._loop.call_later(interval, partial(self._look, pool, self._loop.now + interval))

    def _look(self, pool: PoolProcess, due: float) -> None:
        # What it has said meanwhile is heard: events come before timers.
        now, patience = self._loop.now, patience_with(pool)
        if now - due > patience / SIGNS:
            pool.last_heard = now
        silence = now - pool.last_heard
        if silence <= patience:
            self._look_later(pool)
            return
        self._timer = None
        pool.ask_later(0.0, partial(self._tell, pool, silence), partial(self._is_heard_of, pool, now))

    def _is_heard_of(self, pool: PoolProcess, asked: float) -> bool:
        if pool.last_heard <= asked:
            return False
        log.warning("the pool (%s) was silent, and is heard of again", pool)
        self._look_later(pool)
        return True

    def _tell(self, pool: PoolProcess, silence: float, where: str) -> None:
        log.error(
            "the dispatcher of the pool (%s) has been silent for %.1f s, %s: killing it",
            pool,
            silence,
            where,
            extra={"reason": where},
        )
