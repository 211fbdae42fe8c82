"""Networks of IP addresses: as the config writes them, and whether a client's address is in one.

Where networks of ``allow`` and ``deny`` overlap, the smaller one decides (the longest prefix, as in a routing table,
and as xinetd has it with only_from and no_access). Their order in the file means nothing.

Addresses are compared as numbers. That takes one look-up in a dictionary for each prefix length in use, however many
networks there are.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias

from ..core.words import quoted

Network: TypeAlias = IPv4Network | IPv6Network

EXAMPLES = '"192.0.2.0/24", "192.0.2.7" or "2001:db8::/32"'

_MAPPED_PREFIX = bytes(10) + b"\xff\xff"


def parse(text: str) -> Network:
    """Read a network, or a single address.

    :raises ValueError: with one line that says what is wrong and what was expected.
    """
    host, slash, length = text.partition("/")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        packed = socket.inet_pton(family, host)
    except (OSError, ValueError):
        raise ValueError(_not_an_address(text, host)) from None
    longest = len(packed) * 8
    if packed.startswith(_MAPPED_PREFIX) and longest == 128:
        plain = socket.inet_ntop(socket.AF_INET, packed[12:])
        raise ValueError(f"{quoted(text)} is an IPv4-mapped IPv6 address, expected IPv4, such as {quoted(plain)}")
    if slash and not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= longest):
        raise ValueError(
            f"{quoted(length)} in {quoted(text)} is not the length of a prefix, expected a number from 0 to {longest}"
        )
    network = ip_network(f"{host}/{int(length)}" if slash else host, strict=False)
    if network.network_address.packed != packed:
        raise ValueError(
            f"{quoted(text)} has bits set beyond its prefix, expected the network {quoted(str(network))},"
            f" or the address {quoted(host)} alone"
        )
    return network


def _not_an_address(text: str, host: str) -> str:
    if host.startswith("[") or host.count(":") == 1:
        return f"{quoted(text)} is no network, expected an address without brackets and port, such as {EXAMPLES}"
    if "%" in host:
        return f"{quoted(text)} names an interface, expected a network without it, such as {EXAMPLES}"
    if ":" not in host and any(character.isalpha() for character in host):
        return f"{quoted(text)} is a host name, which is not looked up, expected a network such as {EXAMPLES}"
    return f"{quoted(text)} is no network, expected one such as {EXAMPLES}"


def number_of(host: str) -> tuple[int, int] | None:
    """An IP address as ``(bits, number)``: 32 or 128, and the address; None for anything else (a unix socket's path).

    An IPv4 address that a socket for both families shows as ``::ffff:192.0.2.1`` is an IPv4 address.
    """
    if ":" not in host:
        try:
            return 32, int.from_bytes(socket.inet_pton(socket.AF_INET, host))
        except (OSError, ValueError):
            return None
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return None
    if packed.startswith(_MAPPED_PREFIX):
        return 32, int.from_bytes(packed[12:])
    return 128, int.from_bytes(packed)


class AccessList:
    """``allow`` and ``deny`` of one listener. Without ``allow``, what no network names is allowed."""

    def __init__(self, allow: Iterable[Network], deny: Iterable[Network]) -> None:
        tables: dict[int, dict[int, dict[int, str | None]]] = {32: {}, 128: {}}
        only = False
        for networks, verdict in ((allow, None), (deny, "deny")):
            for network in networks:
                only = only or verdict is None
                shift = network.max_prefixlen - network.prefixlen
                tables[network.max_prefixlen].setdefault(shift, {})[int(network.network_address) >> shift] = verdict
        self._otherwise = "allow" if only else None
        # The longest prefixes first: they have the smallest shifts.
        self._levels = {bits: sorted(levels.items()) for bits, levels in tables.items()}

    def refusal(self, bits: int, number: int) -> str | None:
        """The key that refuses an address, ``"deny"`` or ``"allow"``; None where it is allowed."""
        for shift, table in self._levels[bits]:
            key = number >> shift
            if key in table:
                return table[key]
        return self._otherwise
