"""Binds the listening sockets that the supervisor does not hold yet, and tells the real addresses.

Sockets outlive a pool: the supervisor holds them, and a later pool finds each by its key. The key is the address as the
config writes it. If the kernel is to choose the port, the listener's name and the address's place belong to the key, so
that a reload keeps the port.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from ..config.model import ListenerConfig
from ..core.listening_sockets import ListeningSocket, give_up
from ..core.safe_names import Folder, Inode, Socket, inode_of
from ..core.words import one_of
from ..errors import StartError
from ..net.addresses import Address
from .bound import Bound, apply_options
from .shares import NO_SHARES, Shares, share_key

log = logging.getLogger("poolsrv.listeners")


Owner = tuple[int, int]  # user and group; -1: unchanged, chown(2)
UNCHANGED: Owner = (-1, -1)
_CONTROL_FOLDER_MODE = 0o700
_CONTROL = ""  # no listener can have this name


def control_listener(path: Path) -> ListenerConfig:
    """Describe the control socket as ``bind`` takes it; its mode is 0600."""
    return ListenerConfig(_CONTROL, (Address(socket.AF_UNIX, path=os.fspath(path)),), handler="", socket_mode=0o600)


def bind(
    listeners: tuple[ListenerConfig, ...],
    held: Mapping[str, ListeningSocket],
    owner: Owner = UNCHANGED,
    shares: Shares = NO_SHARES,
) -> list[list[Bound]]:
    """Find or bind a socket for every address of every listener.

    :param held: the sockets that the supervisor holds, by key.
    :param owner: the user and group that get the files of unix sockets.
    :param shares: how many sockets each address is to have.
    :returns: the sockets of each listener.
    :raises StartError: some can't be bound. It names them all; the new ones that could be are closed again.
    """
    bound: list[list[Bound]] = []
    problems: list[str] = []
    for listener in listeners:
        bound.append([])
        for index, address in enumerate(listener.bind):
            try:
                bound[-1] += shares.multiply(listener, address, _bind_one(listener, address, index, held, owner), held)
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
    if share_key(key, 1) not in held:  # or the kernel would no longer spread connections over these
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
        # Without IPv6 on the machine, ":7007" means every IPv4 address.
        if not address.dual or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bind_inet(listener, address, socket.AF_INET)


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
    """Use the held socket, or bind a new one if its file is gone."""
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
    """Open a held socket's file; None if it is gone, or if another file has its name."""
    found = folder.stat()
    if found is None or inode_of(found) != held.inode:
        return None
    file = Socket(folder)
    if inode_of(file.status) == held.inode:
        return file
    file.close()
    return None


def _bind_new_unix(listener: ListenerConfig, folder: Folder, owner: Owner) -> tuple[socket.socket, Inode]:
    """Bind a socket whose file has its owner and mode before any client can connect."""
    mode = listener.socket_mode
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The file is created with its mode, so nothing has to be changed by name.
    previous = os.umask(0o777 & ~mode) if mode is not None else None
    try:
        sock.bind(folder.address)
    except OSError:
        sock.close()
        raise
    finally:
        if previous is not None:
            os.umask(previous)
    inode: Inode | None = None
    try:
        with Socket(folder) as file:
            if file.status.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "another process has put a file in the place of the new socket")
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
    """Remove a socket file that no process listens on.

    :raises OSError: a process does, the file is no socket, or another user may have put it there.
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
