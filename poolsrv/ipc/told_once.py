"""Which errors the log has told, over all workers of a pool: each is a process of its own, and knows of none before.

What makes a plugin's ``on_worker_start`` fail makes it fail in every worker, and whenever that is tried again. The
traceback is told once; after that a line is enough.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from contextlib import suppress
from traceback import walk_tb
from typing import Final

_SIZE: Final = 16  # bytes of a digest
_MOST: Final = 4096  # bytes that are read: what is beyond is told again
_PATIENCE: Final = 0.1  # seconds for another worker that looks it up


class ToldOnce:
    """Made by the dispatcher, before it forks; a memfd (memfd_create(2)) that the workers share."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("poolsrv-told")

    def is_new(self, whose: str, error: BaseException) -> bool:
        """Whether an error of that kind, from the same lines, is told for the first time; from now on it is not.

        :param whose: of whom it is told.
        """
        places = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
        digest = hashlib.sha256(repr((whose, type(error).__qualname__, places)).encode(errors="replace")).digest()[
            :_SIZE
        ]
        locked = self._lock()
        try:
            told = os.pread(self._fd, _MOST, 0)
            if digest in (told[start : start + _SIZE] for start in range(0, len(told), _SIZE)):
                return False
            os.pwrite(self._fd, digest, len(told))
            return True
        except OSError:
            return True
        finally:
            if locked:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                time.sleep(0.001)
        return False  # it has been stopped, in this very moment

    def forget(self) -> None:
        """Tell all again."""
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
