"""Delays that grow with each failure in a row."""

from __future__ import annotations


def growing(first: float, longest: float, times: int) -> float:
    """Seconds to wait after so many failures before this one: ``first``, doubled each time, up to ``longest``."""
    return min(first * 2.0 ** min(times, 64), longest)
