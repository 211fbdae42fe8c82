"""Landlock (landlock(7)): a process gives up rights to files, TCP ports and other processes, for itself and its
children, for good.

What is *handled* is forbidden but for the rules. The restriction belongs to a thread and is inherited by what the
thread starts. Each restriction is a domain of its own: processes in one can't trace those in another, and with
``ISOLATED`` not signal them either.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final

from .libc import last_error, libc

# linux/landlock.h
EXECUTE: Final = 1 << 0
READ: Final = 1 << 2 | 1 << 3  # files, directories
# Files: write, truncate. Directories: remove and make of every kind, rename and link across them.
WRITE: Final = 1 << 1 | 1 << 14 | sum(1 << bit for bit in range(4, 14))
DEVICE_CONTROL: Final = 1 << 15  # ioctl(2) on devices
_OF_FILES: Final = EXECUTE | 1 << 1 | 1 << 2 | 1 << 14 | DEVICE_CONTROL
BIND_TCP: Final = 1 << 0
CONNECT_TCP: Final = 1 << 1
ISOLATED: Final = 1 << 0 | 1 << 1  # abstract unix sockets and signals of processes outside of the domain

# The versions of the kernel's interface, and the kernels, that can handle these without a gap.
FILES_SINCE: Final = (3, "6.2")  # before, truncate(2) is not handled
DEVICES_SINCE: Final = (5, "6.10")
TCP_SINCE: Final = (4, "6.7")
ISOLATED_SINCE: Final = (6, "6.12")

_CREATE_RULESET: Final = 444  # the same numbers on every architecture
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_PATH_BENEATH, _NET_PORT = 1, 2
_RULESET: Final = struct.Struct("QQQ")
_PATH_RULE: Final = struct.Struct("=Qi")
_PORT_RULE: Final = struct.Struct("QQ")


def version() -> int:
    """Return the version of the kernel's interface (its "ABI"); 0 if it has none, or it is switched off."""
    return max(0, int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)))


def create(files: int = 0, tcp: int = 0, scoped: int = 0) -> int:
    """Make a set of rules.

    :param files: rights to files that are handled.
    :param tcp: rights to TCP ports that are handled.
    :param scoped: ``ISOLATED`` or 0.
    :returns: its descriptor.
    :raises OSError: the kernel can't handle these.
    """
    # An older kernel refuses what is not 0 in the part that it does not know (landlock_create_ruleset(2)).
    attributes = _RULESET.pack(files, tcp, scoped)
    return _call(_CREATE_RULESET, attributes, len(attributes), 0)


def allow_path(rules: int, descriptor: int, rights: int) -> None:
    """Allow rights to a file, or to all below a directory.

    :param rules: a descriptor of ``create``.
    :param descriptor: of the file; one with O_PATH will do.
    :raises OSError: as landlock_add_rule(2).
    """
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= _OF_FILES
    _call(_ADD_RULE, rules, _PATH_BENEATH, _PATH_RULE.pack(rights, descriptor), 0)


def allow_ports(rules: int, ports: Iterable[int], rights: int) -> None:
    """Allow TCP ports.

    :raises OSError: as landlock_add_rule(2).
    """
    for port in ports:
        _call(_ADD_RULE, rules, _NET_PORT, _PORT_RULE.pack(rights, port), 0)


def restrict_thread(rules: int) -> None:
    """Restrict this thread, and all that it starts from now on. It must have no_new_privs.

    :raises OSError: as landlock_restrict_self(2).
    """
    _call(_RESTRICT_SELF, rules, 0)


def _call(number: int, *arguments: int | bytes) -> int:
    converted = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise last_error()
    return result
