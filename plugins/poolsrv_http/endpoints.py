"""The two ends of a connection, as its protocol sees them."""

from __future__ import annotations

import sys

import msgspec

from poolsrv import Connection

__all__ = ["Endpoints", "endpoints_of"]

_ENCODING = sys.getfilesystemencoding()


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """The two ends of a connection.

    :ivar remote_address: numeric address of the client, without brackets; "" for a unix socket.
    :ivar remote_port: 0 for a unix socket.
    :ivar local_address: numeric address that the client connected to; the path for a unix socket.
    :ivar local_port: 0 for a unix socket.
    :ivar tls: whether the connection to the client is encrypted (HTTPS=on).
    :ivar server_port: the port that the client knows, as a proxy says; 0: `local_port`.
    """

    remote_address: str
    remote_port: int
    local_address: str
    local_port: int
    tls: bool = False
    server_port: int = 0

    @classmethod
    def from_sockets(cls, peer: object, local: object, tls: bool = False) -> Endpoints:
        """From addresses as `socket.getpeername` and `getsockname` give them: tuples, or a path for unix sockets.

        An IPv4 client of an IPv6 socket (::ffff:192.0.2.1, RFC 4291 section 2.5.5.2) is shown as the IPv4 one it is.
        """
        remote_address, remote_port = _address_and_port(peer)
        local_address, local_port = _address_and_port(local)
        if not isinstance(peer, tuple):
            remote_address = ""
        return cls(
            remote_address=remote_address,
            remote_port=remote_port,
            local_address=local_address,
            local_port=local_port,
            tls=tls,
        )


def _address_and_port(address: object) -> tuple[str, int]:
    if isinstance(address, tuple):
        host = str(address[0])
        if host.startswith("::ffff:") and "." in host:
            host = host[7:]
        return host, int(address[1])
    if isinstance(address, bytes):
        address = address.decode(_ENCODING, "surrogateescape")
    return str(address or ""), 0


def endpoints_of(conn: Connection) -> Endpoints:
    """Both ends of a connection, as the environment wants them."""
    remote, remote_port = conn.peer
    local, local_port = conn.local
    return Endpoints(
        remote_address="" if remote.startswith("unix:") else remote,
        remote_port=remote_port,
        local_address=local.removeprefix("unix:"),
        local_port=local_port,
        tls=conn.tls is not None,
    )
