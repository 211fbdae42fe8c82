"""Byte ranges (RFC 9110 section 14), and the parts of a response with several."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

import msgspec

__all__ = ["MAX_RANGES", "Multipart", "Range", "parse_ranges"]

MAX_RANGES = 64  # in one request; with more, it gets the whole file

_match_ranges = re.compile(rb"bytes[ \t]*=(.*)", re.IGNORECASE | re.DOTALL).fullmatch
_match_range = re.compile(rb"([0-9]*)-([0-9]*)").fullmatch
_MOST_DIGITS = 19  # of a number that a file's size can have


class Range(msgspec.Struct, frozen=True, order=True):
    """A part of a file.

    :ivar first: the offset of its first byte.
    :ivar last: the offset of its last byte.
    """

    first: int
    last: int

    @property
    def length(self) -> int:
        """Bytes."""
        return self.last - self.first + 1

    def of(self, size: int) -> bytes:
        """The value of its Content-Range field, in a file of `size` bytes."""
        return b"bytes %d-%d/%d" % (self.first, self.last, size)


def parse_ranges(field: bytes, size: int) -> list[Range] | None:
    """Read a Range field.

    Ranges that overlap or touch become one, in the place of the first of them (section 15.3.7.2). So no byte is sent
    twice.

    :param size: bytes of the file.
    :returns: the ranges that can be satisfied, in the order of the request; empty where none can, which is a 416; None
        where the field is malformed, of another unit, or asks for too many: then it has to be ignored.
    """
    matched = _match_ranges(field)
    if matched is None:
        return None
    wanted = [part for piece in matched[1].split(b",") if (part := piece.strip(b" \t"))]
    if not wanted or len(wanted) > MAX_RANGES:
        return None
    found: list[Range] = []
    for part in wanted:
        numbers = _match_range(part)
        if numbers is None or part == b"-":
            return None
        first, last = numbers.groups()
        if not first:
            length = min(_number(last), size)
            one = Range(size - length, size - 1)
        else:
            one = Range(_number(first), min(_number(last), size - 1) if last else size - 1)
            if last and _number(last) < one.first:
                return None
        if one.first < size and one.length > 0:
            found.append(one)
    return _coalesced(found)


def _number(digits: bytes) -> int:
    digits = digits.lstrip(b"0")
    return int(digits or b"0") if len(digits) <= _MOST_DIGITS else 10**_MOST_DIGITS


def _coalesced(ranges: Sequence[Range]) -> list[Range]:
    """Join those that overlap or touch."""
    joined: list[tuple[int, Range]] = []  # with the place of the first in the request
    for place, one in sorted(enumerate(ranges), key=lambda item: item[1]):
        if joined and one.first <= joined[-1][1].last + 1:
            earlier, last = joined[-1]
            joined[-1] = (min(earlier, place), Range(last.first, max(last.last, one.last)))
        else:
            joined.append((place, one))
    return [one for _, one in sorted(joined)]


class Multipart:
    """A body of type multipart/byteranges (RFC 9110 section 14.6).

    :param kind: the media type of the file.
    :ivar content_type: of the response.
    :ivar parts: what goes before each range, and the range.
    :ivar end: what goes behind the last one.
    """

    __slots__ = ("content_type", "end", "parts")

    def __init__(self, ranges: Sequence[Range], size: int, kind: bytes) -> None:
        boundary = secrets.token_hex(16).encode()
        self.content_type = b"multipart/byteranges; boundary=" + boundary
        self.parts = [
            (
                b"%b--%b\r\nContent-Type: %b\r\nContent-Range: %b\r\n\r\n"
                % (b"\r\n" if number else b"", boundary, kind, one.of(size)),
                one,
            )
            for number, one in enumerate(ranges)
        ]
        self.end = b"\r\n--%b--\r\n" % boundary
