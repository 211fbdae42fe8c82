r"""The header of the PROXY protocol: what a proxy says about its client, before the client's own bytes.

The format is HAProxy's, in doc/proxy-protocol.txt of its sources. Version 1 is a line of text::

    PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n

Version 2 is binary: a signature of 12 bytes; version and command; family and protocol; the length of what follows, in
16 bits; the addresses; and after them, up to that length, further fields (TLVs), which are skipped here.

Whatever is not exactly a header is refused, as early as that can be seen.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

import msgspec

from .addresses import peer_name

LONGEST_V1: Final = 107  # bytes, the end of the line included

_START_V1: Final = b"PROXY "
_SIGNATURE_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_V2: Final = 16  # bytes up to the addresses
_LOCAL, _PROXY = 0, 1
_STREAM: Final = 1
_UNIX_PATH: Final = 108  # bytes, as in struct sockaddr_un

_FAMILIES_V1: Final[dict[bytes, int]] = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}
_FAMILIES_V2: Final[dict[int, int]] = {1: socket.AF_INET, 2: socket.AF_INET6, 3: socket.AF_UNIX}
_SIZES_V2: Final[dict[int, int]] = {socket.AF_INET: 12, socket.AF_INET6: 36, socket.AF_UNIX: 2 * _UNIX_PATH}

Name = tuple[str, int]


class Header(msgspec.Struct, frozen=True):
    """A whole header.

    :ivar length: of the header, in bytes.
    :ivar peer: the client's address, in the form of ``Connection.peer``; None where the proxy speaks for itself (LOCAL,
        as in its health checks), or does not know (UNKNOWN).
    :ivar local: the address that the client has connected to; None together with ``peer``.
    """

    length: int
    peer: Name | None = None
    local: Name | None = None


def parse(data: bytes) -> Header | None:
    """Read the header that ``data`` begins with; None while it is not all there.

    :raises ValueError: with what is wrong: no bytes that may follow can make it a header.
    """
    if _starts(data, _START_V1):
        return _parse_v1(data)
    if _starts(data, _SIGNATURE_V2):
        return _parse_v2(data)
    raise ValueError("no PROXY header")


def _starts(data: bytes, start: bytes) -> bool:
    """Whether it starts with this, or may do so once more has arrived."""
    return data.startswith(start) or start.startswith(data)


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, LONGEST_V1)
    if end < 0:
        if len(data) >= LONGEST_V1:
            raise ValueError("a PROXY line without end")
        return None
    line, length = data[:end], end + 1
    if not line.endswith(b"\r"):
        raise ValueError("a PROXY line with another end than CR LF")
    _, family_name, *words = line[:-1].split(b" ")
    if family_name == b"UNKNOWN":
        return Header(length)  # what comes after the word means nothing
    family = _FAMILIES_V1.get(family_name)
    if family is None:
        raise ValueError("a PROXY line of an unknown family")
    if len(words) != 4:
        raise ValueError("a PROXY line with another number of words")
    source, destination = (_host(family, word) for word in words[:2])
    source_port, destination_port = map(_port, words[2:])
    return Header(length, peer_name((source, source_port)), peer_name((destination, destination_port)))


def _host(family: int, word: bytes) -> str:
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, word.decode("ascii")))
    except (OSError, ValueError):
        raise ValueError("a PROXY line with a bad address") from None


def _port(word: bytes) -> int:
    if word.isdigit() and len(word) <= 5 and (word == b"0" or word[:1] != b"0") and int(word) <= 65535:
        return int(word)
    raise ValueError("a PROXY line with a bad port")


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < _FIXED_V2:
        if len(data) > 12 and data[12] >> 4 != 2:
            raise ValueError("a PROXY header of an unknown version")
        return None
    version_and_command, family_and_protocol, rest = struct.unpack_from("!BBH", data, 12)
    family = _family_v2(version_and_command, family_and_protocol)
    if family is not None and rest < _SIZES_V2[family]:
        raise ValueError("a PROXY header too short for its addresses")
    length = _FIXED_V2 + rest
    if len(data) < length:
        return None
    if family is None:
        return Header(length)
    if family == socket.AF_UNIX:
        start = _FIXED_V2 + _UNIX_PATH
        return Header(length, _path(data[_FIXED_V2:start]), _path(data[start : start + _UNIX_PATH]))
    size = 4 if family == socket.AF_INET else 16
    source, destination, source_port, destination_port = struct.unpack_from(f"!{size}s{size}sHH", data, _FIXED_V2)
    return Header(
        length,
        peer_name((socket.inet_ntop(family, source), source_port)),
        peer_name((socket.inet_ntop(family, destination), destination_port)),
    )


def _family_v2(version_and_command: int, family_and_protocol: int) -> int | None:
    """The family of the addresses that count; None where the socket's own count."""
    command, protocol = version_and_command & 15, family_and_protocol & 15
    if version_and_command >> 4 != 2:
        raise ValueError("a PROXY header of an unknown version")
    if command == _LOCAL:
        return None  # and the rest means nothing
    if command != _PROXY:
        raise ValueError("a PROXY header with an unknown command")
    if family_and_protocol >> 4 > 3 or protocol > 2:
        raise ValueError("a PROXY header of an unknown family")
    # A datagram's addresses are not those of a stream.
    return _FAMILIES_V2.get(family_and_protocol >> 4) if protocol == _STREAM else None


def _path(field: bytes) -> Name:
    # An abstract socket's name begins with a NUL.
    name = field[:1] + field[1:].partition(b"\0")[0]
    return peer_name(b"" if name == b"\0" else name)
