"""A relay: moves the bytes that arrive on one stream to another, with backpressure, in the kernel where it can.

Theory. ``splice(2)`` moves bytes between a pipe and anything else without copying them through this process.

- Where one side is a pipe (a program's input or output), one call moves from source to target. EAGAIN does not
  say which side is not ready, so the relay watches one side at a time, and changes over to the other.
- Between two sockets, the relay has a pipe of its own. What is in it is in transit. The source is not read while
  anything is in transit, so a slow target slows the source down.
- Where splice can't be used (TLS; no descriptors left for the pipe), bytes are received and sent, and what the target
  has not taken is in transit in memory.

splice(2) heeds O_NONBLOCK and has no MSG_DONTWAIT. A descriptor that a program has, or is about to get, is blocking, so
its bytes are copied too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, Protocol

PIECE: Final = 1 << 20  # bytes asked for by one splice; a pipe's capacity bounds it further
COPY_SIZE: Final = 65536  # bytes received at a time where splice can't be used
_FLAGS: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Mover(Protocol):
    """What writes to a stream in its place: a relay, or a file on its way (see file_sender.py)."""

    wants_write: bool

    def pump(self) -> None:
        """Move what can be moved now."""

    def finish(self) -> None:
        """Let go of the stream, and say that it is done. Harmless when repeated."""

    def copy_from_now_on(self) -> None:
        """A program is about to be given the stream's descriptor."""


