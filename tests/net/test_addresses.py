from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from poolsrv.net.addresses import Address, overlap, parse

BASE = Path("/srv/app")


@pytest.mark.parametrize(
    ("text", "expected", "sockaddr"),
    [
        ("127.0.0.1:7007", Address(socket.AF_INET, "127.0.0.1", 7007), ("127.0.0.1", 7007)),
        ("0.0.0.0:0", Address(socket.AF_INET, "0.0.0.0", 0), ("0.0.0.0", 0)),
        ("[::1]:7007", Address(socket.AF_INET6, "::1", 7007), ("::1", 7007, 0, 0)),
        ("[0:0::0:1]:65535", Address(socket.AF_INET6, "::1", 65535), ("::1", 65535, 0, 0)),
        (":7007", Address(socket.AF_INET6, "::", 7007, dual=True), ("::", 7007, 0, 0)),
        ("[::]:7007", Address(socket.AF_INET6, "::", 7007), ("::", 7007, 0, 0)),
        (
            "[fe80::1%lo]:80",
            Address(socket.AF_INET6, "fe80::1%lo", 80),
            ("fe80::1", 80, 0, socket.if_nametoindex("lo")),
        ),
        ("[fe80::1%7]:80", Address(socket.AF_INET6, "fe80::1%7", 80), ("fe80::1", 80, 0, 7)),
        ("unix:run/a.sock", Address(socket.AF_UNIX, path="/srv/app/run/a.sock"), "/srv/app/run/a.sock"),
        ("unix:/run/a b:1", Address(socket.AF_UNIX, path="/run/a b:1"), "/run/a b:1"),
    ],
)
def test_each_form_is_read_and_written_back(text: str, expected: Address, sockaddr: object) -> None:
    address = parse(text, BASE)
    assert address == expected
    assert address.sockaddr == sockaddr
    assert parse(str(address), Path("/elsewhere")) == address


FORMS = '"127.0.0.1:7007", "[::1]:7007", ":7007" or "unix:run/hello.sock"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f'"" has no port, expected an address such as {FORMS}'),
        ("7007", '"7007" is a port alone, expected ":7007" for every address, or "127.0.0.1:7007"'),
        ("127.0.0.1", f'"127.0.0.1" has no port, expected an address such as {FORMS}'),
        ("127.0.0.1:", f'"127.0.0.1:" has no port after the colon, expected an address such as {FORMS}'),
        ("[::1]", f'"[::1]" has no port, expected an address such as {FORMS}'),
        ("[::1]80", f'"[::1]80" has no port, expected an address such as {FORMS}'),
        ("::1:80", '"::1:80" is ambiguous, expected brackets around an IPv6 address: "[::1]:7007"'),
        ("[::g]:80", '"::g" in "[::g]:80" is not an IPv6 address, expected one such as "[::1]:80"'),
        ("127.0.0.1:http", '"http" in "127.0.0.1:http" is not a port, expected a number from 0 to 65535'),
        ("127.0.0.1:65536", '"65536" in "127.0.0.1:65536" is not a port, expected a number from 0 to 65535'),
        ("127.0.0.1:+80", '"+80" in "127.0.0.1:+80" is not a port, expected a number from 0 to 65535'),
        ("127.0.0.1:٨٠", '"٨٠" in "127.0.0.1:٨٠" is not a port, expected a number from 0 to 65535'),
        ("*:80", '"*:80": "*" is not an address, expected ":80" for every address'),
        (
            "127.1:80",
            '"127.1" in "127.1:80" is not an IPv4 address, expected four numbers from 0 to 255, such as "127.0.0.1:80"',
        ),
        (
            "localhost:80",
            '"localhost:80" has a host name, which is not looked up, expected "127.0.0.1:80" or "[::1]:80"',
        ),
        (
            "www.example.org:80",
            '"www.example.org:80" has a host name, which is not looked up, expected a number such as "127.0.0.1:80",'
            ' or ":80" for every address',
        ),
        (
            "example.org",
            '"example.org" has a host name, which is not looked up, expected a number such as "127.0.0.1:7007",'
            ' or ":7007" for every address',
        ),
        (
            "http://127.0.0.1:80",
            f'"http://127.0.0.1:80" starts with "http://", expected an address alone, such as {FORMS}',
        ),
        (
            "[::ffff:10.0.0.1]:80",
            '"[::ffff:10.0.0.1]:80" is an IPv4-mapped IPv6 address, expected "10.0.0.1:80"',
        ),
        (
            "[fe80::1]:80",
            '"[fe80::1]:80" is a link-local address, expected its interface with it: "[fe80::1%eth0]:80"',
        ),
        (
            "[fe80::1%]:80",
            '"[fe80::1%]:80" names no interface after "%", expected one such as "[fe80::1%eth0]:80"',
        ),
        ("unix:", '"unix:" has no path, expected one such as "unix:run/hello.sock"'),
        ("unix:run/", '"unix:run/" names a directory, expected a file, such as "unix:run/hello.sock"'),
        (
            "unix:@hello",
            '"unix:@hello" names an abstract socket, expected a path of a file, such as "unix:run/hello.sock"',
        ),
    ],
)
def test_each_mistake_has_its_own_answer(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"\A{re.escape(message)}\Z"):
        parse(text, BASE)


def test_a_unix_path_is_as_long_as_the_kernel_takes_and_no_longer(tmp_path: Path) -> None:
    room = 107 - len(str(tmp_path)) - 1
    longest = parse("unix:" + "a" * room, tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(longest.sockaddr)
    with pytest.raises(ValueError, match=r"is 108 bytes long .*, expected at most 107"):
        parse("unix:" + "a" * (room + 1), tmp_path)


def test_an_interface_that_is_not_there_is_an_os_error() -> None:
    address = parse("[fe80::1%nothere]:80", BASE)
    with pytest.raises(OSError, match="no interface with this name"):
        _ = address.sockaddr


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("127.0.0.1:7007", "127.0.0.1:7007", True),
        ("127.0.0.1:7007", "127.0.0.2:7007", False),
        ("127.0.0.1:7007", "127.0.0.1:7008", False),
        ("127.0.0.1:7007", "0.0.0.0:7007", True),
        ("127.0.0.1:7007", ":7007", True),
        ("[::1]:7007", ":7007", True),
        ("[::1]:7007", "[::]:7007", True),
        ("127.0.0.1:7007", "[::]:7007", False),
        ("[::]:7007", ":7007", True),
        ("[::1]:7007", "127.0.0.1:7007", False),
        (":0", "127.0.0.1:0", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("unix:a", "unix:./a", True),
        ("unix:a", "unix:b", False),
        ("unix:a", ":7007", False),
    ],
)
def test_overlap_is_what_the_kernel_would_say(one: str, other: str, expected: bool, tmp_path: Path) -> None:
    first, second = parse(one, tmp_path), parse(other, tmp_path)
    assert overlap(first, second) is expected
    assert overlap(second, first) is expected
