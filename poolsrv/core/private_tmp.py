"""A /tmp of a program's own, in memory: nobody else sees it, and it is gone with the program.

A mount name space (mount_namespaces(7)) belongs to a thread and is inherited by what the thread starts. Without being
root, only a process with a user name space of its own may make one, and only a process with a single thread may make
that. There it is the only user, and every other user's files look like nobody's.
"""

from __future__ import annotations

import os

from .capabilities import SYS_ADMIN, set_capabilities
from .copy_of_process import answer_of_copy
from .dumpable import set_dumpable
from .libc import last_error, libc

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_CLONE_NEWUSER = 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 0x4000, 0x40000  # linux/mount.h

PATH = "/tmp"
# What is empty takes memory of the kernel too: about as much as this for a file, directory or link. So there are only
# as many as would take the size once more, and some for the smallest sizes.
_BYTES_OF_A_FILE = 1024
_FILES_AT_LEAST = 64


def become_able() -> None:
    """Make this process, which has one thread, able to give its threads a /tmp of their own.

    :raises OSError: the kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    set_dumpable(True)  # or else it may not write to its own files in /proc
    try:
        if libc.unshare(_CLONE_NEWUSER) < 0:
            raise last_error()
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        set_capabilities(1 << SYS_ADMIN)  # over this name space alone: it mounts, and nothing else
    finally:
        set_dumpable(False)


def mount_for_thread(size: int) -> None:
    """Give this thread, and what it starts, an empty /tmp.

    :param size: bytes that it holds at most, and in KiB the number of files.
    :raises OSError: the kernel refuses.
    """
    if libc.unshare(_CLONE_NEWNS) < 0:
        raise last_error()
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) < 0:
        raise last_error()
    options = f"mode=1777,size={size},nr_inodes={_FILES_AT_LEAST + size // _BYTES_OF_A_FILE}".encode()
    if libc.mount(b"tmpfs", PATH.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, options) < 0:
        raise last_error()


def why_not() -> str:
    """Why this machine does not allow it; empty if it does.

    Tried in a forked process, without ``become_able``: that would open to others, for a moment, what this process has
    in memory.
    """

    def attempt() -> str:
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)  # as the programs, not as root
                set_dumpable(False)
            if libc.unshare(_CLONE_NEWUSER) < 0:
                raise last_error()
            mount_for_thread(4096)
        except OSError as error:
            return error.strerror or "refused"
        return ""

    return answer_of_copy(attempt)
