"""When the supervisor starts the next pool, after one has crashed or could not serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..core.backoff import backoff
from ..core.event_loop import EventLoop, Timer

FIRST_DELAY: Final = 0.1  # seconds after a pool that could not serve; doubled each time
LONGEST_DELAY: Final = 5.0
MIN_UPTIME: Final = 1.0  # seconds of service below which a crash counts as part of a series
EARLY_CRASH_DELAY: Final = 0.1  # seconds after the second such crash in a row, and after each further one


class Restarts:
    """Counts failures, and delays the next start.

    :param start: called when the delay is over.
    :ivar crashes: how many pools have crashed that had served.
    """

    def __init__(self, loop: EventLoop, start: Callable[[], object]) -> None:
        self._loop = loop
        self._start = start
        self._timer: Timer | None = None
        self._failed = 0  # in a row
        self._early_crashes = 0  # in a row
        self.crashes = 0

    @property
    def is_due(self) -> bool:
        """Whether a pool will be started later."""
        return self._timer is not None

    def served(self) -> None:
        """Note that a pool serves."""
        self._failed = 0

    def crashed(self, uptime: float) -> float:
        """Count a crash of a pool that had served.

        :returns: seconds to wait: next to none, since clients wait.
        """
        self.crashes += 1
        self._early_crashes = self._early_crashes + 1 if uptime < MIN_UPTIME else 0
        return EARLY_CRASH_DELAY if self._early_crashes > 1 else 0.0

    def failed(self) -> float:
        """Count a pool that could not serve.

        :returns: seconds to wait.
        """
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
