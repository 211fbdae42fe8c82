"""The standing of a process with the kernel: what it may use, and how much of the CPUs and disks it gets.

All of that is inherited by what the process starts, and another process of its user can change it: by prlimit(2),
sched(7), setpriority(2) and ioprio_set(2). So a program could change what later programs get, long after its own end.
"""

from __future__ import annotations

import os
import resource
from typing import Final, NamedTuple

from .libc import libc

_LIMITS: Final = range(16)  # RLIM_NLIMITS
# ioprio_get(2), for which the C library has no function. Elsewhere the number is the one of newer architectures.
_NUMBERS: Final = {"x86_64": 252, "i686": 290, "armv7l": 315, "ppc64le": 274, "s390x": 283}
_IOPRIO_GET: Final = _NUMBERS.get(os.uname().machine, 31)
_IOPRIO_WHO_PROCESS: Final = 1

CpuShare = tuple[int, int, set[int]]  # scheduling policy, nice value, CPUs
SHARE: Final = "share of the CPUs"  # what has become less


class Standing(NamedTuple):
    """That of one process at one moment."""

    limits: tuple[tuple[int, int], ...]
    cpus: CpuShare | None
    disks: int

    @classmethod
    def own(cls) -> Standing:
        """That of this process now."""
        return cls(tuple(map(resource.getrlimit, _LIMITS)), cpu_share(0), _io_priority())

    def worsened(self, former: Standing, parent: int) -> str:
        """What is less than it was, or other; empty if nothing is.

        :param parent: as the other process of ``has_lost_share``.
        """
        if self.limits != former.limits:
            return "resource limits"
        if self.cpus != former.cpus and has_lost_share(self.cpus, former.cpus, parent):
            return SHARE
        return "priority of input and output" if self.disks != former.disks else ""


def cpu_share(pid: int) -> CpuShare | None:
    """What a process of the same user can change of a process's share of the CPUs; None if it can't be looked at.

    :param pid: 0: this process.
    """
    try:
        policy = os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK
        if policy == os.SCHED_BATCH:  # its share is the same
            policy = os.SCHED_OTHER
        return policy, os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid)
    except OSError:
        return None


def has_lost_share(share: CpuShare | None, former: CpuShare | None, other: int) -> bool:
    """Whether a share is less than it was, and less than what another process has now, since an administrator may have
    changed that of both.

    :param other: its process id; 0: this process.
    """
    return _is_less(share, former) and _is_less(share, cpu_share(other))


def _is_less(share: CpuShare | None, expected: CpuShare | None) -> bool:
    """Whether a share is less than another one, as far as both are known."""
    if share is None or expected is None:
        return False
    return share[0] != expected[0] or share[1] > expected[1] or not share[2] >= expected[2]


def _io_priority() -> int:
    return int(libc.syscall(_IOPRIO_GET, _IOPRIO_WHO_PROCESS, 0))
