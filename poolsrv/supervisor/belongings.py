"""What the server has, whichever pool serves: listening sockets, the pid file, the log. A pool tells what it needs of
them, once, and gets it; it takes them over when it serves."""

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


class Belongings:
    """Those of the pool that serves, and what the service manager has opened, always.

    :param level: the least that is logged, where the command line says so.
    :param given: the sockets of the service manager, by key.
    """

    def __init__(self, level: str | None, given: Mapping[str, ListeningSocket]) -> None:
        self._level = level
        self._given = given
        self._held = dict(self._given)
        self._pidfile: PidFile | None = None

    @property
    def sockets(self) -> list[ListeningSocket]:
        """That stand."""
        return list(self._held.values())

    def bound(self, pool: PoolProcess, message: Message) -> None:
        """It has bound sockets.

        :raises BadMessage: what has come is not that.
        """
        new = {held.key: held for held in received_sockets(message)}
        is_right = len(new) == len(message.fds) and not new.keys() & pool.new.keys()
        if not is_right or len(new) + len(pool.new) > MOST_SOCKETS:
            for held in new.values():
                held.socket.close()
            raise BadMessage("sockets twice, or too many")
        pool.new.update(new)

    def grant(self, pool: PoolProcess, fields: dict[str, Any]) -> bool:
        """It needs these; whether it may have them. If not, ``pool.errors`` has the reason.

        :raises BadMessage: it names a socket that nobody has.
        """
        for key in fields["keys"]:
            held = pool.new.get(key) or self._held.get(key)
            if held is None:
                raise BadMessage(f"'configured' with a socket {key[:100]!r} that nobody has")
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

    def take_over(self, pool: PoolProcess) -> None:
        """It serves: what it does not use is given up."""
        for key, held in self._held.items():
            if key not in self._given and pool.sockets.get(key) is not held:
                give_up(held, unlink=key not in pool.sockets)
        for key, held in pool.new.items():
            if pool.sockets.get(key) is not held:
                give_up(held)
        self._held = {**self._given, **pool.sockets}
        pool.new.clear()
        if self._pidfile is not None and self._pidfile is not pool.pidfile:
            self._pidfile.remove()
        self._pidfile = pool.pidfile
        try:
            logs.set_up(self._level or pool.log["level"], pool.log["format"], pool.log["file"], pool.log["owner"])
        except OSError as error:
            log.error("can't open the log %s: %s", pool.log["file"], error.strerror)

    def reclaim(self, pool: PoolProcess) -> None:
        """It has ended, and never served."""
        for held in pool.new.values():
            give_up(held)
        pool.new.clear()
        if pool.pidfile is not None and pool.pidfile is not self._pidfile:
            pool.pidfile.remove()

    def give_up_sockets(self) -> None:
        """All of them: the server stops."""
        for held in self._held.values():
            give_up(held)
        self._held.clear()

    def give_up(self) -> None:
        """All there is, at the end."""
        self.give_up_sockets()
        if self._pidfile is not None:
            self._pidfile.remove()
