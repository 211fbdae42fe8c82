"""Capabilities (capabilities(7)): the rights of root, one by one. They belong to a thread, as all credentials do."""

from __future__ import annotations

import ctypes
import struct

from .libc import last_error, libc, prctl

KILL, SETGID, SETUID, SYS_ADMIN = 5, 6, 7, 21  # linux/capability.h

_VERSION = 0x20080522
_PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 28, 38  # linux/prctl.h
# The user 0 gains nothing by exec, the set changes only by hand, and both stay so.
_NO_ROOT = 0b1111


def permitted() -> int:
    """Return the permitted capabilities of this thread, those below 32 (capget(2)): a bit for each.

    :raises OSError: the kernel refuses.
    """
    data = ctypes.create_string_buffer(24)
    if libc.capget(struct.pack("Ii", _VERSION, 0), data) != 0:
        raise last_error()
    return int(struct.unpack("6I", data.raw)[1])


def set_capabilities(wanted: int) -> None:
    """Set the effective and the permitted capabilities of this thread, all of them below 32 (capset(2)).

    :param wanted: a bit for each, ``1 << SETUID``.
    :raises OSError: the kernel refuses.
    """
    header = struct.pack("Ii", _VERSION, 0)
    data = struct.pack("6I", wanted, wanted, 0, 0, 0, 0)
    if libc.capset(header, data) != 0:
        raise last_error()


def keep_only(wanted: int) -> None:
    """Give up all others, for this thread and what it starts, for good: as root, what it executes has none at all.

    :raises OSError: the kernel refuses.
    """
    prctl(_PR_SET_SECUREBITS, _NO_ROOT)
    set_capabilities(wanted)


def gain_no_more() -> None:
    """Keep this thread and what it starts from gaining privileges by set-user-ID bits (PR_SET_NO_NEW_PRIVS), for good.

    :raises OSError: the kernel refuses.
    """
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
