"""Several sockets on one address, for kernel dispatch: one for each worker (SO_REUSEPORT, socket(7)).

Theory. The kernel spreads connections over all sockets that listen on an address, and each has a queue of its own. When
one is closed, the connections in its queue are reset. So no socket is closed as long as its address stays: a pool uses
all that the supervisor holds, whichever way it dispatches, and adds to them if it has more workers. One that is new is
bound, and listens only once the pool serves: a pool that fails to start would leave connections in its queue.

The first socket of an address is bound without SO_REUSEPORT, so an address that another process listens on is in use,
as it is without kernel dispatch.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Final

import msgspec

from ..config.model import ListenerConfig, PoolConfig, sockets_of, why_dispatched
from ..core.listening_sockets import ListeningSocket
from ..net.addresses import Address
from .bound import Bound, apply_options

log = logging.getLogger("poolsrv.listeners")

MOST_SOCKETS: Final = 1024  # of a pool; the supervisor passes them all to the next one
OLD_SUPERVISOR: Final = "the supervisor is of an older version: restart the server"


def share_key(key: str, number: int) -> str:
    """The key of a further socket of an address, by the key of the first one."""
    return f"{key}+{number}"


class Shares:
    """Gives each address as many sockets as it is to have, and says which of these are the workers'.

    :param pool: None: the dispatcher accepts everywhere.
    :param is_supported: whether the supervisor takes sockets that do not listen yet.
    """

    def __init__(self, pool: PoolConfig | None, is_supported: bool = True) -> None:
        self._pool = pool if pool is not None and pool.dispatch == "kernel" else None
        self._is_supported = is_supported
        self._count = 0  # of all sockets

    def multiply(
        self, listener: ListenerConfig, address: Address, found: list[Bound], held: Mapping[str, ListeningSocket]
    ) -> list[Bound]:
        """Add the other sockets of an address.

        :param found: the first one; or those of systemd.
        :param held: the sockets that the supervisor holds, by key.
        """
        group = [*found, *self._standing(listener, found[0], held)]
        self._count += len(group)
        if self._pool is None or not listener.name:  # that is the control socket
            return group
        why = why_dispatched(listener, address) or ("" if self._is_supported else OLD_SUPERVISOR)
        if not why:
            wanted = sockets_of(self._pool, listener, address)
            try:
                group += self._more(listener, group, wanted - len(group))
            except OSError as error:
                why = f"it can't be bound several times: {error.strerror}"
                log.warning("%s: the dispatcher accepts on %s: %s", listener.name, group[0], why, extra={"reason": why})
        if why:
            return [msgspec.structs.replace(one, why_dispatched=why) for one in group]
        return [msgspec.structs.replace(one, share=number) for number, one in enumerate(group)]

    def _standing(self, listener: ListenerConfig, first: Bound, held: Mapping[str, ListeningSocket]) -> list[Bound]:
        """Find the further sockets that the supervisor holds."""
        standing: list[Bound] = []
        while (one := held.get(share_key(first.held.key, len(standing) + 1))) is not None:
            apply_options(one.socket, listener)
            if one.listens:
                one.socket.listen(listener.backlog)
            standing.append(Bound(listener.name, one, False))
        return standing

    def _more(self, listener: ListenerConfig, group: list[Bound], count: int) -> list[Bound]:
        """Bind further sockets.

        :raises OSError: it can't be done; then there is none.
        """
        if count <= 0:
            return []
        if self._count + count > MOST_SOCKETS:
            raise OSError(0, f"there would be more than {MOST_SOCKETS} sockets")
        first = group[0]
        first.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        more: list[Bound] = []
        try:
            for number in range(len(group), len(group) + count):
                key = share_key(first.held.key, number)
                held = ListeningSocket(key, _beside(first.socket, listener), listens=False)
                more.append(Bound(listener.name, held, True))
        except OSError:
            for one in more:
                one.socket.close()
            raise
        self._count += count
        return more


NO_SHARES: Final = Shares(None)


def _beside(first: socket.socket, listener: ListenerConfig) -> socket.socket:
    """Bind another socket to the address of the first one."""
    sock = socket.socket(first.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if first.family == socket.AF_INET6:
            only = first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        apply_options(sock, listener)
        sock.bind(first.getsockname())
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
