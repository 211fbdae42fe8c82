"""What outlives pools, and so reloads: the listening sockets, the pid file, the log.

A pool says once what it needs of them, and is granted it. They pass to the pool when it begins to serve.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..core import logs
from ..core.listening_sockets import ListeningSocket, give_up
from ..core.pid_file import PidFile, PidFileTaken
from ..ipc.pool_link import BadMessage, Message, received_sockets
from ..ipc.pool_protocol import MOST_SOCKETS
from .pool import PoolProcess

log = logging.getLogger("poolsrv.supervisor")


class KeptResources:
    """The resources of the pool that serves, and the sockets of the service manager, which are never given up.

    :param level: the lowest level to log, if the command line says so.
    :param given: the sockets of the service manager, by key.
    """

    def __init__(self, level: str | None, given: Mapping[str, ListeningSocket]) -> None:
        self._level = level
        self._given = given
        self._sockets = dict(given)
        self._pidfile: PidFile | None = None

    @property
    def sockets(self) -> list[ListeningSocket]:
        """The listening sockets that a new pool is offered."""
        return list(self._sockets.values())

    def add_bound(self, pool: PoolProcess, message: Message) -> None:
        """Take the sockets that a pool has bound.

        :raises BadMessage: the message does not have the form that it should have.
        """
        new = {held.key: held for held in received_sockets(message)}
        is_right = len(new) == len(message.fds) and not new.keys() & pool.new.keys()
        if not is_right or len(new) + len(pool.new) > MOST_SOCKETS:
            for held in new.values():
                held.socket.close()
            raise BadMessage("sockets twice, or too many")
        pool.new.update(new)

    def grant(self, pool: PoolProcess, fields: dict[str, Any]) -> bool:
        """Grant a pool what it needs, or note in ``pool.errors`` why it can't have it.

        :raises BadMessage: it names a socket that does not exist.
        """
        for key in fields["keys"]:
            held = pool.new.get(key) or self._sockets.get(key)
            if held is None:
                raise BadMessage(f"'configured' with a socket {key[:100]!r} that does not exist")
            pool.sockets[key] = held
        pool.log = fields["log"]
        path = fields["pidfile"]
        if self._pidfile is not None and self._pidfile.path == path:
            pool.pidfile = self._pidfile
            return True
        try:
            pool.pidfile = PidFile(path) if path is not None else None
        except (PidFileTaken, OSError) as error:
            reason = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
            pool.fail([f"pool.pidfile: {reason}"])
            return False
        return True

    def hand_over(self, pool: PoolProcess) -> list[str]:
        """Pass to the pool that now serves: give up what it does not use, write to its log.

        :returns: the keys of the sockets that are given up.
        """
        gone = []
        for key, held in self._sockets.items():
            if key not in self._given and pool.sockets.get(key) is not held:
                give_up(held, unlink=key not in pool.sockets)
                gone.append(key)
        for key, held in pool.new.items():
            if pool.sockets.get(key) is not held:
                give_up(held)
        self._sockets = {**self._given, **pool.sockets}
        pool.new.clear()
        if self._pidfile is not None and self._pidfile is not pool.pidfile:
            self._pidfile.remove()
        self._pidfile = pool.pidfile
        try:
            logs.set_up(self._level or pool.log["level"], pool.log["format"], pool.log["file"], pool.log["owner"])
        except OSError as error:
            log.error("can't open the log %s: %s", pool.log["file"], error.strerror)
        return gone

    def reclaim(self, pool: PoolProcess) -> None:
        """Give up what was only for a pool that has ended and never served."""
        for held in pool.new.values():
            give_up(held)
        pool.new.clear()
        if pool.pidfile is not None and pool.pidfile is not self._pidfile:
            pool.pidfile.remove()

    def close_sockets(self) -> None:
        """Give up all listening sockets: the server stops."""
        for held in self._sockets.values():
            give_up(held)
        self._sockets.clear()

    def close(self) -> None:
        """Give up everything, at the end."""
        self.close_sockets()
        if self._pidfile is not None:
            self._pidfile.remove()
