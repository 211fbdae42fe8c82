"""Facts about processes, read from the kernel (proc(5)), without the process's help."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from typing import Final

from . import reserve

# Places in /proc/PID/stat, counted from the first field after the name.
_STATE, _PARENT, _USER_TIME, _SYSTEM_TIME, _CHILD_USER_TIME, _CHILD_SYSTEM_TIME = 0, 1, 11, 12, 13, 14
_START_TIME, _RESIDENT = 19, 21


def children_of_this_process() -> set[int]:
    """Return the pids of all children of this process, including adopted and dead ones.

    Reads ``/proc/PID/task/*/children``, or every ``/proc/*/stat`` if the kernel lacks that.
    """
    return children_of(os.getpid())


def children_of(parent: int) -> set[int]:
    """Return the pids of all children of a process; none if it is gone.

    :raises OSError: no descriptor is left to look with, and no reserve (reserve.py).
    """
    return reserve.use(lambda: _children_of(parent))


def _children_of(parent: int) -> set[int]:
    children: set[int] = set()
    try:
        for task in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{task}/children", "rb") as file:
                children.update(map(int, file.read().split()))
    except (FileNotFoundError, ProcessLookupError):
        return {pid for pid in _all_processes() if _parent_of(pid) == parent}
    return children


def _all_processes() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _parent_of(pid: int) -> int:
    try:
        return int(_stat(pid)[1][_PARENT])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie; False where it can't be looked at."""
    try:
        return _stat(pid)[1][_STATE] not in (b"Z", b"X")
    except OSError:
        return False


def _stat(pid: int) -> tuple[bytes, list[bytes]]:
    """Read /proc/PID/stat (proc_pid_stat(5)): the program's name, and the fields after it.

    :raises OSError: the process is gone, or no descriptor is left to look with.
    """
    text = reserve.use(lambda: _read(f"/proc/{pid}/stat"))
    # The name is in parentheses, and may itself contain any character: the last parenthesis ends it.
    name, _, rest = text.partition(b"(")[2].rpartition(b")")
    return name, rest.split()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


TICKS: Final = os.sysconf("SC_CLK_TCK")  # per second, of CPU time and start times
PAGE_SIZE: Final = resource.getpagesize()
LONGEST_COMMAND: Final = 200  # bytes


class Usage:
    """What one process uses.

    :ivar name: the first 15 bytes of its program's name.
    :ivar started: seconds from the machine's start to its own.
    :ivar cpu: CPU time in seconds, user and system.
    :ivar memory: resident memory in bytes.
    :ivar children_cpu: CPU time of the children that it has waited for, in seconds.
    """

    # No named tuple: to make the class would take 0.3 ms of each start.
    __slots__ = ("children_cpu", "cpu", "memory", "name", "started")

    def __init__(self, name: str, started: float, cpu: float, memory: int, children_cpu: float = 0.0) -> None:
        self.name = name
        self.started = started
        self.cpu = cpu
        self.memory = memory
        self.children_cpu = children_cpu

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return max(seconds_since_boot() - self.started, 0.0)


def seconds_since_boot() -> float:
    """Return the seconds since the machine's start, including its sleep (CLOCK_BOOTTIME).

    It is the same in every process, and can't be set. Ages are computed from it, since the time of day may jump.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def usage(pid: int) -> Usage | None:
    """Return what a process uses (proc_pid_stat(5)); None if it is gone, or no descriptor is left to look with."""
    try:
        name, fields = _stat(pid)
    except OSError:
        return None
    return Usage(
        name.decode(errors="backslashreplace"),
        started=int(fields[_START_TIME]) / TICKS,
        cpu=(int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / TICKS,
        memory=int(fields[_RESIDENT]) * PAGE_SIZE,
        children_cpu=(int(fields[_CHILD_USER_TIME]) + int(fields[_CHILD_SYSTEM_TIME])) / TICKS,
    )


def command(pid: int) -> str:
    """Return the start of a process's command line (proc_pid_cmdline(5)); empty if it has none or can't be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read(LONGEST_COMMAND)
    except OSError:
        return ""
    return text.rstrip(b"\0").replace(b"\0", b" ").decode(errors="backslashreplace")
