"""What a config shows to more clients than its author may have meant: warnings, not errors."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from ..core.words import bare_or_quoted
from ..net.addresses import Address
from .model import Config


def warnings(config: Config) -> Iterator[str]:
    """Every warning, in one line.

    A handler with a worker apart tells its clients what the server does: the addresses of other clients, say.
    """
    for listener in config.listeners:
        is_guarded = listener.allow or (listener.tls is not None and listener.tls.client_ca is not None)
        if listener.apart and not is_guarded and (public := list(filter(_is_public, listener.bind))):
            yield (
                f"listeners.{bare_or_quoted(listener.name)}.bind: every client that reaches"
                f" {', '.join(map(str, public))} sees the server's status: `allow` or `tls.client_ca` would restrict it"
            )


def _is_public(address: Address) -> bool:
    is_ip = address.family in (socket.AF_INET, socket.AF_INET6)
    return is_ip and not ipaddress.ip_address(address.host).is_loopback
