"""One end of a pipe to or from a program, as a stream."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from .stream import Stream

if TYPE_CHECKING:
    from .connection import Connection
    from .eventloop import EventLoop


class Pipe(Stream):
    """This side of a ``PIPE``; it takes over the descriptor.

    A pipe from a program closes by itself at end of stream; one to a program that has closed its end closes with an
    error (EPIPE), which concerns nobody else.
    """

    __slots__ = ()

    def __init__(self, loop: EventLoop, fd: int, owner: Connection) -> None:
        super().__init__(loop, _PipeEnd(fd), owner)

    def _shutdown_writing(self) -> None:
        # It has one direction: to finish sending is to close it.
        self.close()


class _PipeEnd:
    """Has what a stream needs beside the descriptor."""

    __slots__ = ("_fd",)
    is_pipe: Final = True  # splice(2) takes it as it is

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def shutdown(self, how: int, /) -> None:
        """See ``Pipe._shutdown_writing``."""

    def close(self) -> None:
        os.close(self._fd)
