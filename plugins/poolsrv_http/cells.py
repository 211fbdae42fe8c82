"""A number for each process, in memory that all workers of a pool and their dispatcher share.

A cell belongs to a process, not to a worker's number in the pool, because a worker that drains already has a successor.
A worker takes a free cell when it starts, and keeps it until the dispatcher has reaped the worker. Only the owner
writes to its cell. A lock keeps apart two workers that start at the same time; the kernel releases it when its holder
is killed (fcntl(2), F_SETLKW: such a lock belongs to the process, however the descriptor was inherited).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

__all__ = ["SharedCells"]

_CELL = struct.Struct("=qq")  # the owner's process id, 0: free; its number
_CELLS = 8192  # for the most workers that a pool can have, and many times as many that drain
_USED = -1  # the number of a cell that is free and has been taken before


class SharedCells:
    """The cells. Made in the parent, before the fork.

    :raises OSError: no descriptor, or no memory.
    """

    def __init__(self) -> None:
        self._file = -1
        self._file = os.memfd_create("poolsrv-cells", os.MFD_CLOEXEC)
        os.ftruncate(self._file, _CELL.size * _CELLS)
        self._cells = mmap.mmap(self._file, _CELL.size * _CELLS)
        self._offset = 0
        self._pid = 0
        self.own = 0

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def open(self) -> None:
        """Take a cell, in a worker.

        :raises OSError: the kernel has no locks left.
        :raises RuntimeError: all are taken.
        """
        pid = os.getpid()
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1)
        try:
            for offset in range(0, _CELL.size * _CELLS, _CELL.size):
                if _CELL.unpack_from(self._cells, offset)[0] in (0, pid):
                    _CELL.pack_into(self._cells, offset, pid, 0)
                    self._offset, self._pid, self.own = offset, pid, 0
                    return
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1)
        raise RuntimeError(f"{_CELLS} workers that serve or drain: there is no room for another")

    def add(self, difference: int) -> None:
        """Change the worker's own number."""
        self.own += difference
        _CELL.pack_into(self._cells, self._offset, self._pid, self.own)

    def total(self) -> int:
        """The sum over all workers, as of now."""
        # Cells are taken from the first on: behind one that was never used there are no others.
        total = 0
        for offset in range(0, _CELL.size * _CELLS, _CELL.size):
            pid, number = _CELL.unpack_from(self._cells, offset)
            if pid:
                total += number
            elif not number:
                break
        return total

    def forget(self, pid: int) -> int:
        """Free the cell of a worker that has been reaped, in the dispatcher. Returns the number that was in it."""
        for offset in range(0, _CELL.size * _CELLS, _CELL.size):
            owner, number = _CELL.unpack_from(self._cells, offset)
            if owner == pid:
                _CELL.pack_into(self._cells, offset, 0, _USED)
                return int(number)
            if not owner and not number:
                break
        return 0
