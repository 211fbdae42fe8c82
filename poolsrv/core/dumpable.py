"""Whether other processes of the same user may look into this one: its memory, environment and descriptors.

A process is *dumpable* after an exec (PR_SET_DUMPABLE, prctl(2)). Then every process of its user can read and write its
memory, by /proc/PID/mem or as a debugger, read its environment and open the files that it has open (ptrace(2)): a CGI
program could get the TLS key of the worker that has started it. If the process is not dumpable only root can do so, and
it leaves no core dump. A fork inherits the setting; an exec resets it, and so may a change of user.

Nothing changes for the process itself, nor for what everybody may ask of the kernel (/proc/PID/stat, signals,
prlimit(2), pidfds).
"""

from __future__ import annotations

from .libc import prctl

_PR_GET_DUMPABLE = 3  # linux/prctl.h
_PR_SET_DUMPABLE = 4


def set_dumpable(dumpable: bool) -> None:
    """Allow other processes of the same user to look into this process, or forbid it.

    :raises OSError: the kernel refuses.
    """
    prctl(_PR_SET_DUMPABLE, int(dumpable))


def is_dumpable() -> bool:
    """Whether other processes of the same user may look into this process."""
    return prctl(_PR_GET_DUMPABLE) == 1
