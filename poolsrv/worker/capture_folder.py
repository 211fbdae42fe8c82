"""Keeps captures of failed runs (ipc/captures.py) as files in one folder, written outside the worker's loop."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from ..core.safe_names import open_private_folder
from ..core.throttle import Throttle
from ..core.words import counted
from ..ipc.captures import SUFFIX, Capture, encoded
from ..ipc.runs import is_id, new_id

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .worker import Worker

log = logging.getLogger("poolsrv.worker")

MOST_AT_A_TIME: Final = 8  # that are not written yet
PER_SECOND: Final = 5.0  # captures of a worker, in the long run
BURST: Final = 20.0
STALE_AFTER: Final = 60.0  # seconds after which a half-written file is another process's no more
LOG_EVERY: Final = 60.0  # seconds between two lines about the same trouble


class CaptureFolder:
    """The captures of one listener. All workers share the folder.

    :param path: of a folder that exists, belongs to this user or root, and that no other user may write to.
    :param most: captures that are kept; the oldest make room.
    """

    def __init__(self, path: str, most: int) -> None:
        self.path = path
        self._most = most
        self._worker: Worker | None = None
        self._fd = -1
        self._unwritten: dict[str, Capture | None] = {}  # by ID; None until it is known
        self._level = BURST
        self._level_at = 0.0
        self._left_out = 0
        self._trouble = Throttle(LOG_EVERY)
        self._left_out_trouble = Throttle(LOG_EVERY)

    def open(self, worker: Worker) -> None:
        """Prepare a worker. If the folder can't be used, that is logged, and nothing is captured."""
        try:
            self._fd = open_private_folder(self.path)
        except OSError as error:
            log.error("can't capture failed runs in %s: %s", self.path, error.strerror)
            return
        self._worker = worker

    def close(self) -> None:
        """Write what has not been written, and everything that comes from now on at once: the worker ends."""
        self._worker = None
        for run_id, capture in list(self._unwritten.items()):
            if capture is not None:
                self._write_now(run_id, capture)

    def reserve(self) -> str:
        """Return an ID for a run that is to be captured; "" if that can't be done: too many fail."""
        if self._fd < 0:
            return ""
        now = time.monotonic()
        self._level = min(self._level + (now - self._level_at) * PER_SECOND, BURST)
        self._level_at = now
        if self._level < 1 or len(self._unwritten) >= MOST_AT_A_TIME:
            self._leave_out(now)
            return ""
        self._level -= 1
        run_id = new_id()
        self._unwritten[run_id] = None
        return run_id

    def file_of(self, run_id: str) -> str:
        """The path of a capture."""
        return os.path.join(self.path, run_id + SUFFIX)

    def keep(self, capture: Capture, lost: Callable[[], object] | None = None) -> None:
        """Write a capture, whose ID has been reserved, in a thread.

        :param lost: called if it can't be written.
        """
        run_id = capture.id
        if self._worker is None:
            self._write_now(run_id, capture, lost)
            return
        self._unwritten[run_id] = capture
        self._worker.run_blocking(self._write, capture, done=partial(self._written, run_id, lost))

    def _leave_out(self, now: float) -> None:
        self._left_out += 1
        if self._left_out_trouble.allows(now):
            runs = counted(self._left_out, "failed run is", "failed runs are")
            log.warning("%s not captured: more than %g a second", runs, PER_SECOND)
            self._left_out = 0

    def _write_now(self, run_id: str, capture: Capture, lost: Callable[[], object] | None = None) -> None:
        try:
            self._write(capture)
        except OSError as error:
            self._failed(error, lost)
        self._unwritten.pop(run_id, None)

    def _written(self, run_id: str, lost: Callable[[], object] | None, future: Future[None]) -> None:
        self._unwritten.pop(run_id, None)
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, OSError):
            self._failed(error, lost)
        elif error is not None:
            raise error

    def _failed(self, error: OSError, lost: Callable[[], object] | None) -> None:
        if lost is not None:
            lost()
        if self._trouble.allows(time.monotonic()):
            log.error("can't capture failed runs in %s: %s", self.path, error.strerror)

    # --- in a thread

    def _write(self, capture: Capture) -> None:
        """Write a file under another name first, so that no reader ever sees a part of it.

        :raises OSError: it can't be written.
        """
        content = encoded(capture)
        half_written = f".{capture.id}-{threading.get_native_id()}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(half_written, flags, 0o600, dir_fd=self._fd)
        try:
            try:
                os.fchmod(fd, 0o600)
                left = memoryview(content)
                while left:
                    left = left[os.write(fd, left) :]
            finally:
                os.close(fd)
            os.rename(half_written, capture.id + SUFFIX, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            with suppress(OSError):
                os.unlink(half_written, dir_fd=self._fd)
            raise
        self._make_room()

    def _make_room(self) -> None:
        """Remove the oldest captures, and what workers that were killed have left half-written."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            names = os.listdir(fd)
        finally:
            os.close(fd)
        captures = [name for name in names if name.endswith(SUFFIX) and is_id(name.removesuffix(SUFFIX))]
        if len(captures) > self._most:
            captures.sort(key=self._age, reverse=True)
            for name in captures[: len(captures) - self._most]:
                self._remove(name)
        for name in names:
            if name.startswith(".") and name.endswith(".tmp") and self._age(name) > STALE_AFTER:
                self._remove(name)

    def _age(self, name: str) -> float:
        """Seconds; negative infinity for a file that is gone."""
        try:
            return time.time() - os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime
        except OSError:
            return float("-inf")

    def _remove(self, name: str) -> None:
        with suppress(OSError):  # another worker may have been quicker
            os.unlink(name, dir_fd=self._fd)
