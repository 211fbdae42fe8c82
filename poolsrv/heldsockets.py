"""The listening sockets that the supervisor keeps: those from the service manager, and how one is given up."""

from __future__ import annotations

import logging

from .handshake import Held
from .safenames import Folder, Socket
from .sdnotify import take_sockets

log = logging.getLogger("poolsrv.supervisor")


def given_sockets() -> dict[str, Held]:
    """What the service manager has opened, by key.

    :raises ValueError: as ``take_sockets``.
    """
    numbers: dict[str, int] = {}
    given = {}
    for name, sock in take_sockets():
        numbers[name] = numbers.get(name, -1) + 1
        key = f"systemd:{name}#{numbers[name]}"
        given[key] = Held(key, sock)
    return given


def give_up(held: Held, unlink: bool = True) -> None:
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
