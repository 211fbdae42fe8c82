"""A descriptor that is kept for when there are no others left.

Plugins may use up all descriptors of a process. The engine has to look up its children in /proc all the same, or it
could end no program and reap no orphan. So each process of the server has one in reserve, which it gives up for such a
look. Forked workers inherit it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, TypeVar

_T = TypeVar("_T")

NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})

_reserve = -1
_is_wanted = False


def keep() -> None:
    """Open the reserve of this process."""
    global _is_wanted
    if not _is_wanted:
        _is_wanted = True
        _open()


def use(look: Callable[[], _T]) -> _T:
    """Call ``look()``, which needs one descriptor at a time; if there is none, once more with the reserve.

    :raises OSError: what it raises. There may be no descriptor even then, if another thread is faster.
    """
    global _reserve
    if _is_wanted and _reserve < 0:
        _open()
    try:
        return look()
    except OSError as error:
        if error.errno not in NONE_LEFT or _reserve < 0:
            raise
    os.close(_reserve)
    _reserve = -1
    try:
        return look()
    finally:
        _open()


def _open() -> None:
    global _reserve
    try:
        _reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        pass  # it is tried again before the next look
