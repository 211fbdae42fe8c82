"""A seccomp filter (seccomp(2)) that takes from a program the system calls that only an attack on the kernel, or on
other processes, needs. libseccomp builds it.

It is a list of what is forbidden, like flatpak's, from which most of it comes: a list of what is allowed would break
programs with each new version of a C library. A forbidden call fails with EPERM, as if the user lacked the right.

Landlock's rules are of the usual ways only: of connect(2), but not of a send that connects too; of signals, but not of
resource limits, which kill as well. The filter closes the other ways, so that what Landlock forbids is forbidden.

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

# Of other processes and their descriptors; of memory, messages and semaphores that all processes of a user share, and
# that outlive them (sysvipc(7), mq_overview(7)); of other roots and name spaces; parts of the kernel that few programs
# need, and that have had many holes, or that tell of files which the program may not read (inotify(7): their names and
# each use of them); of the machine.
_FORBIDDEN: Final = """
    ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd move_pages migrate_pages
    shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop semtimedop semctl mq_open mq_unlink
    mount umount umount2 pivot_root chroot setns unshare move_mount open_tree fsopen fsconfig fsmount fspick
    mount_setattr open_by_handle_at
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key keyctl request_key
    modify_ldt vmsplice fanotify_init inotify_add_watch
    acct init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff quotactl syslog
    sethostname setdomainname settimeofday clock_settime ioperm iopl vhangup lookup_dcookie nfsservctl
"""
_NAME_SPACES: Final = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW*
_TERMINAL_INPUT: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
# A lease on a file of its user: who opens or executes it waits, up to 45 seconds, and that may be a server process.
_LEASES: Final = (1024, 1040)  # F_SETLEASE, F_SETDELEG

# What changes a file without opening it for writing: mode, owner, times, attributes. By number what libraries of some
# years ago do not know: fchmodat2, setxattrat, removexattrat, file_setattr.
_FILES: Final = """
    chmod fchmod fchmodat chown lchown fchown fchownat chown32 lchown32 fchown32
    utime utimes futimesat utimensat utimensat_time64
    setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
"""
_NEWER_OF_FILES: Final = (452, 463, 466, 469)
_FILE_CONTROL: Final = (0x40086602, 0x401C5820, 0x40806685)  # FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY
_FAST_OPEN: Final = 0x20000000  # MSG_FASTOPEN
# Of sockets that are no TCP to the kernel's rules for ports, and may be TCP on the network: SCTP, and from SMC on those
# that have no number in IP, as MPTCP.
_SCTP, _SMC = 132, 256
_IOPRIO_WHO_PROCESS: Final = 1

# seccomp.h
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_NOT_EQUAL, _GREATER_OR_EQUAL, _MASKED_EQUAL = 1, 5, 7
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
    :param listens: whether it may listen at all.
    :param has_ports: whether rules for TCP ports hold for it.
    :param changes_files: whether there are files that it may change.
    :raises OSError: libseccomp is missing, or too old.
    """

    def __init__(self, *, network: bool, listens: bool, has_ports: bool, changes_files: bool) -> None:
        self._code = _build(network, listens, has_ports, changes_files)
        self._program = _Program(len(self._code) // _INSTRUCTION, self._code)

    def apply_to_thread(self) -> None:
        """Apply it to this thread, and all that it starts from now on. It must have no_new_privs.

        :raises OSError: as seccomp(2).
        """
        if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(self._program), 0, 0) < 0:
            raise last_error()


def _build(network: bool, listens: bool, has_ports: bool, changes_files: bool) -> bytes:
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
        for command in _LEASES:
            for name in ("fcntl", "fcntl64"):
                builder.forbid(name, [_Comparison(1, _MASKED_EQUAL, 0xFFFFFFFF, command)])
        builder.forbid_other_processes()
        if not changes_files:
            builder.forbid_changes_of_files()
        builder.forbid_sockets((socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) if network else (socket.AF_UNIX,))
        # Also without `network`: a program can be given a client's connection, disconnect it, and use it otherwise.
        if has_ports:
            builder.forbid_ways_around_ports()
        if not listens:
            builder.forbid("listen")
        return builder.export()
    finally:
        library.seccomp_release(context)


class _Builder:
    def __init__(self, library: ctypes.CDLL, context: ctypes.c_void_p) -> None:
        self._library = library
        self._context = context
        library.seccomp_attr_set(context, _OPTIMISE, ctypes.c_uint32(2))  # a tree instead of a list; since 2.5

    def forbid(self, name: str | int, when: Sequence[_Comparison] = (), error: int = errno.EPERM) -> None:
        number = name if isinstance(name, int) else self._library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN:
            raise OSError(errno.ENOSYS, f"{LIBRARY} is too old: it does not know {name}")
        comparisons = (_Comparison * len(when))(*when)
        self._check(
            self._library.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(_ERRNO | error), number, ctypes.c_uint(len(when)), comparisons
            ),
            f"{name}",
        )

    def forbid_other_processes(self) -> None:
        """Forbid what ends or starves a process of the same user without a signal. What names no process is allowed."""
        self.forbid("prlimit64", [_Comparison(0, _NOT_EQUAL, 0), _Comparison(2, _NOT_EQUAL, 0)])  # 2: the new limit
        for of_threads in ("sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"):
            self.forbid(of_threads, [_Comparison(0, _NOT_EQUAL, 0)])
        for name, process in (("setpriority", os.PRIO_PROCESS), ("ioprio_set", _IOPRIO_WHO_PROCESS)):
            self.forbid(name, [_Comparison(0, _NOT_EQUAL, process)])
            self.forbid(name, [_Comparison(1, _NOT_EQUAL, 0)])

    def forbid_changes_of_files(self) -> None:
        """Forbid to change files that have not been opened for writing."""
        for name in _FILES.split():
            self.forbid(name)
        for number in _NEWER_OF_FILES:
            self.forbid(number)
        for request in _FILE_CONTROL:
            self.forbid("ioctl", [_Comparison(1, _MASKED_EQUAL, 0xFFFFFFFF, request)])

    def forbid_ways_around_ports(self) -> None:
        """Forbid to connect by a send, and sockets for which there are no rules."""
        for name, flags in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
            self.forbid(name, [_Comparison(flags, _MASKED_EQUAL, _FAST_OPEN, _FAST_OPEN)])
        self.forbid("socket", [_Comparison(2, _MASKED_EQUAL, 0xFFFFFFFF, _SCTP)], errno.EPROTONOSUPPORT)
        self.forbid("socket", [_Comparison(2, _GREATER_OR_EQUAL, _SMC)], errno.EPROTONOSUPPORT)

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
