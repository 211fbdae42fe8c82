"""What another user does beside the tests, where these run as root."""

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

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
STRANGER = 45001  # a user that nothing belongs to


def swap(folder: Path, name: str, victim: Path) -> None:
    """As soon as the name in the folder is a socket's it becomes a link to the victim, again and again."""
    os.chdir(folder)
    while True:
        with suppress(OSError):
            if stat.S_ISSOCK(os.lstat(name).st_mode):
                os.rename(name, f"{name}.aside")
                os.symlink(victim, name)


def wait() -> None:
    """Until it is killed."""
    while True:
        signal.pause()


def lock(path: Path) -> int:
    """In every way that there is to who may read it."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(fd, fcntl.LOCK_SH)
    return fd


@contextmanager
def stranger(act: Callable[[], object], begin: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Another user's process; its pid.

    :param act: what it does until it is killed.
    :param begin: what it has done before, when this returns.

    It is forked: the interpreter may be in a folder that this user can't enter.
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
    """A folder that everybody can enter, with all above it. pytest keeps its own from others, again at each start."""
    with TemporaryDirectory(prefix="poolsrv-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name).resolve()
