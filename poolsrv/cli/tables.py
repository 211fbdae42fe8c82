"""Text for people: aligned tables, and numbers with their units."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align the columns of a table, its names in the first line.

    :param columns: the name of each, with ``<`` or ``>`` before it: how it is aligned.
    """
    cells = [[column[1:] for column in columns], *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        aligned = zip(row, columns, widths, strict=True)
        lines.append("  ".join(f"{cell:{column[0]}{width}}" for cell, column, width in aligned).rstrip())
    return "\n".join(lines)


def count(number: float) -> str:
    """Write a number: ``1234``, from 10,000 on ``12.3k``, ``4.5M``."""
    for limit, divisor, unit in ((10_000, 1, ""), (1_000_000, 1_000, "k"), (1_000_000_000, 1_000_000, "M")):
        if number < limit:
            return f"{number / divisor:.1f}{unit}" if unit else f"{number:.0f}"
    return f"{number / 1_000_000_000:.1f}G"


def rate(number: float) -> str:
    """Write a number a second: ``0.2``, ``12``, ``123.5k``."""
    return f"{number:.1f}" if 0 < number < 10 else count(number)


def size(number: float) -> str:
    """Write a number of bytes: ``512 B``, ``1.5 KiB``."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def duration(seconds: float) -> str:
    """Write a number of seconds: ``4.2 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def span(seconds: float | None) -> str:
    """Write a short time: ``250 µs``, ``3.1 ms``, ``0.25 s``, from a minute on as ``duration`` does; ``-`` for None."""
    if seconds is None:
        return "-"
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (60.0, 1.0, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return duration(seconds)


def moment(at: float) -> str:
    """Write a Unix time as local time: ``2026-01-31 12:00:00``."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
