"""Gives memory back to the system when a worker has nothing to do.

Theory. The C library keeps what has been freed, unless it is at the very end of its heap. One small piece that is still
in use, in the wrong place, keeps all that a rush has needed: large uploads at the same time, for example. So a worker
would grow with each rush that is greater than all before. malloc_trim(3) gives back whole pages anywhere. It takes a
fraction of a millisecond, and what is needed again has to be fetched again: so it is called only while no connection is
open, once after each time that something has happened.

It does not give back what is free at the end of a heap, unless this is the main one. So threads have none of their own.
Python's lock lets one of them at a time allocate memory, nearly always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..core.libc import libc

if TYPE_CHECKING:
    from ..core.event_loop import EventLoop
    from .service import Service

_M_ARENA_MAX: Final = -8  # of mallopt(3)
_trim: Final[Callable[[int], object] | None] = getattr(libc, "malloc_trim", None)  # musl has none
_set: Final[Callable[[int, int], object] | None] = getattr(libc, "mallopt", None)


def share_one_heap() -> None:
    """Have threads use the main heap, in this process and in those it forks, where the C library is glibc."""
    if _set is not None:
        _set(_M_ARENA_MAX, 1)


class SpareMemory:
    """Of one worker.

    :param give_back: malloc_trim(3), where the C library has it.
    """

    def __init__(
        self, loop: EventLoop, services: Sequence[Service], give_back: Callable[[int], Any] | None = _trim
    ) -> None:
        self._loop = loop
        self._services = services
        self._give_back = give_back
        self._events = 0  # that had happened the last time

    def look(self) -> None:
        """Give memory back, if there is nothing to do. To be called once a second, and once after the last event."""
        events = self._loop.events
        if events != self._events and not any(service.connections for service in self._services):
            self._events = events
            if self._give_back is not None:
                self._give_back(0)
