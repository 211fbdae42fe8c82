"""Headers of the PROXY protocol, versions 1 and 2.

The rules: while a header is incomplete nothing is said. Once it is whole, more bytes change nothing. Once it is
refused, no further byte makes it good. Addresses are addresses, and mean the same when they are written again.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

from poolsrv.net.proxy_protocol import LONGEST_V1, Header, Name, parse

from . import Target

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def run(data: bytes) -> None:
    found = outcome(data)
    if isinstance(found, Header):
        assert 0 < found.length <= len(data)
        assert outcome(data[: found.length]) == found
        for size in range(found.length):
            assert outcome(data[:size]) is None, size
        check_accepted(found, data[: found.length])
    elif found is None:
        for size in range(len(data)):
            assert outcome(data[:size]) is None, size
    else:
        told = [outcome(data[:size]) for size in range(len(data) + 1)]
        first = next(size for size, one in enumerate(told) if one is not None)
        assert all(isinstance(one, str) for one in told[first:]), first


def outcome(data: bytes) -> Header | str | None:
    try:
        return parse(data)
    except ValueError as error:
        assert str(error).isascii()
        assert str(error).isprintable()
        return str(error)


def check_accepted(header: Header, data: bytes) -> None:
    assert (header.peer is None) == (header.local is None)
    if data.startswith(b"PROXY "):
        assert header.length <= LONGEST_V1
        assert data.endswith(b"\r\n")
        assert data.count(b"\n") == 1
    if header.peer is None or header.local is None:
        return
    if data.startswith(SIGNATURE) and data[13] >> 4 == 3:
        for name in (header.peer, header.local):
            assert name[1] == 0
        return
    addresses = [ip_address(host) for host, _ in (header.peer, header.local)]
    assert all(0 <= port <= 65535 for _, port in (header.peer, header.local))
    if addresses[0].version == addresses[1].version:
        assert same(parse(written_v1(header.peer, header.local)), header)
        assert same(parse(written_v2(header.peer, header.local)), header)


def same(again: Header | None, header: Header) -> bool:
    return again is not None and (again.peer, again.local) == (header.peer, header.local)


def written_v1(peer: Name, local: Name) -> bytes:
    family = "TCP6" if ":" in peer[0] else "TCP4"
    return f"PROXY {family} {peer[0]} {local[0]} {peer[1]} {local[1]}\r\n".encode()


def written_v2(peer: Name, local: Name) -> bytes:
    family = socket.AF_INET6 if ":" in peer[0] else socket.AF_INET
    packed = b"".join(socket.inet_pton(family, host) for host, _ in (peer, local))
    packed += struct.pack("!HH", peer[1], local[1])
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x21 if ":" in peer[0] else 0x11, len(packed)) + packed


TARGET = Target(
    run,
    512,
    (
        b"PROXY ",
        b"TCP4 ",
        b"TCP6 ",
        b"UNKNOWN",
        SIGNATURE,
        b"\r\n",
        b"::",
        b"\x21\x11\0\x0c",
        b"\x21\x21\0\x24",
        b"\x20\0",
    ),
)
