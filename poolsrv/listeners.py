"""The listening sockets: bind them, say where they really are, and leave no socket file behind."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat

import msgspec

from .addresses import Address
from .config import ListenerConfig
from .errors import StartError

log = logging.getLogger("poolsrv.listeners")

BACKLOG = 4096  # connections that the kernel keeps until they are accepted; net.core.somaxconn caps it


class Bound(msgspec.Struct, frozen=True):
    """One bound, listening, non-blocking socket."""

    listener: str
    address: Address
    socket: socket.socket
    inode: tuple[int, int] | None  # of a unix socket's file: device and number

    def __str__(self) -> str:
        """Where it really listens; with port 0, the port that the kernel has chosen."""
        name = self.socket.getsockname()
        if self.address.family == socket.AF_UNIX:
            return f"unix:{os.fsdecode(name)}"
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self, unlink: bool) -> None:
        """Stop listening; ``unlink`` removes a unix socket's file, if it still is this one's."""
        self.socket.close()
        if unlink and self.inode is not None and _inode(self.address.path) == self.inode:
            try:
                os.unlink(self.address.path)
            except OSError as error:
                log.warning("can't remove %s: %s", self.address.path, error.strerror)


def bind(listeners: tuple[ListenerConfig, ...]) -> list[list[Bound]]:
    """Bind every address of every listener.

    :returns: for each listener its sockets.
    :raises StartError: some can't be bound; it names them all, and those that could be are closed again.
    """
    bound: list[list[Bound]] = []
    problems: list[str] = []
    for listener in listeners:
        bound.append([])
        for address in listener.bind:
            try:
                bound[-1].append(_bind_one(listener, address))
            except OSError as error:
                problems.append(f"listeners.{listener.name}: can't listen on {address}: {_reason(error, address)}")
    if problems:
        for group in bound:
            for one in group:
                one.close(unlink=True)
        raise StartError("\n".join(problems))
    return bound


def _bind_one(listener: ListenerConfig, address: Address) -> Bound:
    if address.family == socket.AF_UNIX:
        return _bind_unix(listener, address)
    try:
        sock = _bind_inet(address, address.family)
    except OSError as error:
        # ":7007" on a machine without IPv6 means every IPv4 address.
        if not address.dual or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        sock = _bind_inet(address, socket.AF_INET)
    return Bound(listener.name, address, sock, None)


def _bind_inet(address: Address, family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Lets a restarted server bind while old connections are in TIME_WAIT (socket(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.dual else 1)
        sock.bind(address.sockaddr if family == address.family else ("", address.port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _bind_unix(listener: ListenerConfig, address: Address) -> Bound:
    _remove_stale(address.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Until the mode is set nobody else may connect.
    former = os.umask(0o177) if listener.socket_mode is not None else None
    inode = None
    try:
        sock.bind(address.path)
        inode = _inode(address.path)
        if listener.socket_mode is not None:
            os.chmod(address.path, listener.socket_mode)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        if inode is not None:
            os.unlink(address.path)
        raise
    finally:
        if former is not None:
            os.umask(former)
    sock.setblocking(False)
    return Bound(listener.name, address, sock, inode)


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on any more.

    :raises OSError: somebody does, or it is no socket.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file of that name, and it is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        log.info("replacing the stale socket file %s", path)
        os.unlink(path)
    elif code == errno.EACCES:
        raise PermissionError(errno.EACCES, "there is another user's socket, which this one may not connect to")
    else:
        raise OSError(errno.EADDRINUSE, "another process listens there")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _reason(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE and address.family != socket.AF_UNIX:
        return "another process listens there"
    if error.errno == errno.EACCES and address.family != socket.AF_UNIX and address.port < 1024:
        return f"permission denied: ports below 1024 need root or CAP_NET_BIND_SERVICE, and this is {address.port}"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno == errno.ENOENT and address.family == socket.AF_UNIX:
        return f"there is no directory {os.path.dirname(address.path)}"
    return error.strerror or str(error)
