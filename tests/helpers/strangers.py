"""What another user does beside the tests, if the tests run as root."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
STRANGER = 45001  # a user that owns nothing


def swap(folder: Path, name: str, victim: Path) -> None:
    """Replace the name in the folder by a link to the victim as soon as it is a socket, again and again."""
    os.chdir(folder)
    while True:
        with suppress(OSError):
            if stat.S_ISSOCK(os.lstat(name).st_mode):
                os.rename(name, f"{name}.aside")
                os.symlink(victim, name)


def wait() -> None:
    """Wait to be killed."""
    while True:
        signal.pause()


def lock(path: Path) -> int:
    """Lock a file in every way that a reader can."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_SH)
    return fd


@contextmanager
def stranger(act: Callable[[], object], begin: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Run a process of another user, and yield its pid.

    :param act: what it does until it is killed.
    :param begin: what it has already done when the block is entered.

    It is forked, because that user may not be able to enter the interpreter's folder.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            begin()
            os.write(writer, b"1")
            act()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A folder that every user can enter, with all above it. pytest makes its own folders private at each start."""
    with TemporaryDirectory(prefix="poolsrv-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name).resolve()
