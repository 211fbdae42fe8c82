"""One end of a pipe to or from a program, as a stream."""

from __future__ import annotations

from .stream import Stream


class Pipe(Stream):
    """This side of a ``PIPE``, or of another file that is no socket.

    A pipe from a program closes by itself at end of stream; one to a program that has closed its end closes with an
    error (EPIPE), which concerns nobody else.
    """

    __slots__ = ()

    def _shutdown_writing(self) -> None:
        # It has one direction: to finish sending is to close it.
        self.close()

    def _is_socket(self) -> bool:
        return False
