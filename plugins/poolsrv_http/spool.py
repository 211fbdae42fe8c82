"""A request body whose length is not known before its end, kept until then: in memory, then in an unnamed file."""

from __future__ import annotations

import tempfile

from .cells import SharedCells
from .head import RequestError

__all__ = ["Spool", "SpoolAccount"]


class SpoolAccount:
    """How much all workers keep together. Two that write at the same moment may each find room for the same bytes.

    :param most: bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._cells = SharedCells()

    def open(self) -> None:
        """In a worker, before its first connection."""
        self._cells.open()

    def take(self, size: int) -> None:
        """So many bytes more.

        :raises RequestError: there is no room for them.
        """
        if self._cells.total() + size > self._most:
            raise RequestError(503, f"bodies that are kept would be over max_spooled = {self._most} bytes")
        self._cells.add(size)

    def give_back(self, size: int) -> None:
        """So many bytes less."""
        self._cells.add(-size)

    def worker_ended(self, pid: int) -> None:
        """In the dispatcher, when a worker has been reaped: its files are gone with it."""
        self._cells.forget(pid)


class Spool:
    """Where a chunked body is collected, since CGI has CONTENT_LENGTH or no body (RFC 3875 section 4.1.2).

    :param memory: bytes up to which it stays in memory.
    :param account: what it counts for, until `forget`.
    :ivar size: bytes written.
    """

    def __init__(self, memory: int, account: SpoolAccount) -> None:
        # A file of size 0 would never leave memory.
        self._file = tempfile.SpooledTemporaryFile(max_size=max(memory, 1))
        self._memory = memory
        self._account = account
        self._counted = 0
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append.

        :raises RequestError: all bodies together would be too large.
        :raises OSError: the file system is full, or there is no room for temporary files.
        """
        self._account.take(len(data))
        self._counted += len(data)
        self._file.write(data)
        self.size += len(data)

    @property
    def in_memory(self) -> bool:
        """Whether `contents` is the way to get it, or `rewound_descriptor`."""
        return self.size <= max(self._memory, 1)

    def contents(self) -> bytes:
        """All that was written."""
        self._file.seek(0)
        return self._file.read()

    def rewound_descriptor(self) -> int:
        """The file's descriptor, positioned at its beginning; for a program's standard input."""
        self._file.seek(0)
        return self._file.fileno()

    def close(self) -> None:
        """Give memory and file back. While a program has the file, it goes on to count."""
        self._file.close()

    def forget(self) -> None:
        """Nobody has it any more."""
        self.close()
        self._account.give_back(self._counted)
        self._counted = 0
