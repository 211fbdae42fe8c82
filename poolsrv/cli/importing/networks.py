"""Clients as xinetd and systemd write them, as the networks of ``allow`` and ``deny``. Nothing is looked up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_network

EVERYBODY = ("0.0.0.0/0", "::/0")
_NAMES = {
    "localhost": ("127.0.0.0/8", "::1"),
    "loopback": ("127.0.0.0/8",),
    "any": EVERYBODY,
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
}


def networks(values: Iterable[str]) -> tuple[list[str], list[str]]:
    """Translate a list of clients.

    :returns: the networks, and what has no counterpart: names, and what is no address.
    """
    found: dict[str, None] = {}
    left = []
    for value in values:
        try:
            found.update(dict.fromkeys(_networks(value)))
        except ValueError:
            left.append(value)
    return list(found), left


def _networks(value: str) -> list[str]:
    if value in _NAMES:
        return list(_NAMES[value])
    if match := re.fullmatch(r"([\d.]*)\{([\d,\s]+)\}", value):  # xinetd: 128.138.12.{6,23}
        return [_padded(match[1] + part.strip()) for part in match[2].split(",")]
    if "/" in value:
        return [str(ip_network(value, strict=False))]  # a netmask will do for IPv4
    if ":" in value:
        return [_alone(str(ip_network(value)))]
    if re.fullmatch(r"[\d.]+", value):
        return [_padded(value)]
    raise ValueError(value)


def _padded(value: str) -> str:
    """An IPv4 address, or its first components: those that are missing, or 0 at the end, stand for any."""
    parts = value.strip(".").split(".")
    numbers = IPv4Address(".".join([*parts, *["0"] * (4 - len(parts))]))
    octets = str(numbers).split(".")
    used = 4
    while used and octets[used - 1] == "0":
        used -= 1
    return _alone(f"{numbers}/{used * 8}")


def _alone(network: str) -> str:
    return network.removesuffix("/128").removesuffix("/32") if not network.startswith("0.0.0.0") else network
