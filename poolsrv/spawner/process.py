"""The spawner: a small process that may become other users, so that programs can run as users of their own.

Theory. The pool drops its privileges for good, so it can't start a program as another user. What can has to be a
process apart, and little: the dispatcher starts the spawner while it still is root, before any plugin is imported, and
tells it which listener's programs run as which user, as root has read that in the config. From then on the pool can ask
for one thing only: a launcher for a listener, by its name. (It can also pass on the log file that it has opened again,
which the spawner has no right to.) A *launcher* is forked, becomes that listener's user for good, without any
capability, and starts programs for one worker, over a socket that the worker has passed on (launcher.py). So no request
of a worker is ever read by a privileged process, and a fault in reading one has that user's rights alone.

The spawner keeps three capabilities: to change user and groups, and to kill what launchers leave behind. It has none at
all if its launchers only have the pool's own user, since they are there for a /tmp of each program. It reads no file
and executes nothing. A launcher ends with its worker; the spawner makes sure of that. It ends with the pool.

A launcher's programs have its user, so they can stop it by a signal, and its worker waits for its answers: while one
listener's program did that, the worker would serve no listener. So a launcher that has been stopped is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from ..core import logs, processes, sessions
from ..core.capabilities import KILL, SETGID, SETUID, gain_no_more, keep_only, set_capabilities
from ..core.dumpable import set_dumpable
from ..core.event_loop import READ, EventLoop
from ..core.titles import set_title
from ..ipc.pool_link import BadMessage, Message, PoolLink
from .launcher import Launcher

log = logging.getLogger("poolsrv.spawner")

WORKER_GONE = 5.0  # seconds that a launcher has to end after its worker
LAUNCHERS = 8192  # at most
END = 2.0  # seconds for all to end
NOBODYS_GROUPS = (65534, 65533)  # the first is nogroup, to which no file belongs; the other one for its programs
REFUSED = "the pool has asked for what it can't have"
# And in launchers. A terminal sends TSTP, TTIN and TTOU, which stop: here that is no program's doing.
IGNORED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)


class Spawner:
    """The process.

    :param link: to the pool: the dispatcher and its workers share the other end.
    :param table: the dispatcher's message: of each listener, the user, the group and all groups of its programs; and
        the pool's user.
    """

    def __init__(self, link: PoolLink, table: Mapping[str, Any]) -> None:
        self._link = link
        self._users: dict[str, list[Any]] = table["users"]
        self._pool_user: int = table["pool_user"]
        self._loop = EventLoop()
        self._launchers: dict[int, tuple[int, str]] = {}  # by pid: the worker, and the listener
        self._workers: dict[int, int] = {}  # pidfds, by pid
        self._is_over = False

    def run(self) -> Launcher | None:
        """Run until the pool is gone; in a launcher's process, return the launcher."""
        loop = self._loop
        loop.register(self._link.fileno(), READ, lambda _: None)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        loop.register(reader, READ, lambda _: os.read(reader, 4096))
        while not self._is_over:
            loop.turn()
            self._reap()
            launcher = self._receive()
            if launcher is not None:
                for fd in (reader, writer, *self._workers.values()):
                    os.close(fd)
                return launcher
        processes.kill_until_none(loop, END, self._reap)
        return None

    def _receive(self) -> Launcher | None:
        """Do what the pool asks for; in a forked launcher, return it."""
        while True:
            try:
                message = self._link.receive()
            except EOFError:
                self._is_over = True
                return None
            except BadMessage as error:
                log.error("the pool has sent %s", error)
                continue
            if message is None:
                return None
            launcher = None
            try:
                if message.kind == "log":
                    self._log(message)
                else:
                    launcher = self._launch(message)
            finally:
                message.close()
            if launcher is not None:
                return launcher

    def _log(self, message: Message) -> None:
        """Write to another log file from now on."""
        try:
            if message.sender is None or message.sender.uid != self._pool_user or len(message.fds) != 1:
                raise ValueError
            logs.take_over(message.fds[0])
        except ValueError:
            log.error(REFUSED)

    def _launch(self, message: Message) -> Launcher | None:
        """Fork a launcher. The socket that came with the message is the launcher's way to its worker."""
        name, sender = message.fields.get("listener"), message.sender
        if (
            message.kind != "launch"
            or sender is None
            or sender.uid != self._pool_user
            or not isinstance(name, str)
            or name not in self._users
            or len(message.fds) != 1
        ):
            log.error(REFUSED)
            return None
        for pid, former in self._launchers.items():
            if former == (sender.pid, name):
                os.kill(pid, signal.SIGKILL)  # its worker has given it up; not reaped, so the number is its own
        if len(self._launchers) >= LAUNCHERS or not self._watch(sender.pid):
            return None
        try:
            pid = os.fork()
        except OSError as error:
            log.error("%s: can't fork a launcher: %s", name, error.strerror)
            return None
        if pid:
            self._launchers[pid] = sender.pid, name
            self._tell_of(pid, sender.pid, name)
            return None
        self._loop.close()
        self._link.close()
        sock = socket.socket(fileno=os.dup(message.fds[0]))
        become(*self._users[name])
        logs.set_role("launcher", name)
        set_title(f"launcher {name}")
        return Launcher(sock, sender.pid)

    def _tell_of(self, pid: int, worker: int, listener: str) -> None:
        """Tell the dispatcher of a launcher, for ``poolsrv status``."""
        try:
            self._link.send("launcher", pid=pid, worker=worker, listener=listener)
        except OSError:
            pass  # it does not read now: then this one is not shown

    def _watch(self, worker: int) -> bool:
        """Watch a worker, so that its launchers end with it, even stopped ones; False if it has ended."""
        if worker in self._workers:
            return True
        try:
            pidfd = self._workers[worker] = os.pidfd_open(worker)
        except OSError:
            return False
        self._loop.register(pidfd, READ, lambda _: self._worker_ended(worker))
        return True

    def _worker_ended(self, worker: int) -> None:
        pidfd = self._workers.pop(worker)
        self._loop.unregister(pidfd)
        self._loop.at_end_of_turn(lambda: os.close(pidfd))
        self._loop.call_later(WORKER_GONE, lambda: self._kill_launchers(worker))

    def _kill_launchers(self, worker: int) -> None:
        for pid, (of, _) in self._launchers.items():
            if of == worker and worker not in self._workers:
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Reap what has ended. What launchers have left is killed, and so is a launcher that has been stopped."""
        any_ended = False
        for pid, status in processes.reaped(stopped=True):
            if os.WIFSTOPPED(status):
                if pid in self._launchers:
                    log.error("%s: a launcher has been stopped by a signal: killing it", self._launchers[pid][1])
                    os.kill(pid, signal.SIGKILL)
                continue
            any_ended = True
            self._launchers.pop(pid, None)
        if any_ended:
            processes.kill_children(self._launchers)


def become(uid: int, gid: int, groups: list[int]) -> None:
    """Become a user for good, without capabilities.

    The saved group is another one, where the kernel allows that: so the programs of this user, which have one group
    thrice, can't change the resource limits of this process (prlimit(2)), and so keep it from starting others.

    :raises OSError: the kernel refuses.
    """
    if os.geteuid() == 0:
        sessions.leave()
        os.setgroups(groups)
    try:
        os.setresgid(gid, gid, NOBODYS_GROUPS[gid == NOBODYS_GROUPS[0]])
    except OSError:
        os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    set_capabilities(0)
    set_dumpable(False)  # a change of user resets it
    if os.getresuid() != (uid,) * 3 or os.getresgid()[:2] != (gid, gid):
        os._exit(1)


def _give_up_rights(users: Mapping[str, Any], pool_user: int, no_new_privs: bool, **_: Any) -> None:
    """Keep what it takes to become these users, and no more. Only root can be told to become others than itself.

    :raises OSError: the kernel refuses.
    """
    first, *others = users.values()
    kept = 1 << SETUID | 1 << SETGID | 1 << KILL
    if no_new_privs:
        gain_no_more()
    if first[0] == pool_user and all(user == first for user in others):
        become(*first)
    elif no_new_privs:
        keep_only(kept)
    else:
        set_capabilities(kept)  # programs may gain privileges by set-user-ID bits: nothing of that is given up for them


def main() -> NoReturn:
    """Serve as the dispatcher says, over the descriptor in the first argument; for the dispatcher alone."""
    set_dumpable(False)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir("/")
    link = PoolLink(socket.socket(fileno=int(sys.argv[1])))
    os.set_inheritable(link.fileno(), False)
    try:
        table = link.receive()
    except EOFError:
        os._exit(1)
    assert table is not None
    if table.kind != "table" or table.sender is None or table.sender.uid != os.getuid():
        os._exit(1)
    link.setblocking(False)
    logs.set_up(**table.fields["log"])
    logs.set_role("spawner")
    set_title("spawner")
    processes.become_subreaper()
    code = 1
    try:
        _give_up_rights(**table.fields)
        launcher = Spawner(link, table.fields).run()
        if launcher is not None:
            launcher.run()
        code = 0
    except BaseException:
        log.exception("failed")
    finally:
        logging.shutdown()
        os._exit(code)
