"""A seccomp filter (seccomp(2)) that takes from a program the system calls that only an attack on the kernel, or on
other processes, needs. libseccomp builds it.

It is a list of what is forbidden, like flatpak's, from which most of it comes: a list of what is allowed would break
programs with each new version of a C library. A forbidden call fails with EPERM, as if the user lacked the right.

The filter belongs to a thread and is inherited by what the thread starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Final

from .libc import last_error, libc

LIBRARY: Final = "libseccomp.so.2"

# Of other processes and their descriptors; of other roots and name spaces; parts of the kernel that few programs need,
# and that have had many holes; of the machine.
_FORBIDDEN: Final = """
    ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd move_pages migrate_pages
    mount umount umount2 pivot_root chroot setns unshare move_mount open_tree fsopen fsconfig fsmount fspick
    mount_setattr open_by_handle_at
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key keyctl request_key
    modify_ldt vmsplice fanotify_init
    acct init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff quotactl syslog
    sethostname setdomainname settimeofday clock_settime ioperm iopl vhangup lookup_dcookie nfsservctl
"""
_NAME_SPACES: Final = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW*
_TERMINAL_INPUT: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

# seccomp.h
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_GREATER_OR_EQUAL, _MASKED_EQUAL = 5, 7
_OPTIMISE: Final = 8  # SCMP_FLTATR_CTL_OPTIMIZE
_UNKNOWN: Final = -1

_PR_SET_SECCOMP: Final = 22  # linux/prctl.h
_MODE_FILTER: Final = 2
_INSTRUCTION: Final = 8  # bytes


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class Filter:
    """A filter that is ready to be applied.

    :param network: whether the program may open network sockets. Otherwise it can open unix sockets alone.
    :raises OSError: libseccomp is missing, or too old.
    """

    def __init__(self, network: bool) -> None:
        self._code = _build(network)
        self._program = _Program(len(self._code) // _INSTRUCTION, self._code)

    def apply_to_thread(self) -> None:
        """Apply it to this thread, and all that it starts from now on. It must have no_new_privs.

        :raises OSError: as seccomp(2).
        """
        if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(self._program), 0, 0) < 0:
            raise last_error()


def _build(network: bool) -> bytes:
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError:
        raise OSError(errno.ENOENT, f"{LIBRARY} is not installed (Debian: libseccomp2)") from None
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))
    if not context:
        raise OSError(errno.ENOMEM, "libseccomp can't make a filter")
    try:
        builder = _Builder(library, context)
        for name in _FORBIDDEN.split():
            builder.forbid(name)
        builder.forbid("clone3", error=errno.ENOSYS)  # its flags are in memory, where no filter sees them
        for flag in _NAME_SPACES:
            builder.forbid("clone", [_Comparison(0, _MASKED_EQUAL, flag, flag)])
        for request in _TERMINAL_INPUT:
            builder.forbid("ioctl", [_Comparison(1, _MASKED_EQUAL, 0xFFFFFFFF, request)])
        builder.forbid_sockets((socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) if network else (socket.AF_UNIX,))
        return builder.export()
    finally:
        library.seccomp_release(context)


class _Builder:
    def __init__(self, library: ctypes.CDLL, context: ctypes.c_void_p) -> None:
        self._library = library
        self._context = context
        library.seccomp_attr_set(context, _OPTIMISE, ctypes.c_uint32(2))  # a tree instead of a list; since 2.5

    def forbid(self, name: str, when: Sequence[_Comparison] = (), error: int = errno.EPERM) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN:
            raise OSError(errno.ENOSYS, f"{LIBRARY} is too old: it does not know {name}")
        comparisons = (_Comparison * len(when))(*when)
        self._check(
            self._library.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(_ERRNO | error), number, ctypes.c_uint(len(when)), comparisons
            ),
            name,
        )

    def forbid_sockets(self, but: Iterable[int]) -> None:
        """Forbid all but these families of sockets."""
        allowed = set(but)
        last = max(allowed)
        for domain in set(range(last)) - allowed:
            self.forbid("socket", [_Comparison(0, _MASKED_EQUAL, 0xFFFFFFFF, domain)], errno.EAFNOSUPPORT)
        self.forbid("socket", [_Comparison(0, _GREATER_OR_EQUAL, last + 1, 0)], errno.EAFNOSUPPORT)

    def export(self) -> bytes:
        descriptor = os.memfd_create("filter", os.MFD_CLOEXEC)
        with open(descriptor, "rb") as file:
            self._check(self._library.seccomp_export_bpf(self._context, descriptor), "the filter")
            file.seek(0)
            return file.read()

    @staticmethod
    def _check(result: int, what: str) -> None:
        if result < 0:
            raise OSError(-result, f"libseccomp: {what}: {os.strerror(-result)}")
