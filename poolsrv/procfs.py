"""What the kernel says of a process, without asking the process: proc(5)."""

from __future__ import annotations

import os
import resource
import time
from typing import Final, NamedTuple

TICKS: Final = os.sysconf("SC_CLK_TCK")  # per second, of CPU time and start times
PAGE_SIZE: Final = resource.getpagesize()
LONGEST_COMMAND: Final = 200  # bytes


class Usage(NamedTuple):
    """Of one process.

    :ivar name: at most 15 bytes of its program's name.
    :ivar started: seconds after the machine's start.
    :ivar cpu: seconds, user and system.
    :ivar memory: bytes, resident.
    """

    name: str
    started: float
    cpu: float
    memory: int

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return max(seconds_since_boot() - self.started, 0.0)


def seconds_since_boot() -> float:
    """After the machine's start, its sleep included: the same in every process, and nobody sets it. Ages are told by
    it, since the time of day may jump."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def usage(pid: int) -> Usage | None:
    """What a process uses (proc_pid_stat(5)); None where it is gone, or there is no descriptor to look with."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name is in the last parentheses, and may hold anything. The first field after it is the third of all.
    name, _, rest = text.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    cpu = (int(fields[11]) + int(fields[12])) / TICKS
    return Usage(name.decode(errors="backslashreplace"), int(fields[19]) / TICKS, cpu, int(fields[21]) * PAGE_SIZE)


def command(pid: int) -> str:
    """The beginning of a process's command line (proc_pid_cmdline(5)); empty where it has none, or can't be asked."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read(LONGEST_COMMAND)
    except OSError:
        return ""
    return text.rstrip(b"\0").replace(b"\0", b" ").decode(errors="backslashreplace")
