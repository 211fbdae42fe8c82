"""What a process has of the session that it was started in, and a less privileged user must not have.

The controlling terminal: a process that has it can put characters into its input, as if they had been typed
(TIOCSTI, tty_ioctl(4); Linux allows it unless ``dev.tty.legacy_tiocsti`` is 0). If root starts a server by hand, the
next to read them is root's shell. Whoever has the terminal open for reading may get what root types. The session
keyring: all that have it may use the keys in it, whoever they have become (session-keyring(7)).
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from typing import Final

from .libc import libc

_KEYCTL: Final = (
    {"x86_64": 250, "aarch64": 219, "riscv64": 219, "loongarch64": 219, "ppc64le": 271, "ppc64": 271, "s390x": 280}
    if sys.maxsize > 2**32
    else {"x86_64": 288, "i686": 288, "aarch64": 311, "armv7l": 311, "armv6l": 311}
)
_JOIN_SESSION_KEYRING: Final = 1  # linux/keyctl.h


def leave() -> None:
    """Give up terminal and keyring, before this process becomes another user. Signals of the terminal still come."""
    number = _KEYCTL.get(os.uname().machine)
    if number is not None:
        # A new one, without a name. It fails where containers forbid keyrings, to programs too.
        libc.syscall(ctypes.c_long(number), _JOIN_SESSION_KEYRING, None)
    if os.getsid(0) != os.getpid():  # a session of its own has no shell to type for
        _leave_terminal()


def _leave_terminal() -> None:
    import fcntl
    import termios

    descriptors = [0, 1, 2]
    with suppress(OSError):  # it has none
        descriptors.append(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    for descriptor in descriptors:
        with suppress(OSError):
            fcntl.ioctl(descriptor, termios.TIOCNOTTY)
    for descriptor in descriptors[3:]:
        os.close(descriptor)
    for descriptor in (0, 1, 2):
        if os.isatty(descriptor) and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY:
            with suppress(OSError):
                _write_only(descriptor)


def _write_only(descriptor: int) -> None:
    """Open a terminal again, to write to it only, or the null device in place of standard input: a terminal is usually
    open for reading too, and would give what root types next.

    :raises OSError: there is no /proc.
    """
    name, mode = (f"/proc/self/fd/{descriptor}", os.O_WRONLY) if descriptor else (os.devnull, os.O_RDONLY)
    other = os.open(name, mode | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(other, True)
    os.dup2(other, descriptor)
    os.close(other)
