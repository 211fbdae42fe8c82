"""Exponential backoff: delays that grow with each failure in a row."""

from __future__ import annotations


def backoff(first: float, longest: float, failures: int) -> float:
    """Return the seconds to wait: ``first``, doubled for each failure before this one, up to ``longest``."""
    return min(first * 2.0 ** min(failures, 64), longest)
