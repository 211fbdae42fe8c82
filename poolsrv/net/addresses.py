"""Addresses as the config writes them, and as ``bind`` and ``connect`` take them. Names are never looked up."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

EXAMPLES = '"127.0.0.1:7007", "[::1]:7007", ":7007" or "unix:run/hello.sock"'
LONGEST_UNIX_PATH = 107  # bytes: sun_path has 108, one of them for the NUL

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str


class Address(msgspec.Struct, frozen=True):
    """Where a socket listens, or connects to.

    :ivar family: ``socket.AF_INET``, ``AF_INET6`` or ``AF_UNIX``.
    :ivar host: a numeric address, without brackets, with its ``%interface`` where it has one; empty for unix sockets.
    :ivar port: 0 to 65535, where 0 lets the kernel choose; 0 for unix sockets.
    :ivar path: the absolute path of a unix socket, else empty.
    :ivar systemd: the name of sockets that the service manager has opened (``FileDescriptorName=``); then the rest is
        empty.
    :ivar dual: True for ``":7007"``: every address, IPv6 and IPv4, on one socket (``host`` is ``"::"``). An IPv6
        address without it is for IPv6 alone (``IPV6_V6ONLY``).
    """

    family: int
    host: str = ""
    port: int = 0
    path: str = ""
    dual: bool = False
    systemd: str = ""

    @property
    def has_any_port(self) -> bool:
        """Whether the kernel is to choose the port."""
        return not (self.port or self.path or self.systemd)

    @property
    def sockaddr(self) -> SockAddr:
        """What ``socket.bind`` and ``socket.connect`` take.

        :raises OSError: there is no network interface of the name after ``%``.
        """
        if self.family == socket.AF_UNIX:
            return self.path
        if self.family == socket.AF_INET6:
            host, _, interface = self.host.partition("%")
            return host, self.port, 0, _interface_number(interface)
        return self.host, self.port

    def __str__(self) -> str:
        """The address as ``parse`` takes it."""
        if self.systemd:
            return f"systemd:{self.systemd}"
        if self.family == socket.AF_UNIX:
            return f"unix:{self.path}"
        if self.dual:
            return f":{self.port}"
        return f"[{self.host}]:{self.port}" if self.family == socket.AF_INET6 else f"{self.host}:{self.port}"


def parse(text: str, base: Path) -> Address:
    """Read an address.

    :param text: ``"127.0.0.1:7007"``, ``"[::1]:7007"``, ``":7007"`` (every address), ``"unix:run/hello.sock"``, or
        ``"systemd:NAME"`` (opened by the service manager).
    :param base: the directory that relative paths of unix sockets are relative to.
    :raises ValueError: with one line that says what is wrong and what was expected.
    """
    if text.startswith("unix:"):
        return _parse_unix(text, base)
    if text.startswith("systemd:"):
        return _parse_systemd(text)
    if match := re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise ValueError(
            f"{_quoted(text)} starts with {_quoted(match[0])}, expected an address alone, such as {EXAMPLES}"
        )
    host, colon, port_text = _split(text)
    if not colon:
        if text.isascii() and text.isdigit():
            raise ValueError(
                f'{_quoted(text)} is a port alone, expected ":{text}" for every address, or "127.0.0.1:{text}"'
            )
        if _is_name(host):
            raise ValueError(_name_message(text, host, "7007"))
        raise ValueError(f"{_quoted(text)} has no port, expected an address such as {EXAMPLES}")
    if host and not host.startswith("[") and ":" in host:
        raise ValueError(f'{_quoted(text)} is ambiguous, expected brackets around an IPv6 address: "[::1]:7007"')
    port = _parse_port(text, port_text)
    if host == "":
        return Address(family=socket.AF_INET6, host="::", port=port, dual=True)
    if host == "*":
        raise ValueError(f'{_quoted(text)}: "*" is not an address, expected ":{port}" for every address')
    if host.startswith("["):
        return _parse_ipv6(text, host[1:-1], port)
    try:
        host = socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, host))
    except (OSError, ValueError):
        if _is_name(host):
            raise ValueError(_name_message(text, host, str(port))) from None
        raise ValueError(
            f"{_quoted(host)} in {_quoted(text)} is not an IPv4 address, expected four numbers from 0 to 255,"
            f' such as "127.0.0.1:{port}"'
        ) from None
    return Address(family=socket.AF_INET, host=host, port=port)


def overlap(one: Address, other: Address) -> bool:
    """True if not both of them can be listened on. Port 0 overlaps with nothing."""
    if one.systemd or other.systemd:
        return one.systemd == other.systemd
    if socket.AF_UNIX in (one.family, other.family):
        return one.family == other.family and os.path.realpath(one.path) == os.path.realpath(other.path)
    if one.port != other.port or one.port == 0:
        return False
    if one.family != other.family:
        return one.dual or other.dual
    return one.host == other.host or any(address.host in ("0.0.0.0", "::") for address in (one, other))


def _split(text: str) -> tuple[str, str, str]:
    """Split into host, colon and port, at the colon after the brackets, else at the last one."""
    if text.startswith("[") and "]" in text:
        host, bracket, rest = text.rpartition("]")
        return host + bracket, rest[:1] if rest.startswith(":") else "", rest[1:]
    return text.rpartition(":") if ":" in text else (text, "", "")


def _parse_port(text: str, port: str) -> int:
    if not port:
        raise ValueError(f"{_quoted(text)} has no port after the colon, expected an address such as {EXAMPLES}")
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{_quoted(port)} in {_quoted(text)} is not a port, expected a number from 0 to 65535")
    return int(port)


def _parse_ipv6(text: str, host: str, port: int) -> Address:
    number, percent, interface = host.partition("%")
    try:
        packed = socket.inet_pton(socket.AF_INET6, number)
    except (OSError, ValueError):
        raise ValueError(
            f'{_quoted(host)} in {_quoted(text)} is not an IPv6 address, expected one such as "[::1]:{port}"'
        ) from None
    if packed.startswith(bytes(10) + b"\xff\xff"):
        plain = socket.inet_ntop(socket.AF_INET, packed[12:])
        raise ValueError(f'{_quoted(text)} is an IPv4-mapped IPv6 address, expected "{plain}:{port}"')
    if percent and not interface:
        raise ValueError(f'{_quoted(text)} names no interface after "%", expected one such as "[fe80::1%eth0]:{port}"')
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80 and not interface:
        raise ValueError(
            f'{_quoted(text)} is a link-local address, expected its interface with it: "[{number}%eth0]:{port}"'
        )
    return Address(socket.AF_INET6, socket.inet_ntop(socket.AF_INET6, packed) + percent + interface, port)


def _parse_unix(text: str, base: Path) -> Address:
    name = text.removeprefix("unix:")
    if not name:
        raise ValueError(f'{_quoted(text)} has no path, expected one such as "unix:run/hello.sock"')
    if name.startswith("@") or "\0" in name:
        raise ValueError(
            f'{_quoted(text)} names an abstract socket, expected a path of a file, such as "unix:run/hello.sock"'
        )
    if name.endswith("/"):
        raise ValueError(f'{_quoted(text)} names a directory, expected a file, such as "unix:run/hello.sock"')
    path = os.path.join(os.path.abspath(base), name)
    if (length := len(os.fsencode(path))) > LONGEST_UNIX_PATH:
        raise ValueError(
            f"the path of {_quoted(text)} is {length} bytes long ({path}), expected at most {LONGEST_UNIX_PATH}"
        )
    return Address(family=socket.AF_UNIX, path=path)


def _parse_systemd(text: str) -> Address:
    name = text.removeprefix("systemd:")
    # As systemd.socket(5) has it for FileDescriptorName=.
    if not re.fullmatch(r"[\x21-\x39\x3b-\x7e]{1,255}", name):
        raise ValueError(
            f"{_quoted(text)} has no name of a socket unit's FileDescriptorName=, expected one such as"
            ' "systemd:hello.socket"'
        )
    return Address(family=socket.AF_UNSPEC, systemd=name)


def _is_name(host: str) -> bool:
    return re.fullmatch(r"[\w.-]*[^\W\d][\w.-]*", host) is not None


def _name_message(text: str, host: str, port: str) -> str:
    instead = (
        f'"127.0.0.1:{port}" or "[::1]:{port}"'
        if host == "localhost"
        else f'a number such as "127.0.0.1:{port}", or ":{port}" for every address'
    )
    return f"{_quoted(text)} has a host name, which is not looked up, expected {instead}"


def _interface_number(name: str) -> int:
    if not name:
        return 0
    return int(name) if name.isascii() and name.isdigit() else socket.if_nametoindex(name)


def _quoted(text: str) -> str:
    return f'"{text}"' if text.isprintable() and '"' not in text else repr(text)


def peer_name(address: Any) -> tuple[str, int]:
    """An address as the socket module has it, in the one form that plugins see.

    An IPv4 client of a socket for both families is ``127.0.0.1``, not ``::ffff:127.0.0.1``.
    """
    if isinstance(address, tuple):
        host, port = address[:2]
        if host.startswith("::ffff:") and "." in host:
            host = host[7:]
        return (host, port)
    return ("unix:" + os.fsdecode(address), 0)


def client_name(address: Any) -> tuple[str, int]:
    """A client's address in that form; on a unix socket ``("unix:", 0)``, because a client chooses the name of its own
    socket, and the name says nothing about the client."""
    return peer_name(address) if isinstance(address, tuple) else ("unix:", 0)


def format_peer(peer: tuple[str, int]) -> str:
    """Write it as ``127.0.0.1:7007``, ``[::1]:7007`` or ``unix:``."""
    host, port = peer
    if host.startswith("unix:"):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
