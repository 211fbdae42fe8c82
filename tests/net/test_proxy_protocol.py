from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsrv.net.proxy_protocol import Header, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n"
V1_HEADER = Header(len(V1), ("192.0.2.7", 50000), ("198.51.100.1", 443))

ports = st.integers(0, 65535)


def v2(command: int = 1, kind: int = 0x11, addresses: bytes = b"", tlvs: bytes = b"") -> bytes:
    rest = addresses + tlvs
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, kind, len(rest)) + rest


def inet(source: str, destination: str, source_port: int, destination_port: int) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    packed = [socket.inet_pton(family, host) for host in (source, destination)]
    return b"".join(packed) + struct.pack("!HH", source_port, destination_port)


@st.composite
def whole_headers(draw: st.DrawFn) -> tuple[bytes, Header]:
    """A header as a proxy would write it, and what is in it."""
    name, kind, hosts = draw(
        st.sampled_from([("TCP4", 0x11, st.ip_addresses(v=4)), ("TCP6", 0x21, st.ip_addresses(v=6))])
    )
    source, destination = str(draw(hosts)), str(draw(hosts))
    source_port, destination_port = draw(ports), draw(ports)
    if draw(st.booleans()):
        data = f"PROXY {name} {source} {destination} {source_port} {destination_port}\r\n".encode()
    else:
        addresses = inet(source, destination, source_port, destination_port)
        data = v2(kind=kind, addresses=addresses, tlvs=draw(st.binary(max_size=300)))
    return data, Header(len(data), (shown(source), source_port), (shown(destination), destination_port))


def shown(host: str) -> str:
    """As the C library writes it; and IPv4 as such."""
    if ":" in host:
        host = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, host))
    return host.removeprefix("::ffff:") if "." in host else host


@given(whole_headers(), st.binary(max_size=50))
def test_a_header_is_the_same_wherever_it_is_cut(header: tuple[bytes, Header], behind: bytes) -> None:
    data, expected = header
    for end in range(len(data)):
        assert parse(data[:end]) is None
    for end in range(len(behind) + 1):
        assert parse(data + behind[:end]) == expected


