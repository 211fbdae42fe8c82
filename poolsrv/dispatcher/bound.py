"""A bound socket of a listener, and the options of its connections.

On Linux, an accepted connection inherits the options of its listening TCP socket. So options cost nothing per
connection.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ..config.model import ListenerConfig
from ..core.listening_sockets import ListeningSocket

KEEPALIVE_PROBES: Final = 3  # without an answer, before the connection is reset


class Bound(msgspec.Struct, frozen=True):
    """One bound, non-blocking socket; it listens, if ``held.listens``.

    :ivar listener: the listener's name.
    :ivar held: the socket, as the supervisor holds it.
    :ivar is_new: whether this pool has bound it.
    :ivar share: with kernel dispatch, its number among the sockets of its address; None: the dispatcher accepts.
    :ivar why_dispatched: why the dispatcher accepts although the config wants kernel dispatch.
    """

    listener: str
    held: ListeningSocket
    is_new: bool
    share: int | None = None
    why_dispatched: str = ""

    @property
    def socket(self) -> socket.socket:
        """The socket."""
        return self.held.socket

    def __str__(self) -> str:
        """Write the real address; for port 0, with the port that the kernel has chosen."""
        if self.socket.family == socket.AF_UNIX:
            return f"unix:{self.held.path or os.fsdecode(self.socket.getsockname())}"
        host, port = self.socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dispatched(group: Iterable[Bound], why: str) -> list[Bound]:
    """Have the dispatcher accept at all sockets of a group, although the config wants kernel dispatch, if it does."""
    return [
        msgspec.structs.replace(one, share=None, why_dispatched=why) if one.share is not None else one for one in group
    ]


def addresses_of(group: Iterable[Bound]) -> list[str]:
    """The real addresses of a listener's sockets, each once."""
    return list(dict.fromkeys(map(str, group)))


def apply_options(sock: socket.socket, listener: ListenerConfig) -> None:
    """Set all TCP options of the listener, those at their defaults too, for the socket may be an older pool's."""
    if sock.family == socket.AF_UNIX:
        return
    for option, value in (
        (socket.TCP_NODELAY, listener.tcp_nodelay),
        (socket.TCP_USER_TIMEOUT, round(listener.tcp_user_timeout * 1000)),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    idle = listener.keepalive
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, idle > 0)
    if idle:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(idle // KEEPALIVE_PROBES, 1))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def apply_again(bound: Sequence[Sequence[Bound]], listeners: Sequence[ListenerConfig]) -> None:
    """Set the options that plugins have had a say in since the sockets were bound."""
    for group, listener in zip(bound, listeners, strict=True):
        for one in group:
            apply_options(one.socket, listener)