class RelayEnd(Protocol):
    """A stream, as a relay sees it: where its bytes come from, or go to."""

    eof: bool
    reset: bool

    @property
    def unsent(self) -> int:
        """Bytes that the stream has of its own, to be written before the relay's."""

    def send_eof(self) -> None:
        """Finish sending."""

    def _fileno(self) -> int:
        """Its descriptor, for splice(2)."""

    def _is_connecting(self) -> bool:
        """Whether bytes can't go in either direction yet."""

    def _is_open(self) -> bool:
        """Whether more bytes may be read from it."""

    def _is_closed(self) -> bool:
        """Whether no bytes can go in either direction any more."""

    def _is_socket(self) -> bool:
        """Whether splice(2) needs a pipe between it and another socket."""

    def _can_splice(self) -> bool:
        """Whether splice(2) may move bytes from it and to it."""

    def _take_input(self, limit: int | None) -> bytes:
        """Take what is in its buffer, at most ``limit`` bytes. They have been counted."""

    def _read_some(self, size: int) -> bytes:
        """As read(2).

        :raises OSError: the same errors.
        """

    def _write_some(self, data: memoryview) -> int:
        """As write(2).

        :raises OSError: the same errors.
        """

    def _keep(self, data: bytes | memoryview) -> None:
        """Keep a piece until the kernel takes it. Its pump is called once that is so."""

    def _count_in(self, size: int) -> None:
        """The relay has read this many bytes."""

    def _count_out(self, size: int) -> None:
        """The relay has written this many bytes."""

    def _connection_lost(self, error: OSError) -> None:
        """A system call has told that the peer is gone."""

    def _attach_relay_in(self, relay: Relay) -> None:
        """Read for this relay from now on."""

    def _attach_relay_out(self, relay: Mover) -> None:
        """Write for this relay from now on."""

    def _detach_relay(self, relay: Mover) -> None:
        """Read and write for this relay no longer."""

    def _update(self) -> None:
        """Ask the relay again what it waits for."""

    def _put_off(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` at the end of this turn."""

    def _guarded(self, what: str, callback: Callable[..., object], *arguments: object) -> None:
        """Call a plugin's callback inside the fault boundary."""

    def _relay_in_finished(self) -> None:
        """The relay that read from it is over, and its ``done`` has been called."""

    def _relay_out_finished(self) -> None:
        """The relay that wrote to it is over, and its ``done`` has been called."""


class Relay:
    """See ``Stream.relay_to``. ``wants_read`` and ``wants_write`` tell its streams what it waits for.

    :raises ValueError: the limit is negative.
    """

    __slots__ = (
        "_copies",
        "_direct",
        "_done",
        "_in_pipe",
        "_moved",
        "_over",
        "_pending",
        "_pipe",
        "_remaining",
        "_source",
        "_target",
        "wants_read",
        "wants_write",
    )

    def __init__(
        self, source: RelayEnd, target: RelayEnd, limit: int | None, done: Callable[[int], object] | None
    ) -> None:
        if limit is not None and limit < 0:
            raise ValueError("the limit of a relay can't be negative")
        self._source = source
        self._target = target
        self._remaining = limit
        self._done = done
        self._moved = 0
        self._over = False
        self._pending = memoryview(b"")  # in transit in memory
        self._pipe: tuple[int, int] | None = None
        self._in_pipe = 0  # bytes in transit in the pipe
        self._direct = not (source._is_socket() and target._is_socket())
        self._copies = not (source._can_splice() and target._can_splice())
        self.wants_read = False
        self.wants_write = False

    def start(self) -> None:
        """Take over the source's input and the target's output; the first bytes move at the end of this turn."""
        source, target = self._source, self._target
        if source._is_closed() or target._is_closed():
            source._put_off(self.finish)
            return
        data = source._take_input(self._remaining)
        if self._remaining is not None:
            self._remaining -= len(data)
        self._pending = memoryview(data)
        self.wants_read = True
        source._attach_relay_in(self)
        target._attach_relay_out(self)
        source._put_off(self.pump)

    # --- moving

    def pump(self) -> None:
        """Move what can be moved now: first what is in transit, then a piece from the source."""
        source, target = self._source, self._target
        if self._over:
            return
        if target._is_closed():
            self.finish()
            return
        if target.unsent or target._is_connecting() or source._is_connecting():
            self._want(read=False, write=False)  # that side pumps again
            return
        if not self._drain():
            return
        if self._ended():
            self.finish()
        elif self._direct and not self._copies:
            self._splice_directly()
        elif self._fill() and self._drain():
            if self._ended():
                self.finish()
            else:
                self._want(read=True, write=False)

    def _ended(self) -> bool:
        """Whether nothing more is to be read."""
        return self._remaining == 0 or self._source.eof or not self._source._is_open() or not self._target._is_open()

    def _piece(self, size: int) -> int:
        return size if self._remaining is None else min(size, self._remaining)

    def _splice_directly(self) -> None:
        source, target = self._source, self._target
        try:
            moved = os.splice(source._fileno(), target._fileno(), self._piece(PIECE), flags=_FLAGS)
        except BlockingIOError:
            self._want(read=not self.wants_read, write=self.wants_read)
            return
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._copies = True  # this kind of file can't be spliced
                source._put_off(self.pump)
            else:
                (source if source._is_socket() and error.errno != errno.EPIPE else target)._connection_lost(error)
            return
        if moved:
            self._received(moved)
            self._sent(moved)
            if self._remaining == 0:
                self.finish()
            elif not self.wants_read:
                self._want(read=True, write=False)
        else:
            self._source_at_eof()

    def _fill(self) -> bool:
        """Bring a piece from the source into transit; False where nothing came (then the next step is set)."""
        source = self._source
        try:
            if not self._copies and self._pipe is None:
                self._open_pipe()
            if self._pipe is not None:
                size = os.splice(source._fileno(), self._pipe[1], self._piece(PIECE), flags=_FLAGS)
                self._in_pipe = size
            else:
                data = source._read_some(self._piece(COPY_SIZE))
                size = len(data)
                self._pending = memoryview(data)
        except BlockingIOError:
            self._want(read=True, write=False)
            return False
        except OSError as error:
            if error.errno == errno.EINVAL and not self._copies:
                self._copies = True
                return self._fill()
            source._connection_lost(error)
            return False
        if not size:
            self._source_at_eof()
            return False
        self._received(size)
        return True

    def _drain(self) -> bool:
        """Bring what is in transit to the target; True when nothing is left."""
        target = self._target
        try:
            if self._pending and not self._write_pending():
                return False
            while self._in_pipe:
                assert self._pipe is not None
                sent = os.splice(self._pipe[0], target._fileno(), self._in_pipe, flags=_FLAGS)
                self._in_pipe -= sent
                self._sent(sent)
        except BlockingIOError:
            self._want(read=False, write=True)
            return False
        except OSError as error:
            target._connection_lost(error)
            return False
        return True

    def _write_pending(self) -> bool:
        """Write what is in transit in memory. What the kernel does not take becomes the target's own: then nothing that
        is sent to it meanwhile comes in between, which a sealed transport could not bear (see its ``write``)."""
        target = self._target
        while self._pending:
            try:
                sent = target._write_some(self._pending)
            except BlockingIOError:
                kept, self._pending = self._pending, memoryview(b"")
                self._moved += len(kept)
                self._want(read=False, write=False)
                target._keep(kept)
                return False
            self._pending = self._pending[sent:]
            self._sent(sent)
        return True

    def copy_from_now_on(self) -> None:
        """A program is about to be given one of the sockets."""
        self._copies = True
        if self._pipe is not None and self._in_pipe:
            self._pending = memoryview(os.read(self._pipe[0], self._in_pipe))
            self._in_pipe = 0

    def _open_pipe(self) -> None:
        try:
            self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self._copies = True  # no descriptors left: slower, but it goes on

    def _received(self, size: int) -> None:
        self._source._count_in(size)
        if self._remaining is not None:
            self._remaining -= size

    def _sent(self, size: int) -> None:
        self._target._count_out(size)
        self._moved += size

    def _want(self, read: bool, write: bool) -> None:
        self.wants_read, self.wants_write = read, write
        self._source._update()
        self._target._update()

    # --- the end

    def _source_at_eof(self) -> None:
        self._source.eof = True
        self.finish()

    def source_ended(self) -> None:
        """The source is closed; what is in transit still goes to the target."""
        self._source._detach_relay(self)
        if self._pending or self._in_pipe:
            self.pump()
        else:
            self.finish()

    def finish(self) -> None:
        """Let go of both streams, and say that it is done. Harmless when repeated."""
        if self._over:
            return
        self._over = True
        source, target = self._source, self._target
        if self._pipe is not None:
            for fd in self._pipe:
                os.close(fd)
        source._detach_relay(self)
        target._detach_relay(self)
        if self._done is not None:
            source._guarded("done", self._done, self._moved)
        elif source.eof and not source.reset:
            target.send_eof()
        source._relay_in_finished()
        target._relay_out_finished()
