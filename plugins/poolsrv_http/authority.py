"""A host with its port, as a Host field, an absolute target and a proxy's fields have it (RFC 3986 section 3.2)."""

from __future__ import annotations

import re
import socket

__all__ = ["host_name", "is_authority", "port_of"]

# A bracketed IPv6 address or a name, then a port. Userinfo is not allowed (RFC 9110 section 4.2.4), nor is an escape
# for a control character.
_match = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%(?!7[Ff])[2-9A-Fa-f][0-9A-Fa-f])*)(?::([0-9]{0,5}))?"
).fullmatch


def is_authority(text: bytes) -> bool:
    """Whether this is a host, which may be empty, with or without a port, which may be empty too (section 3.2.3)."""
    matched = _match(text)
    if matched is None:
        return False
    address, port = matched.groups()
    if address is not None:
        try:
            socket.inet_pton(socket.AF_INET6, address.decode("ascii"))
        except OSError:
            return False
    return not port or int(port) <= 65535


def host_name(authority: bytes) -> str:
    """RFC 3875 section 4.1.14: the name alone, the brackets of an IPv6 address included."""
    text = authority.decode("ascii")
    if text.startswith("["):
        return text[: text.index("]") + 1]
    return text.partition(":")[0]


def port_of(authority: bytes) -> str:
    """The port, "" where there is none."""
    port = authority.rpartition(b"]")[2].rpartition(b":")
    return port[2].decode("ascii") if port[1] else ""
