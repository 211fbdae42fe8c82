"""The file with the server's pid. Who holds its lock is the server; without a lock it is what a crash has left."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final

ATTEMPTS: Final = 5
AGAIN_AFTER: Final = 0.02  # seconds


class PidFileTaken(Exception):
    """Another server holds the file.

    :ivar pid: its pid; 0 where the file does not tell.
    """

    def __init__(self, path: str, pid: int) -> None:
        super().__init__(f"{path} is another server's (pid {pid})" if pid else f"{path} is another server's")
        self.pid = pid


class PidFile:
    """Held until ``remove``: by a lock of flock(2), which goes with the process however that ends.

    :raises PidFileTaken: another server holds it.
    :raises OSError: it can't be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except FileExistsError:
            pass  # a file in the place of a folder: open(2) says it better
        attempts = ATTEMPTS
        while True:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_there():
                    os.ftruncate(self._fd, 0)
                    os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
                    return
            except BlockingIOError:
                os.close(self._fd)
                attempts -= 1
                if not attempts:
                    raise PidFileTaken(path, _read(path)) from None
                time.sleep(AGAIN_AFTER)  # somebody may only be looking whether it is held: see below
                continue
            except OSError:
                os.close(self._fd)
                raise
            os.close(self._fd)  # its owner has removed it in this moment

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Remove the file, if it still is this one, and give up the lock."""
        try:
            if self._is_there():
                os.unlink(self.path)
        except OSError:
            pass  # the folder may be gone, or not this process's to write any more: the lock counts
        os.close(self._fd)


def running(path: str) -> int:
    """The pid of the server that holds the file; 0 where none does.

    :raises OSError: the file can't be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path)
    finally:
        os.close(fd)
    return 0


def _read(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read(20))
    except (OSError, ValueError):
        return 0
