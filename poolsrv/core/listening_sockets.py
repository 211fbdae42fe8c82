"""Listening sockets, which outlive a pool: those of the service manager, and how one is given up."""

from __future__ import annotations

import logging
import socket

from .safe_names import Folder, Socket
from .systemd import take_sockets


class ListeningSocket:
    """A listening socket that the supervisor keeps.

    :ivar key: by which a pool asks for it, the same in every pool: see dispatcher/bind.py.
    :ivar path: the path of a unix socket, or else empty.
    :ivar inode: device and number of that path's file, so that no other file is ever removed.
    :ivar listens: False: it was bound, and listens since its pool serves.
    """

    __slots__ = ("inode", "key", "listens", "path", "socket")

    def __init__(
        self,
        key: str,
        sock: socket.socket,
        path: str = "",
        inode: tuple[int, int] | None = None,
        listens: bool = True,
    ) -> None:
        self.key = key
        self.socket = sock
        self.path = path
        self.inode = inode
        self.listens = listens


log = logging.getLogger("poolsrv.supervisor")


def given_sockets() -> dict[str, ListeningSocket]:
    """Take over the sockets that the service manager has opened, by key (socket activation).

    :raises ValueError: as ``take_sockets``.
    """
    numbers: dict[str, int] = {}
    given = {}
    for name, sock in take_sockets():
        numbers[name] = numbers.get(name, -1) + 1
        key = f"systemd:{name}#{numbers[name]}"
        given[key] = ListeningSocket(key, sock)
    return given


def give_up(held: ListeningSocket, unlink: bool = True) -> None:
    """Close a listening socket, and remove the file of a unix socket, if it still is its own."""
    held.socket.close()
    if unlink and held.inode is not None:
        try:
            with Folder(held.path) as folder, Socket(folder):  # of all files only sockets are ever removed
                folder.unlink(held.inode)
        except (FileNotFoundError, FileExistsError):
            pass
        except OSError as error:
            log.warning("can't remove %s: %s", held.path, error.strerror)
