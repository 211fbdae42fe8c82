"""Whether other processes of the same user may look into this one: its memory, environment and descriptors.

A process is *dumpable* when it has been started by an exec (PR_SET_DUMPABLE, prctl(2)). Then every process of its user
can read and write its memory, by /proc/PID/mem or as a debugger, read its environment and open what it has open
(ptrace(2)): a CGI program could have the TLS key of the worker that has started it. Of one that is not dumpable only
root can do so, and it leaves no core dump. A fork inherits it; an exec ends it, and so may a change of user.

For the process itself, and for what asks no more of the kernel than anybody may know (/proc/PID/stat, signals,
prlimit(2), pidfds), nothing changes.

The supervisor imports this: nothing but the standard library, and at once.
"""

from __future__ import annotations

from .libc import prctl

_PR_GET_DUMPABLE = 3  # linux/prctl.h
_PR_SET_DUMPABLE = 4


def set_dumpable(dumpable: bool) -> None:
    """Let others of the same user look into this process, or keep them out.

    :raises OSError: the kernel refuses.
    """
    prctl(_PR_SET_DUMPABLE, int(dumpable))


def is_dumpable() -> bool:
    """Whether others of the same user may look into this process."""
    return prctl(_PR_GET_DUMPABLE) == 1
