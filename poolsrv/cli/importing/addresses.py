"""Addresses of the old configs, as ``bind`` takes them."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from .service import Service

ANY = ("", "*", "::")


def bound(service: Service, host: str, port: int, family: int) -> list[str]:
    """The addresses of a port.

    A name holds the service back: no name is looked up.

    :param host: an address, or empty for every one.
    :param family: 4 or 6, if the service is for IPv4 or IPv6 alone, else 0.
    """
    if host == "localhost":
        both = {4: ["127.0.0.1"], 6: ["[::1]"]}.get(family, ["127.0.0.1", "[::1]"])
        return [f"{address}:{port}" for address in both]
    if host in ANY:
        return [{4: f"0.0.0.0:{port}", 6: f"[::]:{port}"}.get(family, f":{port}")]
    try:
        address = ip_address(host)
    except ValueError:
        service.held_back.append(f'the address "{host}" is a name, which is not looked up: write its address')
        return []
    return [f"[{host}]:{port}" if isinstance(address, IPv6Address) else f"{host}:{port}"]
