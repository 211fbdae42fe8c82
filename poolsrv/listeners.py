"""The listening sockets: bind those that do not stand yet, and say where they really are.

Sockets outlive a pool: the supervisor keeps them, and each has a key by which a later pool finds it again. That is the
address as the config writes it; where the kernel is to choose a port it is the listener's name and place too, so that
a reload does not choose another one.

Connections have the options of the listening TCP socket that they were accepted from: on Linux they are copies of it.
So options cost nothing per connection.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from .addresses import Address
from .config import ListenerConfig
from .errors import StartError
from .handshake import Held
from .heldsockets import give_up
from .problems import one_of

log = logging.getLogger("poolsrv.listeners")

KEEPALIVE_PROBES = 3  # without an answer, before a peer is taken for gone


# No listener can have this name.
_CONTROL = ""


def control_listener(path: Path) -> ListenerConfig:
    """The control socket, in the form that ``bind`` takes: for its owner alone."""
    return ListenerConfig(_CONTROL, (Address(socket.AF_UNIX, path=os.fspath(path)),), handler="", socket_mode=0o600)


class Bound(msgspec.Struct, frozen=True):
    """One bound, listening, non-blocking socket.

    :ivar held: the socket, as the supervisor keeps it.
    :ivar is_new: it was bound by this pool; the others stood before.
    """

    listener: str
    held: Held
    is_new: bool

    @property
    def socket(self) -> socket.socket:
        """The socket itself."""
        return self.held.socket

    def __str__(self) -> str:
        """Where it really listens; with port 0, the port that the kernel has chosen."""
        name = self.socket.getsockname()
        if self.socket.family == socket.AF_UNIX:
            return f"unix:{os.fsdecode(name)}"
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(listeners: tuple[ListenerConfig, ...], held: Mapping[str, Held]) -> list[list[Bound]]:
    """Have a socket for every address of every listener: one that stands, or else a new one.

    :param held: those that stand, by key.
    :returns: for each listener its sockets.
    :raises StartError: some can't be bound; it names them all, and those that could be are closed again.
    """
    bound: list[list[Bound]] = []
    problems: list[str] = []
    for listener in listeners:
        bound.append([])
        for index, address in enumerate(listener.bind):
            try:
                if listener.name == _CONTROL:
                    os.makedirs(os.path.dirname(address.path), mode=0o700, exist_ok=True)
                bound[-1] += _bind_one(listener, address, index, held)
            except OSError as error:
                key = "pool.control" if listener.name == _CONTROL else f"listeners.{listener.name}"
                problems.append(f"{key}: can't listen on {address}: {_reason(error, address)}")
    if problems:
        for one in (one for group in bound for one in group if one.is_new):
            give_up(one.held)
        raise StartError("\n".join(problems))
    return bound


def _bind_one(listener: ListenerConfig, address: Address, index: int, held: Mapping[str, Held]) -> list[Bound]:
    if address.systemd:
        given = [one for key, one in held.items() if key.rpartition("#")[0] == str(address)]
        if not given:
            raise FileNotFoundError(errno.ENOENT, _no_given_socket(held))
        for one in given:
            apply_options(one.socket, listener)
        return [Bound(listener.name, one, False) for one in given]
    key = f"{listener.name} {address} {index}" if address.has_any_port else str(address)
    standing = held.get(key)
    if standing is not None and standing.inode is not None and _inode(address.path) != standing.inode:
        standing = None  # somebody has removed its file
    if standing is None:
        sock = _bind_new(listener, address)
        return [Bound(listener.name, Held(key, sock, address.path, _inode(address.path)), True)]
    if address.path and listener.socket_mode is not None:
        os.chmod(address.path, listener.socket_mode)
    apply_options(standing.socket, listener)
    if standing.socket.family != socket.AF_UNIX:
        standing.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, listener.reuse_port)
    standing.socket.listen(listener.backlog)
    return [Bound(listener.name, standing, False)]


def _no_given_socket(held: Mapping[str, Held]) -> str:
    names = sorted({key.rpartition("#")[0] for key in held if key.startswith("systemd:")})
    if not names:
        return "the service manager has passed no sockets: is there a .socket unit?"
    return f"the service manager has passed no socket of this name, but {one_of(names)}"


def _bind_new(listener: ListenerConfig, address: Address) -> socket.socket:
    if address.family == socket.AF_UNIX:
        return _bind_unix(listener, address)
    try:
        return _bind_inet(listener, address, address.family)
    except OSError as error:
        # ":7007" on a machine without IPv6 means every IPv4 address.
        if not address.dual or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bind_inet(listener, address, socket.AF_INET)


def apply_options(sock: socket.socket, listener: ListenerConfig) -> None:
    """Set the listener's options of TCP, those that are at their defaults too, on a socket that stands or is new."""
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


def _bind_inet(listener: ListenerConfig, address: Address, family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Lets a restarted server bind while old connections are in TIME_WAIT (socket(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.dual else 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, listener.reuse_port)
        apply_options(sock, listener)
        sock.bind(address.sockaddr if family == address.family else ("", address.port))
        sock.listen(listener.backlog)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _bind_unix(listener: ListenerConfig, address: Address) -> socket.socket:
    _remove_stale(address.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Until the mode is set nobody else may connect.
    former = os.umask(0o177) if listener.socket_mode is not None else None
    bound = False
    try:
        sock.bind(address.path)
        bound = True
        if listener.socket_mode is not None:
            os.chmod(address.path, listener.socket_mode)
        sock.listen(listener.backlog)
    except OSError:
        sock.close()
        if bound:
            os.unlink(address.path)
        raise
    finally:
        if former is not None:
            os.umask(former)
    sock.setblocking(False)
    return sock


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
    if not path:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _reason(error: OSError, address: Address) -> str:
    if address.systemd:
        return error.strerror or str(error)
    if error.errno == errno.EADDRINUSE and address.family != socket.AF_UNIX:
        return "another process listens there"
    if error.errno == errno.EACCES and address.family != socket.AF_UNIX and address.port < 1024:
        return f"permission denied: ports below 1024 need root or CAP_NET_BIND_SERVICE, and this is {address.port}"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno == errno.ENOENT and address.family == socket.AF_UNIX:
        return f"there is no directory {os.path.dirname(address.path)}"
    return error.strerror or str(error)
