"""The children of the supervisor, which is a subreaper: its pools, and what dead dispatchers have left.

Children inherited over an exec (a shell's ``exec poolsrv``) are not the server's: they are never killed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Set
from typing import Final

from ..core import processes, procfs
from ..core.event_loop import EventLoop

ORPHANS_TIMEOUT: Final = 4.0  # seconds that workers have to end by themselves after their dispatcher was killed


class Children:
    """Made before the supervisor starts a pool.

    :param pools: the pids of the pools, as they are at each call.
    :param started: those of pools that have been started already.
    """

    def __init__(self, loop: EventLoop, pools: Set[int], started: Set[int]) -> None:
        self._loop = loop
        self._pools = pools
        self._inherited = procfs.children_of_this_process() - started

    def has_orphans(self) -> bool:
        """Whether a dead dispatcher has left anything that runs."""
        return bool(procfs.children_of_this_process() - self._known())

    def reaped(self) -> Iterator[tuple[int, int]]:
        """Reap every child that has ended; for each its pid and its exit code."""
        for pid, status in processes.reaped():
            self._inherited.discard(pid)
            yield pid, os.waitstatus_to_exitcode(status)

    def kill_orphans_later(self) -> None:
        """Kill what a dead dispatcher has left, unless it has ended by itself within ``ORPHANS_TIMEOUT``."""
        self._loop.call_later(ORPHANS_TIMEOUT, self._kill_orphans)

    def _kill_orphans(self) -> None:
        if processes.kill_children(self._known()):
            # Their own children are adopted only once they have ended.
            self._loop.call_later(0.1, self._kill_orphans)

    def kill_all(self, reap: Callable[[], object]) -> None:
        """At the end of the server: kill what is left, and what that leaves behind.

        :param reap: called to reap what has ended.
        """
        processes.kill_until_none(self._loop, ORPHANS_TIMEOUT, reap, spare=self._inherited)

    def _known(self) -> set[int]:
        return self._inherited | self._pools
