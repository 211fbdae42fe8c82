"""When the supervisor starts the next pool, after one that has crashed or could not serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..core.backoff import backoff
from ..core.event_loop import EventLoop, Timer

FIRST_DELAY: Final = 0.1  # seconds before a pool that could not serve is tried again; doubled each time
LONGEST_DELAY: Final = 5.0
YOUNG: Final = 1.0  # seconds of service below which a crash counts as part of a series
YOUNG_DELAY: Final = 0.1  # seconds after the second such crash in a row, and after each further one


class Restarts:
    """Counts them, and has the next one wait.

    :param start: called when it is time.
    :ivar crashes: of pools that served, in all.
    """

    def __init__(self, loop: EventLoop, start: Callable[[], object]) -> None:
        self._loop = loop
        self._start = start
        self._timer: Timer | None = None
        self._failed = 0  # in a row
        self._young = 0  # crashes in a row
        self.crashes = 0

    @property
    def is_due(self) -> bool:
        """Whether one is to be started later."""
        return self._timer is not None

    def served(self) -> None:
        """A pool serves."""
        self._failed = 0

    def crashed(self, lived: float) -> float:
        """A pool has crashed that had served; the delay: clients wait, so there is next to none."""
        self.crashes += 1
        self._young = self._young + 1 if lived < YOUNG else 0
        return YOUNG_DELAY if self._young > 1 else 0.0

    def failed(self) -> float:
        """A pool could not serve; the delay."""
        self._failed += 1
        return backoff(FIRST_DELAY, LONGEST_DELAY, self._failed - 1)

    def later(self, delay: float) -> None:
        """Start a pool after so many seconds."""
        self.cancel()
        self._timer = self._loop.call_later(delay, self._due)

    def cancel(self) -> None:
        """Do not start one later."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        self._start()
