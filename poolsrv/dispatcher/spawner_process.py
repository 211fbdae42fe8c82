"""The spawner, as the dispatcher sees it: started before this process drops privileges, and ended with the pool."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import msgspec

from ..config import program_users
from ..config.model import Config
from ..core import capabilities, logs
from ..core.event_loop import HANGUP, READ, EventLoop
from ..core.interpreter_command import command_for
from ..core.procfs import children_of
from ..errors import StartError
from ..ipc.pool_link import BadMessage, PoolLink
from ..worker.launched_programs import LaunchedPrograms
from ..worker.spec import ServerSpec

ROOM = 65536  # bytes that wait for the spawner, at most, if it is told of a log file
NEEDED = {"SETUID": capabilities.SETUID, "SETGID": capabilities.SETGID, "KILL": capabilities.KILL}
END = 4.0  # seconds that it has to end, with all launchers
_START = "from poolsrv.spawner.process import main; main()"
# What a Python needs to find its modules. Nothing else of the environment is the spawner's business.
VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE")


class Launcher(NamedTuple):
    """A launcher: its pid, that of its worker, and whose programs it starts."""

    pid: int
    worker: int
    listener: str


class SpawnerProcess:
    """Starts it.

    :ivar pid: 0 once it has been reaped.
    :ivar user_names: of the programs of each listener.
    :raises StartError: it can't be started.
    """

    def __init__(self, config: Config, level: str | None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.link = PoolLink(ours)
        self._users = program_users.users(config)
        self.user_names = {name: program_users.name_of(uid) for name, (uid, _, _) in self._users.items()}
        self._launchers: dict[int, Launcher] = {}
        settings = config.log.settings(config.pool.identity)
        try:
            theirs.set_inheritable(True)
            self.pid = os.posix_spawn(sys.executable, command_for(_START, theirs.fileno()), _environment())
            self.link.send(
                "table",
                users=self._users,
                pool_user=program_users.pool_user(config)[0],
                no_new_privs=config.pool.no_new_privs,
                log=settings | ({"level": level} if level else {}),
            )
        except OSError as error:
            raise StartError(f"can't start the spawner: {error.strerror}") from None
        finally:
            theirs.close()

    def watch(self, loop: EventLoop, gone: Callable[[], object]) -> None:
        """Call ``gone()`` if it ends before it is told to."""

        def on_event(mask: int) -> None:
            if mask & HANGUP:
                loop.unregister(self.link.fileno())
                gone()
            elif mask & READ:
                self._receive()

        loop.register(self.link.fileno(), READ, on_event)
        process = os.getpid()
        # Not in the workers, which are forked from this process.
        logs.followers.append(lambda fd: self._pass_log(fd) if os.getpid() == process else None)

    def _pass_log(self, fd: int) -> None:
        """Have it write to the log file that this process has opened again; unless it does not listen."""
        if self.link.unread() < ROOM:
            self.link.send("log", [fd])

    def launchers(self) -> list[Launcher]:
        """Those that run, as far as the spawner has told of them; by listener.

        :raises OSError: no descriptor is left to look with.
        """
        running = children_of(self.pid)
        self._launchers = {pid: one for pid, one in self._launchers.items() if pid in running}
        return sorted(self._launchers.values(), key=lambda one: (one.listener, one.pid))

    def _receive(self) -> None:
        """Be told of a launcher. Only the spawner can send here."""
        try:
            message = self.link.receive(wait=False)  # a worker could have taken it: it has the same socket
        except (EOFError, BadMessage, OSError):
            return  # the hangup follows
        if message is None or message.kind != "launcher":
            return
        message.close()
        told = Launcher(message.fields["pid"], message.fields["worker"], message.fields["listener"])
        with suppress(OSError):
            self.launchers()  # forget those that have ended
        self._launchers[told.pid] = told

    def launch_for(self, server: ServerSpec) -> ServerSpec:
        """Have the workers start the programs of its listeners by launchers."""
        return msgspec.structs.replace(
            server,
            listeners=tuple(
                msgspec.structs.replace(
                    listener, launch=partial(LaunchedPrograms, spawner=self.link, listener=listener.config.name)
                )
                if listener.config.name in self._users
                else listener
                for listener in server.listeners
            ),
        )

    def end(self, loop: EventLoop, reap: Callable[[], object]) -> None:
        """End it, after the workers, and wait for that.

        :param reap: reaps children of this process.
        """
        self.link.close()
        deadline = loop.now + END
        while os.path.exists(f"/proc/{self.pid}") and loop.now < deadline:
            loop.turn(0.02)
            reap()


def start(config: Config, level: str | None) -> SpawnerProcess | None:
    """Start the spawner, if launchers have to start programs.

    :raises StartError: it can't be started.
    """
    if not program_users.users(config):
        return None
    had = capabilities.permitted()
    missing = [f"CAP_{name}" for name, number in NEEDED.items() if os.geteuid() == 0 and not had & 1 << number]
    if missing:
        raise StartError(
            f"this machine, or the service manager, gives root no {' and no '.join(missing)}:"
            " programs with a user or a /tmp of their own take CAP_SETUID, CAP_SETGID and CAP_KILL"
        )
    return SpawnerProcess(config, level)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name in VARIABLES or name.startswith("PYTHON")}
