"""Errors that the log has shown once, for all workers of a pool.

What makes a plugin's ``on_worker_start`` fail makes it fail in every worker, each time that it is tried. Each worker is
a process of its own and knows of none before it. The traceback is logged once; after that a line is enough.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from traceback import walk_tb
from typing import Final

_SIZE: Final = 8  # bytes of a hash
_MAX_SIZE: Final = 4096  # bytes that are read; errors beyond are logged again
_LOCK_TIMEOUT: Final = 0.1  # seconds to wait for another worker


class ToldOnce:
    """A memfd (memfd_create(2)) that the dispatcher makes and the workers share."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("poolsrv-told")

    def is_new(self, source: str, error: BaseException) -> bool:
        """Tell whether an error of this type, from the same lines, is the first one, and remember it.

        :param source: what has failed.
        """
        places = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
        # The workers are forks of one process, so they share the seed of this hash. hashlib would load OpenSSL.
        digest = hash(repr((source, type(error).__qualname__, places))).to_bytes(_SIZE, "little", signed=True)
        locked = self._lock()
        try:
            told = os.pread(self._fd, _MAX_SIZE, 0)
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
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while time.monotonic() < deadline:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                time.sleep(0.001)
        return False  # a worker was stopped while it held the lock

    def forget(self) -> None:
        """Forget all errors."""
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
