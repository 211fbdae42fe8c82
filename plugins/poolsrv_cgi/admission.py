"""How many programs may run at a time, over all workers, and the bounded queue before that.

Theory. A place is one count of an `eventfd` with EFD_SEMAPHORE (eventfd(2)): to take it is a read, to give it back a
write, both atomic between processes, and the descriptor is readable while there are places. It is made before the
fork, so that all workers share it; no trip to the dispatcher is needed.

A worker that is killed can't give back what it holds. So each worker keeps the number of its places in a cell of a
shared anonymous mapping, which nobody else writes while it lives; the dispatcher, once it has reaped the worker, reads
the cell and gives back that many. The cell is changed before a place is taken and after it is given back, so a worker
that is killed in between leaves one place too many, never one too few.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable

from poolsrv import Handle, Timer, Worker

__all__ = ["Admission", "Waiter"]

_CELL = struct.Struct("=ii")  # the worker's process id, and how many it holds
_CELLS = 1024  # the most workers that a pool can have


class SharedCount:
    """A number of places that the workers of a pool share.

    :param places: how many there are.
    """

    def __init__(self, places: int) -> None:
        self._event = os.eventfd(places, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._cells = mmap.mmap(-1, _CELL.size * _CELLS)
        self._offset = 0
        self._pid = 0
        self._held = 0

    def __del__(self) -> None:
        os.close(self._event)

    def fileno(self) -> int:
        """The descriptor that is readable while there are places."""
        return self._event

    def open(self, slot: int) -> None:
        """In a worker, before its first connection: claim its cell."""
        self._offset = slot * _CELL.size
        self._pid = os.getpid()
        self._hold(0)

    def take(self) -> bool:
        """Take a place; False where there is none."""
        self._hold(self._held + 1)
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            self._hold(self._held - 1)
            return False
        return True

    def give_back(self) -> None:
        """Give a place back."""
        os.eventfd_write(self._event, 1)
        self._hold(self._held - 1)

    def worker_ended(self, pid: int) -> None:
        """In the dispatcher: give back what a worker that has been reaped held."""
        for offset in range(0, _CELL.size * _CELLS, _CELL.size):
            owner, held = _CELL.unpack_from(self._cells, offset)
            if owner == pid:
                _CELL.pack_into(self._cells, offset, 0, 0)
                if held > 0:
                    os.eventfd_write(self._event, held)
                return

    def _hold(self, held: int) -> None:
        self._held = held
        _CELL.pack_into(self._cells, self._offset, self._pid, held)


class Waiter:
    """Somebody in the queue; exactly one of the two is called, unless the waiter is cancelled.

    :param granted: called when a place has been taken for it.
    :param refused: called when it has waited for too long.
    """

    __slots__ = ("granted", "refused", "timer")

    def __init__(self, granted: Callable[[], object], refused: Callable[[], object]) -> None:
        self.granted = granted
        self.refused = refused
        self.timer: Timer | None = None


class Admission:
    """Who may start a program now, who waits, who is refused.

    :param limit: programs at a time, over the pool; 0 is no limit.
    :param queue_size: how many may wait, over the pool.
    :param queue_timeout: seconds that one may wait; 0 is for ever.
    """

    def __init__(self, limit: int, queue_size: int, queue_timeout: float) -> None:
        self._places = SharedCount(limit) if limit else None
        self._queue = SharedCount(queue_size) if limit and queue_size else None
        self._timeout = queue_timeout
        self._waiting: dict[Waiter, None] = {}  # in the order of their coming
        self._worker: Worker | None = None
        self._watch: Handle | None = None

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection."""
        self._worker = worker
        for count in (self._places, self._queue):
            if count is not None:
                count.open(worker.slot)

    def worker_ended(self, pid: int) -> None:
        """In the dispatcher, when a worker has been reaped."""
        for count in (self._places, self._queue):
            if count is not None:
                count.worker_ended(pid)

    def take(self) -> bool:
        """Take a place now; False where one has to wait."""
        return self._places is None or (not self._waiting and self._places.take())

    def give_back(self) -> None:
        """A program has ended."""
        if self._places is not None:
            self._places.give_back()

    def wait(self, waiter: Waiter) -> bool:
        """Queue for a place; False where the queue is full."""
        assert self._worker is not None
        assert self._places is not None
        if self._queue is None or not self._queue.take():
            return False
        if self._timeout:
            waiter.timer = self._worker.call_later(self._timeout, lambda: self._timed_out(waiter))
        self._waiting[waiter] = None
        if self._watch is None:
            self._watch = self._worker.add_reader(self._places.fileno(), self._on_places)
        return True

    def cancel(self, waiter: Waiter) -> None:
        """The waiter has gone away; harmless where it no longer waits."""
        if waiter in self._waiting:
            self._leave(waiter)

    def _on_places(self) -> None:
        assert self._places is not None
        while self._waiting and self._places.take():
            waiter = next(iter(self._waiting))
            self._leave(waiter)
            waiter.granted()

    def _timed_out(self, waiter: Waiter) -> None:
        if waiter in self._waiting:
            self._leave(waiter)
            waiter.refused()

    def _leave(self, waiter: Waiter) -> None:
        del self._waiting[waiter]
        if waiter.timer is not None:
            waiter.timer.cancel()
        if self._queue is not None:
            self._queue.give_back()
        if not self._waiting and self._watch is not None:
            self._watch.cancel()
            self._watch = None
