"""Request bodies that are kept until they are whole: in memory, then in an unnamed file."""

from __future__ import annotations

import os
import tempfile

from .cells import SharedCells
from .request_head import RequestError

__all__ = ["Spool", "SpoolAccount"]


class SpoolAccount:
    """Counts the bytes that all workers keep together.

    Two workers that write at the same moment may each find room for the same bytes.

    :param most: bytes that they may keep.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._cells = SharedCells()

    def open(self) -> None:
        """Prepare a worker, before its first connection."""
        self._cells.open()

    def take(self, size: int) -> None:
        """Count so many bytes more.

        :raises RequestError: there is no room for them (503).
        """
        if self._cells.total() + size > self._most:
            raise RequestError(503, f"bodies that are kept would be over max_spooled = {self._most} bytes")
        self._cells.add(size)

    def give_back(self, size: int) -> None:
        """Count so many bytes less."""
        self._cells.add(-size)

    def worker_ended(self, pid: int) -> None:
        """Forget a worker that has been reaped, in the dispatcher: its files are gone with it."""
        self._cells.forget(pid)


class Spool:
    """Where one body is collected.

    :param memory: bytes up to which it stays in memory.
    :param account: counts its bytes, until `forget`.
    :ivar size: bytes written.
    """

    def __init__(self, memory: int, account: SpoolAccount) -> None:
        # A file of size 0 would never leave memory.
        self._file = tempfile.SpooledTemporaryFile(max_size=max(memory, 1))
        self._memory = memory
        self._account = account
        self._counted = 0
        self._reader = -1
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append bytes.

        :raises RequestError: all bodies together would be too large (503).
        :raises OSError: the file system is full, or there is no room for temporary files.
        """
        self._account.take(len(data))
        self._counted += len(data)
        self._file.write(data)
        self.size += len(data)

    @property
    def in_memory(self) -> bool:
        """Whether it is in memory, where `contents` gets it; else it is in the file of `rewound_descriptor`."""
        return self.size <= max(self._memory, 1)

    def contents(self) -> bytes:
        """All that was written."""
        self._file.seek(0)
        return self._file.read()

    def first(self, limit: int) -> bytes:
        """The first bytes. The position of the file's descriptor stays."""
        if self.in_memory:
            return self.contents()[:limit]
        self._file.flush()
        return os.pread(self._file.fileno(), limit, 0)

    def rewound_descriptor(self) -> int:
        """A descriptor of the file at position 0, for a program's standard input: it can only be read. Through the one
        that it was written with, a program could write more than `max_spooled`.

        :raises OSError: there are no descriptors left.
        """
        self._file.flush()
        self._close_reader()
        self._reader = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        return self._reader

    def close(self) -> None:
        """Free memory and file. The bytes stay counted, since a program may still have the file."""
        self._close_reader()
        self._file.close()

    def _close_reader(self) -> None:
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1

    def forget(self) -> None:
        """Free it, and count its bytes no more: no program has it either."""
        self.close()
        self._account.give_back(self._counted)
        self._counted = 0
