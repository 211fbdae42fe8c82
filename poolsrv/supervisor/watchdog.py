"""The watchdog over the dispatcher of the pool that serves: a dispatcher that is silent for too long is replaced.

A dispatcher's loop sends "alive" as often as the supervisor has asked for. It is silent while the loop does not run: a
plugin's ``on_child_exit`` does not return, or a signal has stopped the process. (Ctrl-Z stops the whole server, the
supervisor too.) A silent dispatcher is continued, asked where it hangs, and killed unless it then responds. After the
supervisor itself was held up, nothing can be said of the dispatcher, and its time begins again.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from ..core.event_loop import EventLoop, Timer
from .pool import PoolProcess

log = logging.getLogger("poolsrv.supervisor")

DEFAULT_TIMEOUT: Final = 30.0  # seconds, where hang_timeout is 0: hardly any plugin has code that runs there
MIN_TIMEOUT: Final = 5.0  # a dispatcher that forks hundreds of workers takes its time
SIGNS: Final = 4  # messages "alive" within the timeout


def timeout_of(pool: PoolProcess) -> float:
    """Return the seconds that a pool's dispatcher may be silent."""
    return max(pool.hang_timeout, MIN_TIMEOUT) if pool.hang_timeout else DEFAULT_TIMEOUT


class Watchdog:
    """Watches one pool at a time."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._timer: Timer | None = None

    def begin(self, pool: PoolProcess) -> None:
        """Watch this pool, and no other."""
        self.end()
        pool.last_report_at = self._loop.now
        self._check_later(pool)

    def end(self) -> None:
        """Watch no pool."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_later(self, pool: PoolProcess) -> None:
        interval = timeout_of(pool) / SIGNS
        self._timer = self._loop.call_later(interval, partial(self._check, pool, self._loop.now + interval))

    def _check(self, pool: PoolProcess, due: float) -> None:
        # What the pool has sent meanwhile has been received: the loop handles events before timers.
        now, timeout = self._loop.now, timeout_of(pool)
        if now - due > timeout / SIGNS:
            pool.last_report_at = now
        silence = now - pool.last_report_at
        if silence <= timeout:
            self._check_later(pool)
            return
        self._timer = None
        pool.kill_hung_later(0.0, partial(self._log, pool, silence), partial(self._responds, pool, now))

    def _responds(self, pool: PoolProcess, asked: float) -> bool:
        if pool.last_report_at <= asked:
            return False
        log.warning("the pool (%s) was silent, and responds again", pool)
        self._check_later(pool)
        return True

    def _log(self, pool: PoolProcess, silence: float, where: str) -> None:
        log.error(
            "the dispatcher of the pool (%s) has been silent for %.1f s, %s: killing it",
            pool,
            silence,
            where,
            extra={"reason": where},
        )
