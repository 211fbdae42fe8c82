"""Children of a fork server that do not take their request: a script may stop those that wait, which are its siblings.

The server is not their parent, so it looks in /proc; and a process id may be another process's by now.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection

__all__ = ["is_stopped", "kill_child"]


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal, or by a debugger."""
    return _state_and_parent(pid)[0] in (b"T", b"t")


def kill_child(pid: int, parents: Collection[int]) -> None:
    """Kill a process, if its parent is one of these."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return  # it has ended
    try:
        if _state_and_parent(pid)[1] in parents:
            signal.pidfd_send_signal(process, signal.SIGKILL)
    except OSError:
        pass  # it has ended meanwhile
    finally:
        os.close(process)


def _state_and_parent(pid: int) -> tuple[bytes, int]:
    """From /proc/PID/stat, proc_pid_stat(5); nothing that fits if it can't be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0], int(fields[1])
    except (OSError, ValueError, IndexError):
        return b"", 0