@given(st.binary(max_size=300))
def test_anything_else_is_refused_or_not_yet_clear(data: bytes) -> None:
    for start in (b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"):
        try:
            header = parse(start + data)
        except ValueError:
            continue
        assert header is None or header.length <= len(start + data)


@given(whole_headers(), st.data())
def test_what_is_refused_is_refused_whatever_comes_behind(header: tuple[bytes, Header], data: st.DataObject) -> None:
    damaged = bytearray(header[0])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    refused_at = None
    for end in range(len(damaged) + 1):
        try:
            parse(bytes(damaged[:end]))
        except ValueError:
            refused_at = refused_at or end
        else:
            assert refused_at is None, (bytes(damaged), refused_at, end)


def test_the_first_version() -> None:
    assert parse(V1) == V1_HEADER
    assert parse(V1 + b"GET / HTTP/1.1\r\n") == V1_HEADER
    line = b"PROXY TCP6 2001:DB8:0::7 ::1 0 65535\r\n"
    assert parse(line) == Header(len(line), ("2001:db8::7", 0), ("::1", 65535))
    mapped = b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n"
    assert parse(mapped) == Header(len(mapped), ("192.0.2.7", 1), ("::1", 2))


@pytest.mark.parametrize(
    "line",
    [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n", b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"],
)
def test_a_proxy_that_does_not_know(line: bytes) -> None:
    assert parse(line + b"behind") == Header(len(line))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"G", "no PROXY header"),
        (b"GET / HTTP/1.1\r\n", "no PROXY header"),
        (b"\x16\x03\x01", "no PROXY header"),
        (b"PROXY\r\n", "no PROXY header"),
        (b"proxy TCP4 192.0.2.7 192.0.2.8 1 2\r\n", "no PROXY header"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\n", "a PROXY line with another end than CR LF"),
        (b"PROXY " + b"x" * 101, "a PROXY line without end"),
        (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "a PROXY line without end"),
        (b"PROXY UDP4 192.0.2.7 192.0.2.8 1 2\r\n", "a PROXY line of an unknown family"),
        (b"PROXY UNKNOWNS\r\n", "a PROXY line of an unknown family"),
        (b"PROXY  TCP4 192.0.2.7 192.0.2.8 1 2\r\n", "a PROXY line of an unknown family"),
        (b"PROXY TCP4\r\n", "a PROXY line with another number of words"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 1\r\n", "a PROXY line with another number of words"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2 \r\n", "a PROXY line with another number of words"),
        (b"PROXY TCP4  192.0.2.7 192.0.2.8 1\r\n", "a PROXY line with a bad address"),
        (b"PROXY TCP4 192.0.2.07 192.0.2.8 1 2\r\n", "a PROXY line with a bad address"),
        (b"PROXY TCP4 192.0.2 192.0.2.8 1 2\r\n", "a PROXY line with a bad address"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "a PROXY line with a bad address"),
        (b"PROXY TCP6 192.0.2.7 192.0.2.8 1 2\r\n", "a PROXY line with a bad address"),
        (b"PROXY TCP4 \xff.0.2.7 192.0.2.8 1 2\r\n", "a PROXY line with a bad address"),
        (b"PROXY TCP4 192.0.2.7\0 192.0.2.8 1 2\r\n", "a PROXY line with a bad address"),
        (b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n", "a PROXY line with a bad address"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 65536 2\r\n", "a PROXY line with a bad port"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 1 02\r\n", "a PROXY line with a bad port"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 +1 2\r\n", "a PROXY line with a bad port"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\r\n", "a PROXY line with a bad port"),
        (SIGNATURE[:-1] + b"\r", "no PROXY header"),
        (SIGNATURE + b"\x11", "a PROXY header of an unknown version"),
        (SIGNATURE + b"\x31\x11\0\0", "a PROXY header of an unknown version"),
        (v2(2), "a PROXY header with an unknown command"),
        (v2(1, 0x41), "a PROXY header of an unknown family"),
        (v2(1, 0x13), "a PROXY header of an unknown family"),
        (v2(1, 0x11, bytes(11)), "a PROXY header too short for its addresses"),
        (v2(1, 0x21, bytes(12)), "a PROXY header too short for its addresses"),
        (v2(1, 0x31, bytes(215)), "a PROXY header too short for its addresses"),
    ],
)
def test_what_is_no_header(line: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^{why}$"):
        parse(line)


def test_the_second_version() -> None:
    data = v2(addresses=inet("192.0.2.7", "198.51.100.1", 50000, 443))
    assert parse(data + b"behind") == Header(28, ("192.0.2.7", 50000), ("198.51.100.1", 443))
    data = v2(kind=0x21, addresses=inet("2001:db8::7", "::ffff:192.0.2.1", 1, 2), tlvs=b"\x03\0\x04\0\0\0\0")
    assert parse(data) == Header(16 + 36 + 7, ("2001:db8::7", 1), ("192.0.2.1", 2))


def test_unix_sockets() -> None:
    data = v2(kind=0x31, addresses=b"/run/client.sock".ljust(108, b"\0") + b"x" * 108)
    assert parse(data) == Header(232, ("unix:/run/client.sock", 0), ("unix:" + "x" * 108, 0))
    data = v2(kind=0x31, addresses=bytes(108) + b"\0abstract\0rest".ljust(108, b"\0"))
    assert parse(data) == Header(232, ("unix:", 0), ("unix:\0abstract", 0))


@pytest.mark.parametrize(
    "data",
    [
        v2(0, 0),
        v2(0, 0xFF, b"anything"),
        v2(0, 0x11, inet("192.0.2.7", "192.0.2.8", 1, 2)),
        v2(1, 0),
        v2(1, 0x10, bytes(5)),
        v2(1, 0x12, inet("192.0.2.7", "192.0.2.8", 1, 2)),
        v2(1, 0, b"x" * 65535),
    ],
)
def test_a_proxy_that_speaks_for_itself_or_has_no_address_to_tell(data: bytes) -> None:
    assert parse(data[:-1]) is None
    assert parse(data + b"behind") == Header(len(data))
