"""What a process that was root has no longer of the session that it was started in."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from poolsrv.core import privileges, sessions
from poolsrv.core.copy_of_process import answer_of_copy
from poolsrv.core.libc import libc
from poolsrv.core.privileges import Identity
from poolsrv.spawner import process
from tests.helpers.strangers import ROOT

pytestmark = ROOT
USER = pwd.getpwnam("games")


def only_change() -> None:
    os.setresuid(USER.pw_uid, USER.pw_uid, USER.pw_uid)


def as_the_pool() -> None:
    privileges.become(Identity(USER.pw_uid, USER.pw_gid))


def as_a_launcher() -> None:
    process.become(USER.pw_uid, USER.pw_gid, [USER.pw_gid])


BECOME = pytest.mark.parametrize(
    ("become", "has_it"), [(only_change, True), (as_the_pool, False), (as_a_launcher, False)]
)


@BECOME
def test_the_terminal(become: Callable[[], None], has_it: bool) -> None:
    """With it, a program could type for the shell that has started the server, or read what is typed for it. That shell
    keeps it."""

    def terminal() -> str:
        try:
            os.close(os.open("/dev/tty", os.O_RDWR))
        except OSError:
            return "none "
        return "has it "

    def ask() -> str:
        become()
        return f"{readable()} {terminal()}"

    def readable() -> int:
        """Of the standard descriptors; the log goes to the terminal."""
        assert os.isatty(2)
        return sum(os.isatty(fd) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY for fd in range(3))

    pid, screen = pty.fork()
    if pid == 0:
        try:
            os.write(1, os.fsencode(answer_of_copy(ask) + terminal()))
            os.read(0, 1)
        finally:
            os._exit(0)
    output = b""
    while len(output.split()) < (5 if has_it else 4):
        output += os.read(screen, 1000)
    assert output == (b"3 has it has it " if has_it else b"0 none has it ")
    os.close(screen)
    os.waitpid(pid, 0)


@pytest.mark.skipif(not os.path.exists("/proc/keys"), reason="this kernel has no keys")
@BECOME
def test_the_keys_of_the_session(become: Callable[[], None], has_it: bool) -> None:
    """Who has the keyring may use what is in it, as any user."""

    def ask() -> str:
        number = sessions._KEYCTL[os.uname().machine]
        keyring = libc.syscall(ctypes.c_long(number), 1, b"poolsrv-test")  # KEYCTL_JOIN_SESSION_KEYRING
        assert keyring > 0
        become()
        return Path("/proc/keys").read_text()

    assert ("poolsrv-test" in answer_of_copy(ask)) is has_it
