"""Processes: subreaper, signals between parent and child, how a process ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Container, Iterator

from .event_loop import EventLoop
from .libc import libc, prctl
from .procfs import children_of_this_process

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_CLOSE_RANGE_CLOEXEC = 4  # linux/close_range.h
_SYS_CLOSE_RANGE = 436  # the same number on every architecture
_MAX_UINT = 0xFFFFFFFF


def describe_exit(returncode: int) -> str:
    """Say how a process ended: ``exited 1``, ``killed by SIGSEGV``."""
    if returncode >= 0:
        return f"exited {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def signal_group(pgid: int, number: signal.Signals) -> None:
    """Send a signal to a process group; do nothing if it is gone or not ours (a set-user-ID program)."""
    try:
        os.killpg(pgid, number)
    except (ProcessLookupError, PermissionError):
        pass


def group_of(pid: int) -> int:
    """Return the process group of a process; 0 if it is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def become_subreaper() -> None:
    """Make this process adopt its orphaned descendants (prctl(2), PR_SET_CHILD_SUBREAPER).

    :raises OSError: the kernel refuses.
    """
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def signal_when_parent_dies(number: signal.Signals) -> None:
    """Make the kernel send a signal to this process when its parent dies (prctl(2), PR_SET_PDEATHSIG).

    :raises OSError: the kernel refuses.
    """
    prctl(_PR_SET_PDEATHSIG, number)


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from ``first`` on as close-on-exec: a plugin's C library may have forgotten to.

    Before Linux 5.11 this does nothing; there, only descriptors that Python opened are sure to be marked (PEP 446).
    """
    libc.syscall(_SYS_CLOSE_RANGE, first, _MAX_UINT, _CLOSE_RANGE_CLOEXEC)


def kill_children(spare: Container[int] = ()) -> set[int]:
    """Kill every child of this process, adopted ones included, except those to spare.

    They are not reaped here. Their own children are adopted in turn: call again when one has been reaped.

    :returns: the pids of those that it has tried to kill.
    """
    strangers = {pid for pid in children_of_this_process() if pid not in spare}
    for pid in strangers:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    return strangers


def kill_until_none(loop: EventLoop, seconds: float, reap: Callable[[], object], spare: Container[int] = ()) -> None:
    """Kill children, and what they leave behind, until none is left or the time is over.

    :param loop: runs meanwhile.
    :param reap: reaps those that have ended.
    """
    deadline = loop.now + seconds
    while kill_children(spare) and loop.now < deadline:
        loop.turn(0.02)
        reap()


def reap_all() -> None:
    """Reap every dead child; at the very end, when no other code waits for one."""
    for _ in reaped():
        pass


def reaped(stopped: bool = False) -> Iterator[tuple[int, int]]:
    """Reap every child that has ended; for each its pid and its wait status.

    :param stopped: tell of those too that have been stopped by a signal since the last call.
    """
    options = os.WNOHANG | os.WUNTRACED if stopped else os.WNOHANG
    while True:
        try:
            pid, status = os.waitpid(-1, options)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status
