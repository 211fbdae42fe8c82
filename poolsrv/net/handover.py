"""Finds out which process still has a connection that an ended program has passed on, and until when.

Under inetd and tcpserver the server has no copy of the connection: it lasts until the last process that has it closes
it, and a program may leave it to a child and end. Here the worker has a copy too, so that a reset, a deadline and a
stop reach the connection; it has to find out by itself when it is the last one. The kernel does not tell how many
copies there are, but which descriptors a process has (proc(5), ``/proc/PID/fd``). Whatever a program leaves behind
becomes a child of the worker, which is a subreaper; so these, and their descendants, are looked at. The end of a
process that has the connection is told by its pidfd; one that closes it and lives on is noticed at the next look.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from typing import Final

from ..core import reserve
from ..core.event_loop import READ, EventLoop, Timer
from ..core.processes import group_of
from ..core.procfs import children_of, is_alive

FIRST_LOOK: Final = 0.05  # seconds; each next one comes after twice the time
LONGEST_LOOK: Final = 1.0


class Handover:
    """See the module's docstring.

    :param fd: the connection's socket.
    :param group: the process group of the program that has ended.
    :param others: processes that need not be looked at: the programs that run.
    :param over: called when no other process has the connection any more.
    """

    def __init__(
        self, loop: EventLoop, fd: int, group: int, others: Container[int], over: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._link = f"socket:[{os.fstat(fd).st_ino}]"
        self._group = group
        self._others = others
        self._over = over
        self._holder = 0  # a process that has it
        self._pidfd = -1
        self._interval = FIRST_LOOK
        self._timer: Timer | None = None

    def begin(self) -> bool:
        """Look for a process that has the connection.

        :returns: False if there is none; True if ``over()`` will be called, unless it is cancelled before.
        """
        holder = self._find()
        while holder:
            try:
                self._watch(holder)
                return True
            except ProcessLookupError:
                holder = self._find()  # it has ended this very moment
        return False

    def cancel(self) -> None:
        """Look no more. Harmless when called again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pidfd >= 0:
            self._loop.unregister(self._pidfd)
            self._loop.at_end_of_turn(lambda pidfd=self._pidfd: os.close(pidfd))  # type: ignore[misc]
            self._pidfd = -1

    def _watch(self, holder: int) -> None:
        self._holder = holder
        try:
            self._pidfd = os.pidfd_open(holder)
            self._loop.register(self._pidfd, READ, lambda mask: self._look_again())
        except ProcessLookupError:
            raise
        except OSError:
            if self._pidfd >= 0:
                os.close(self._pidfd)
            self._pidfd = -1  # no descriptors left: the looks have to do
        self._look_later()

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._look)
        self._interval = min(2 * self._interval, LONGEST_LOOK)

    def _look(self) -> None:
        self._timer = None
        if self._has_it(self._holder):
            self._look_later()
        else:
            self._look_again()

    def _look_again(self) -> None:
        """The process that had it has it no more; another one may."""
        self.cancel()
        if not self.begin():
            self._over()

    # --- looking for a holder

    def _find(self) -> int:
        """A process that has the connection; 0: none."""
        left_behind = self._left_behind()
        while left_behind:
            to_look_at = list(left_behind)
            while to_look_at:
                pid = to_look_at.pop()
                if self._has_it(pid):
                    return pid
                to_look_at.extend(_children(pid))
            # One of them may have ended meanwhile, and have left behind another one that has not been looked at.
            left_behind, before = self._left_behind(), left_behind
            left_behind -= before
        return 0

    def _left_behind(self) -> set[int]:
        return {pid for pid in _children(os.getpid()) if pid not in self._others}

    def _has_it(self, pid: int) -> bool:
        folder = f"/proc/{pid}/fd"
        try:
            names = reserve.use(lambda: os.listdir(folder))
        except PermissionError:
            # A set-user-ID program. What is in the program's own group is taken for one that has it.
            return group_of(pid) == self._group and is_alive(pid)
        except OSError:
            return False
        return any(_link_of(f"{folder}/{name}") == self._link for name in names)


def _children(pid: int) -> set[int]:
    """Its children; none where no descriptor is left to look with."""
    try:
        return children_of(pid)
    except OSError:
        return set()


def _link_of(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
