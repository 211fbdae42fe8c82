"""A request body whose length is not known before its end, kept until then: in memory, then in an unnamed file."""

from __future__ import annotations

import tempfile

__all__ = ["Spool"]


class Spool:
    """Where a chunked body is collected, since CGI has CONTENT_LENGTH or no body (RFC 3875 section 4.1.2).

    :param memory: bytes up to which it stays in memory.
    :ivar size: bytes written.
    """

    def __init__(self, memory: int) -> None:
        # A file of size 0 would never leave memory.
        self._file = tempfile.SpooledTemporaryFile(max_size=max(memory, 1))
        self._memory = memory
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append.

        :raises OSError: the file system is full, or there is no room for temporary files.
        """
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
        """Give memory and file back."""
        self._file.close()
