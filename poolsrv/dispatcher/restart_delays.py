"""Restart back-off: how long to wait before a worker is started again."""

from __future__ import annotations

from typing import Final

from ..core.backoff import backoff

FIRST_DELAY: Final = 0.1  # seconds after a failed start
LONGEST_DELAY: Final = 30.0
MIN_UPTIME: Final = 1.0  # seconds of service below which an exit is an early one
EARLY_EXIT_DELAY: Final = 0.05  # seconds after the second early exit in a row
LONGEST_EARLY_EXIT_DELAY: Final = 0.5


def after_failed_start(failures: int) -> float:
    """Seconds to wait after so many failed starts in a row."""
    return backoff(FIRST_DELAY, LONGEST_DELAY, failures - 1)


def after_early_exit(exits: int) -> float:
    """Seconds to wait after so many early exits in a row; 0 after the first."""
    return backoff(EARLY_EXIT_DELAY, LONGEST_EARLY_EXIT_DELAY, exits - 2) if exits > 1 else 0.0
