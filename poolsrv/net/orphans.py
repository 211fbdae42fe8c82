"""Reaps the processes that programs leave behind, and tells them from a plugin's own children.

Theory. A worker is a subreaper: what outlives the program that started it becomes the worker's child, and once dead
stays in the process table until the worker waits for it. A plugin's ``subprocess`` is the worker's child as well, and
its exit status is the plugin's. Nothing in the process table tells one from the other: not the parent, and not the
group or session, which either may have changed.

So programs are marked when they are started, with something that every process inherits from its parent, that can be
read of a dead one, and that means nothing to anybody: the soft limit of file locks (RLIMIT_LOCKS), which Linux has not
heeded since 2.4 (getrlimit(2)). The mark has the worker's process id in it, so that a server started by a program of
another server has marks of its own. It is set around the start; where the process has several threads, one of which
may start something of its own at this moment, just after it.

A process that has changed its limits, or that a program with another user's rights has started, has no mark. It is
reaped when the worker ends.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Container
from pathlib import Path
from typing import Final

from ..core import reserve
from ..core.event_loop import EventLoop

SWEEP_INTERVAL: Final = 0.2  # seconds between two looks for dead orphans, while there may be any
MOST_PER_SWEEP: Final = 200  # that are reaped; then others have their turn

_RLIMIT_LOCKS: Final = 10  # asm-generic/resource.h; the resource module lacks it
_MARK: Final = 1 << 40  # plus the process id
_EXITED: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT

# By this process's id: its limits during a start, and its own. Asked for once, for they mean nothing to anybody.
_limits: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}


def start_marked(start: Callable[[], int]) -> int:
    """Start a program by ``start()``, and mark it.

    :returns: its process id, as ``start`` does.
    """
    if threading.active_count() > 1:
        pid = start()
        mark(pid)
        return pid
    pid = os.getpid()
    limits = _limits.get(pid)
    if limits is None:
        own = resource.getrlimit(_RLIMIT_LOCKS)
        _limits.clear()  # in a copy: those of its parent
        limits = _limits[pid] = (_own_mark(own[1]), own[1]), own
    try:
        resource.setrlimit(_RLIMIT_LOCKS, limits[0])
        return start()
    finally:
        resource.setrlimit(_RLIMIT_LOCKS, limits[1])


def mark(pid: int) -> None:
    """Mark a process, and with it all that it starts from now on. Nothing where it is gone, or another user's."""
    try:
        hard = resource.prlimit(pid, _RLIMIT_LOCKS)[1]
        resource.prlimit(pid, _RLIMIT_LOCKS, (_own_mark(hard), hard))
    except (ProcessLookupError, PermissionError):
        pass


def is_marked(pid: int) -> bool:
    """Whether a process, dead or alive, is a program of this process, or descends from one."""
    try:
        limits = reserve.use(Path(f"/proc/{pid}/limits").read_bytes)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    words = limits.partition(b"Max file locks")[2].split(None, 1)
    return bool(words) and words[0] == b"%d" % (_MARK + os.getpid())


def _own_mark(hard: int) -> int:
    own = _MARK + os.getpid()
    return own if hard == resource.RLIM_INFINITY else min(own, hard)


class Orphans:
    """The reaper of one worker.

    :param children: all children of this process.
    :param running: those that another part of the engine waits for.
    """

    def __init__(self, loop: EventLoop, children: Callable[[], set[int]], running: Container[int]) -> None:
        self._loop = loop
        self._children = children
        self._running = running
        self._due = False
        self._plugins: set[int] = set()  # those of `look_behind`

    def look(self) -> None:
        """There may be orphans, from now on."""
        if not self._due:
            self._due = True
            self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    def look_behind(self, pid: int) -> None:
        """What this child of a plugin leaves behind is to be reaped, and what its children do; not itself."""
        mark(pid)
        self._plugins.add(pid)
        self.look()

    def _sweep(self) -> None:
        self._due = False
        try:
            if os.waitid(os.P_ALL, 0, _EXITED) is not None:
                self._reap()
        except ChildProcessError:  # there are no children
            return
        except OSError as error:
            if error.errno not in reserve.NONE_LEFT:
                raise
        self.look()

    def _reap(self) -> None:
        children = self._children()
        self._plugins &= children
        dead = [pid for pid in children if pid not in self._running and pid not in self._plugins and _is_dead(pid)]
        reaped = 0
        for pid in dead:
            if is_marked(pid):
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass  # another thread was faster
                reaped += 1
                if reaped == MOST_PER_SWEEP:
                    break


def _is_dead(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, _EXITED) is not None
    except ChildProcessError:
        return False
