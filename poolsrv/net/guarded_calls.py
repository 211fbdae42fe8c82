"""Calls of a plugin's callbacks inside the fault boundary.

This stays in plain Python where the rest is compiled: the frame shows what is being called, and for which connection
(worker/slow_watch.py looks at it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..core import forked_copies


class FaultTaker(Protocol):
    """What is told of an exception."""

    def _fault(self, what: str, error: BaseException) -> None:
        """A plugin's callback, named by ``what``, has raised an exception."""


def guarded_call(owner: FaultTaker, what: str, callback: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Call a plugin's callback, and tell its owner what it raises."""
    try:
        callback(*arguments)
    except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() is its own fault too
        owner._fault(what, error)
    forked_copies.end_if_made(what)
