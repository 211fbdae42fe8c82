"""The Redis protocol, version 2 (RESP2): requests out of a connection, and replies as bytes.

https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Final

from poolsrv import Connection, FrameTooLong

LONGEST_LINE: Final = 65536  # bytes, of an inline command; Redis has the same limit
NIL: Final = b"$-1\r\n"
OK: Final = b"+OK\r\n"
EMPTY: Final = b"*0\r\n"


class ProtocolError(Exception):
    """What the client sends is not the protocol; nothing after it can be understood."""


class Requests:
    """Takes one client's requests out of its connection, as they arrive.

    :param max_value: the most bytes of one argument.
    :param max_arguments: the most arguments of one request, its name included.
    :param max_request: the most bytes of all of them.
    """

    def __init__(self, max_value: int, max_arguments: int, max_request: int) -> None:
        self._max_value = max_value
        self._max_arguments = max_arguments
        self._max_request = max_request
        self._arguments: list[bytes] = []
        self._room = 0  # bytes that the rest of this request may have
        self._left = 0  # arguments that are still to come
        self._size = -1  # of the next one; -1: not known yet

    def next(self, conn: Connection) -> list[bytes] | None:
        """The next request: a command's name and its arguments; None while it has not arrived. It may be empty.

        :raises ProtocolError: the rest can't be understood.
        """
        if not self._left:
            line = self._line(conn)
            if line is None:
                return None
            if not line.startswith(b"*"):
                return _words(line)
            self._left = self._number(line, b"*", "multibulk", self._max_arguments)
            self._arguments = []
            self._room = self._max_request
        while self._left:
            if self._size < 0:
                line = self._line(conn)
                if line is None:
                    return None
                self._size = self._number(line, b"$", "bulk", min(self._max_value, self._room))
                self._room -= self._size
            argument = conn.recv_exactly(self._size + 2)
            if argument is None:
                return None
            self._arguments.append(argument[:-2])
            self._left -= 1
            self._size = -1
        return self._arguments

    def _line(self, conn: Connection) -> bytes | None:
        try:
            line = conn.recv_until(b"\n", LONGEST_LINE)
        except FrameTooLong:
            raise ProtocolError("too big inline request") from None
        return line and line.rstrip(b"\r\n")

    def _number(self, line: bytes, kind: bytes, name: str, most: int) -> int:
        if not line.startswith(kind):
            raise ProtocolError(f"expected '{kind.decode()}', got '{line[:1].decode('latin-1')}'")
        number = integer(line[1:])
        if number is None or number > most or (kind == b"$" and number < 0):
            raise ProtocolError(f"invalid {name} length")
        return max(number, 0)


def _words(line: bytes) -> list[bytes]:
    """The arguments of an inline command, as a person types it: quotes keep blanks together."""
    if not (b'"' in line or b"'" in line):
        return line.split()
    try:
        return [word.encode("latin-1") for word in shlex.split(line.decode("latin-1"))]
    except ValueError:
        raise ProtocolError("unbalanced quotes in request") from None


def integer(text: bytes) -> int | None:
    """A number of 64 bits, as Redis writes it: no spaces, no plus, no zeros in front."""
    digits = text.removeprefix(b"-")
    if len(text) > 20 or not digits.isdigit() or (digits[:1] == b"0" and text != b"0"):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


def bulk(value: bytes | None) -> bytes:
    """A string, or nil."""
    return NIL if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def number(value: int) -> bytes:
    """A number."""
    return b":%d\r\n" % value


def error(message: str) -> bytes:
    """An error; the first word says of which kind it is."""
    return b"-" + " ".join(message.split()).encode(errors="replace") + b"\r\n"


def array(members: Iterable[bytes]) -> bytes:
    """A list of replies."""
    encoded = list(members)
    return b"*%d\r\n%s" % (len(encoded), b"".join(encoded))


def request(*arguments: bytes) -> bytes:
    """A request, as a client sends it and the file has it."""
    return array(map(bulk, arguments))
