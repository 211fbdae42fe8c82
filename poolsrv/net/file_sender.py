"""Sends a part of a file on a stream, with backpressure, by the kernel alone where it can.

Theory. ``sendfile(2)`` moves bytes from the page cache to a socket, and takes what the socket has room for. One piece
moves for each event, so a client that is fast does not keep the others waiting, and nothing is kept in memory for one
that is slow.

- Where the stream is sealed (TLS), or a program has a copy of its descriptor (which is blocking, and sendfile(2) has
  no MSG_DONTWAIT), the stream is given one piece after another to keep until it is written.
- An error of sendfile(2) does not say which side it is of. The two calls in its place do: so they follow every error
  but those that only a peer can cause.
- A file may have become shorter since its size was asked for. Then there are fewer bytes than were to be sent, and the
  caller is told how many.
- Reading from a slow disk blocks, here as in read(2). Pieces are small enough that it is not for long, and the kernel
  is told beforehand to read ahead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from .relay import RelayEnd

PIECE: Final = 1 << 19  # bytes asked of the kernel for each event
COPY_SIZE: Final = 65536  # bytes read at a time where sendfile(2) can't be used


class FileSender:
    """See ``Stream.send_file``. ``wants_write`` tells the stream what it waits for.

    :raises ValueError: the offset or the count is negative.
    """

    __slots__ = ("_copies", "_done", "_fd", "_left", "_offset", "_over", "_sent", "_target", "wants_write")

    def __init__(
        self, target: RelayEnd, fd: int, offset: int, count: int, done: Callable[[int], object] | None
    ) -> None:
        if offset < 0 or count < 0:
            raise ValueError("the offset and the count can't be negative")
        self._target = target
        self._fd = fd
        self._offset = offset
        self._left = count  # bytes of the file that have not been read
        self._done = done
        self._sent = 0
        self._over = False
        self._copies = not (target._can_splice() and target._is_socket())
        self.wants_write = False

    def start(self) -> None:
        """Take over the target's output; the first bytes go at the end of this turn."""
        target = self._target
        if not (target._is_open() or target._is_connecting()):
            target._put_off(self.finish)
            return
        if self._left > PIECE:
            try:
                os.posix_fadvise(self._fd, self._offset, self._left, os.POSIX_FADV_SEQUENTIAL)
            except OSError:
                pass  # no file, which the first read tells
        target._attach_relay_out(self)
        target._put_off(self.pump)

    def pump(self) -> None:
        """Send a piece."""
        target = self._target
        if self._over:
            return
        if target._is_closed():
            self.finish()
        elif target.unsent or target._is_connecting():
            self._want(False)  # the target pumps again
        elif not self._left:
            self.finish()
        elif self._copies:
            self._copy()
        else:
            self._send()

    def _send(self) -> None:
        target = self._target
        try:
            sent = os.sendfile(target._fileno(), self._fd, self._offset, min(self._left, PIECE))
        except BlockingIOError:
            self._want(True)
            return
        except ConnectionError as error:
            target._connection_lost(error)
            return
        except OSError:
            self._copies = True
            self._copy()
            return
        self._offset += sent
        self._left -= sent
        self._sent += sent
        target._count_out(sent)
        if not sent or not self._left:
            self.finish()
        else:
            self._want(True)

    def _copy(self) -> None:
        """Have the target keep a piece; it pumps again once that is written."""
        try:
            data = os.pread(self._fd, min(self._left, COPY_SIZE), self._offset)
        except OSError:
            data = b""  # as if it ended here
        if not data:
            self.finish()
            return
        self._offset += len(data)
        self._left -= len(data)
        self._sent += len(data)
        self._want(False)
        self._target._keep(data)

    def copy_from_now_on(self) -> None:
        """A program is about to be given the target."""
        self._copies = True

    def _want(self, write: bool) -> None:
        if write != self.wants_write:
            self.wants_write = write
            self._target._update()

    def finish(self) -> None:
        """Let go of the target, and say how many bytes went out. Harmless when repeated."""
        if self._over:
            return
        self._over = True
        self.wants_write = False
        target = self._target
        target._detach_relay(self)
        if self._done is not None:
            target._guarded("done", self._done, self._sent)
        target._relay_out_finished()
