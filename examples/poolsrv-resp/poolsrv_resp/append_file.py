"""The append-only file: each change as the request that makes it, and how the data come back from them.

A change is written before its client is told of it. What a crash cuts off is the end of the last change, of which no
client was told: it is removed at the next start. Compaction writes what is there now to a second file, in a thread,
while changes go on to the first one and are kept aside; at its end these are added, and the second file takes the first
one's place.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Literal

from poolsrv import Worker

from . import commands
from .protocol import integer, request
from .store import Store

log = logging.getLogger("poolsrv_resp")

Fsync = Literal["always", "everysec", "no"]
PIECE: Final = 1 << 20  # bytes read or written at a time


class Damaged(Exception):
    """The file can't be read to its end, and not because its end is missing."""


class AppendFile:
    """The file of one store. ``open`` and ``close`` belong into ``on_worker_start`` and ``on_worker_stop``.

    :param compact_from: bytes below which the file is not compacted.
    :ivar broken: a change could not be written: none may be made any more.
    """

    def __init__(self, path: Path, fsync: Fsync, compact_from: int) -> None:
        self.broken = False
        self._path = path
        self._fsync = fsync
        self._compact_from = compact_from
        self._fd = self._lock = -1
        self._size = 0  # bytes of whole changes
        self._compacted_size = 0
        self._pending: list[bytes] = []
        self._aside: list[bytes] | None = None  # changes since compaction has begun
        self._is_synced = True
        self._syncing = False
        self._replaced: list[int] = []  # descriptors of former files, which a thread may still use

    # --- start and stop

    def open(self, store: Store, worker: Worker) -> None:
        """Read the file into an empty store, and from now on write its changes.

        :raises OSError: the file can't be opened, or another process has it.
        :raises Damaged: it can't be understood.
        """
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another process has {self._path}") from None
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size, whole = _replay(self._fd, store)
        if self._size < whole:
            log.warning("%s: the last change is not whole: %d bytes are removed", self._path, whole - self._size)
            os.ftruncate(self._fd, self._size)
        self._compacted_size = self._size
        store.changed = self._changed
        if self._fsync == "everysec":
            worker.every(1.0, lambda: self._sync_later(worker))

    def close(self) -> None:
        """Write what is left, and have the disk take it."""
        if self._fd >= 0:
            self.flush()
            os.fsync(self._fd)
            os.close(self._fd)
        if self._lock >= 0:
            os.close(self._lock)
        self._fd = self._lock = -1

    # --- writing

    def _changed(self, *change: bytes) -> None:
        self._pending.append(request(*change))

    def flush(self) -> bool:
        """Write the changes that have been made.

        :returns: False if that has failed: clients must not be told that they are made.
        """
        if not self._pending or self.broken:
            return True  # what is pending then are keys that have expired
        data = b"".join(self._pending)
        self._pending.clear()
        try:
            _write(self._fd, data)
            if self._fsync == "always":
                os.fdatasync(self._fd)
        except OSError as error:
            self.broken = True
            log.error("%s: %s: no more changes are made", self._path, error.strerror)
            self._remove_part()
            return False
        self._size += len(data)
        self._is_synced = False
        if self._aside is not None:
            self._aside.append(data)
        return True

    def _remove_part(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            pass  # the next start does it

    def _sync_later(self, worker: Worker) -> None:
        """Have the disk take what has been written, in a thread: it may take long."""
        if not (self._is_synced or self._syncing or self.broken):
            self._is_synced = self._syncing = True
            worker.run_blocking(os.fdatasync, self._fd, done=self._synced)

    def _synced(self, future: Future[Any]) -> None:
        self._syncing = False
        while self._replaced:
            os.close(self._replaced.pop())
        if (error := future.exception()) is not None:
            self.broken = True
            log.error("%s: %s: no more changes are made", self._path, error)

    # --- compaction

    def is_due(self) -> bool:
        """Whether the file has become large for what is in it."""
        return self._aside is None and self._size > max(self._compact_from, 2 * self._compacted_size)

    def compact(self, store: Store, worker: Worker) -> bool:
        """Begin to compact the file; False if that is under way."""
        if self._aside is not None or self.broken or not self.flush():
            return False
        self._aside = []
        path = self._path.with_name(f"{self._path.name}.new")
        worker.run_blocking(_write_snapshot, path, store.snapshot(), done=lambda future: self._compacted(path, future))
        return True

    def _compacted(self, path: Path, future: Future[int]) -> None:
        aside, self._aside = self._aside or [], None
        if self._fd < 0 or self.broken:
            return
        try:
            fd = future.result()
            _write(fd, b"".join(aside))
            os.fdatasync(fd)
            os.replace(path, self._path)
        except OSError as error:
            log.error("%s: can't be compacted: %s", self._path, error.strerror)
            self._compacted_size = self._size  # try again when it has doubled
            return
        if self._syncing:
            self._replaced.append(self._fd)
        else:
            os.close(self._fd)
        self._fd = fd
        log.info("%s: compacted, from %d bytes to %d", self._path, self._size, os.fstat(fd).st_size)
        self._size = self._compacted_size = os.fstat(fd).st_size


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _write_snapshot(path: Path, snapshot: Iterable[tuple[bytes, bytes, int | None]]) -> int:
    """In a thread: write a file with one change for each key; its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        piece = bytearray()
        for key, value, expiry in snapshot:
            piece += request(b"SET", key, value, *([b"PXAT", b"%d" % expiry] if expiry is not None else []))
            if len(piece) > PIECE:
                _write(fd, bytes(piece))
                piece.clear()
        _write(fd, bytes(piece))
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


# --- reading


def _replay(fd: int, store: Store) -> tuple[int, int]:
    """Make the changes of a file; the number of bytes of whole changes, and of all."""
    with open(os.dup(fd), "rb", buffering=PIECE) as file:
        file.seek(0)
        whole = 0
        for change in _changes(file.readline, file.read):
            try:
                answer = commands.run(commands.find(change), store, change) if change else b"-an empty change"
            except commands.CommandError as error:
                answer = f"-{error}".encode()
            if answer.startswith(b"-"):
                raise Damaged(f"at byte {whole}: {answer[1:].decode(errors='replace').strip()}")
            whole = file.tell()
        file.seek(whole)
        _check_rest(whole, file.read(PIECE))
        return whole, os.fstat(fd).st_size


def _changes(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> Iterator[list[bytes]]:
    """The whole changes, up to the first that is not."""
    while (count := _header(readline(), b"*")) is not None:
        change = []
        for _ in range(count):
            size = _header(readline(), b"$")
            if size is None:
                return
            argument = read(size + 2)
            if len(argument) < size + 2 or not argument.endswith(b"\r\n"):
                return
            change.append(argument[:-2])
        yield change


def _header(line: bytes, kind: bytes) -> int | None:
    if not (line.startswith(kind) and line.endswith(b"\r\n")):
        return None
    number = integer(line[1:-2])
    return number if number is not None and 0 <= number < 1 << 40 else None


def _check_rest(whole: int, rest: bytes) -> None:
    """What comes after the last whole change is the beginning of one, or zeros that a crash of the machine has left.

    :raises Damaged: it is anything else.
    """
    if not rest.strip(b"\0"):
        return
    position = 0
    count: int | None = None
    while position < len(rest):
        end = rest.find(b"\n", position)
        line = rest[position : end + 1] if end >= 0 else rest[position:]
        kind = b"*" if count is None else b"$"
        number = _header(line, kind)
        if number is None:
            if end < 0 and line.startswith(kind) and line[1:].rstrip(b"\r").isdigit() | (len(line) == 1):
                return  # cut off within a number
            raise Damaged(f"at byte {whole}: {line[:40]!r}")
        position = end + 1
        if count is None:
            count = number
        elif len(rest) - position >= number + 2:
            if rest[position + number : position + number + 2] != b"\r\n":
                raise Damaged(f"at byte {whole}: an argument without its end")
            position += number + 2
        else:
            return  # cut off within an argument
