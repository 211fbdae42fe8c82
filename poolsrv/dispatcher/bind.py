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
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..config.model import ListenerConfig
from ..core.listening_sockets import ListeningSocket, give_up
from ..core.safe_names import Folder, Inode, Socket, inode_of
from ..core.words import one_of
from ..errors import StartError
from ..net.addresses import Address

log = logging.getLogger("poolsrv.listeners")

KEEPALIVE_PROBES = 3  # without an answer, before a peer is taken for gone


Owner = tuple[int, int]  # user and group; -1 leaves it, chown(2)
NOBODY_ELSE: Owner = (-1, -1)
_CONTROL_FOLDER_MODE = 0o700
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
    held: ListeningSocket
    is_new: bool

    @property
    def socket(self) -> socket.socket:
        """The socket itself."""
        return self.held.socket

    def __str__(self) -> str:
        """Where it really listens; with port 0, the port that the kernel has chosen."""
        if self.socket.family == socket.AF_UNIX:
            return f"unix:{self.held.path or os.fsdecode(self.socket.getsockname())}"
        host, port = self.socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(
    listeners: tuple[ListenerConfig, ...], held: Mapping[str, ListeningSocket], owner: Owner = NOBODY_ELSE
) -> list[list[Bound]]:
    """Have a socket for every address of every listener: one that stands, or else a new one.

    :param held: those that stand, by key.
    :param owner: to whom root gives the files of unix sockets.
    :returns: for each listener its sockets.
    :raises StartError: some can't be bound; it names them all, and those that could be are closed again.
    """
    bound: list[list[Bound]] = []
    problems: list[str] = []
    for listener in listeners:
        bound.append([])
        for index, address in enumerate(listener.bind):
            try:
                bound[-1] += _bind_one(listener, address, index, held, owner)
            except OSError as error:
                key = "pool.control" if listener.name == _CONTROL else f"listeners.{listener.name}"
                problems.append(f"{key}: can't listen on {address}: {_reason(error, address)}")
    if problems:
        for one in (one for group in bound for one in group if one.is_new):
            give_up(one.held)
        raise StartError("\n".join(problems))
    return bound


def _bind_one(
    listener: ListenerConfig, address: Address, index: int, held: Mapping[str, ListeningSocket], owner: Owner
) -> list[Bound]:
    if address.systemd:
        given = [one for key, one in held.items() if key.rpartition("#")[0] == str(address)]
        if not given:
            raise FileNotFoundError(errno.ENOENT, _no_given_socket(held))
        for one in given:
            apply_options(one.socket, listener)
        return [Bound(listener.name, one, False) for one in given]
    key = f"{listener.name} {address} {index}" if address.has_any_port else str(address)
    standing = held.get(key)
    if address.path:
        return [_bind_unix(listener, address.path, key, standing, owner)]
    if standing is None:
        return [Bound(listener.name, ListeningSocket(key, _bind_new(listener, address)), True)]
    apply_options(standing.socket, listener)
    standing.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, listener.reuse_port)
    standing.socket.listen(listener.backlog)
    return [Bound(listener.name, standing, False)]


def _no_given_socket(held: Mapping[str, ListeningSocket]) -> str:
    names = sorted({key.rpartition("#")[0] for key in held if key.startswith("systemd:")})
    if not names:
        return "the service manager has passed no sockets: is there a .socket unit?"
    return f"the service manager has passed no socket of this name, but {one_of(names)}"


def _bind_new(listener: ListenerConfig, address: Address) -> socket.socket:
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


def _bind_unix(listener: ListenerConfig, path: str, key: str, standing: ListeningSocket | None, owner: Owner) -> Bound:
    """The socket that stands, unless somebody has removed its file, or a new one."""
    make = _CONTROL_FOLDER_MODE if listener.name == _CONTROL else None
    with Folder(path, make) as folder:
        if standing is not None and (file := _file_of(folder, standing)) is not None:
            with file:
                file.give(*owner, listener.socket_mode)
            standing.socket.listen(listener.backlog)
            return Bound(listener.name, standing, False)
        _remove_stale(folder, owner)
        sock, inode = _bind_new_unix(listener, folder, owner)
    return Bound(listener.name, ListeningSocket(key, sock, path, inode), True)


def _file_of(folder: Folder, held: ListeningSocket) -> Socket | None:
    """The file of a socket that stands; None where that is gone, or the name is another file's."""
    found = folder.stat()
    if found is None or inode_of(found) != held.inode:
        return None
    file = Socket(folder)
    if inode_of(file.status) == held.inode:
        return file
    file.close()
    return None


def _bind_new_unix(listener: ListenerConfig, folder: Folder, owner: Owner) -> tuple[socket.socket, Inode]:
    """A new socket, whose file has owner and mode before anybody can connect."""
    mode = listener.socket_mode
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The file is made with its mode: there is nothing to be changed by name.
    former = os.umask(0o777 & ~mode) if mode is not None else None
    try:
        sock.bind(folder.address)
    except OSError:
        sock.close()
        raise
    finally:
        if former is not None:
            os.umask(former)
    inode: Inode | None = None
    try:
        with Socket(folder) as file:
            if file.status.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "somebody has put another file in the place of the new socket")
            inode = inode_of(file.status)
            file.give(*owner, mode)
        sock.listen(listener.backlog)
    except OSError:
        sock.close()
        if inode is not None:
            folder.unlink(inode)
        raise
    sock.setblocking(False)
    return sock, inode


def _remove_stale(folder: Folder, owner: Owner) -> None:
    """Remove a socket file that nobody listens on any more.

    :raises OSError: somebody does, it is no socket, or somebody else may have put it there.
    """
    if folder.stat() is None:
        return
    with Socket(folder) as file, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(file.address)
        uid = file.status.st_uid
        if code == errno.EACCES:
            raise PermissionError(errno.EACCES, "there is another user's socket, which this one may not connect to")
        if code != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another process listens there")
        if folder.shared and uid not in (os.geteuid(), owner[0]):
            raise PermissionError(
                errno.EPERM, f"there is a socket of user {uid}, in a directory where others may write"
            )
        log.info("replacing the stale socket file %s", folder.path)
        folder.unlink(inode_of(file.status))


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
