"""A launcher: it starts the programs of one listener for one worker, as their user, and tells the worker how they end.

The socket to the worker is that of a `PoolLink`. The worker asks one thing at a time and waits for the answer:

    from the worker  start ARGV ENV CWD GIVEN LIMITS UMASK SANDBOX
                                        GIVEN says which of the three descriptors come with it; the others are null
                     end PID GRACE      TERM to the program's group, and KILL later
                     kill PID
                     log                with its descriptor: the log file, which has been opened again
    to the worker    ready              so that it learns the launcher's pid, from the kernel
                     started PID
                     failed ERRNO TEXT  it can't be started
                     changed WHAT       nothing has been started: another process has changed what programs would
                                        inherit. The launcher ends
                     ended PID STATUS USAGE

A launcher has its programs' user and no capability. Whatever a worker sends, it signals only its own children, and
starts only what that user may. It ends with its worker, and kills all that it has started or adopted.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from ..core import logs, private_tmp, processes
from ..core.event_loop import READ, EventLoop
from ..core.sandbox import Sandbox
from ..core.standing import Standing
from ..ipc.pool_link import BadMessage, Message, PoolLink
from ..net.programs import Child, Reaper

log = logging.getLogger("poolsrv.spawner")

END = 2.0  # seconds for all to end
MOST_SANDBOXES = 16


class Launcher:
    """The process.

    :param sock: to the worker; it tells who has sent what (SO_PASSCRED).
    :param worker: its pid; messages from any other process are refused.
    """

    def __init__(self, sock: socket.socket, worker: int) -> None:
        self._link = PoolLink(sock)
        self._worker = worker
        self._loop = EventLoop()
        self._reaper = Reaper(self._loop)
        self._sandboxes: dict[str, Sandbox] = {}
        self._has_name_space = False
        self._standing: Standing
        self._is_over = False

    def run(self) -> None:
        """Run until the worker is gone."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        processes.become_subreaper()
        self._standing = Standing.own()
        self._loop.register(self._link.fileno(), READ, lambda _: self._receive())
        self._say("ready")
        while not self._is_over:
            self._loop.turn()
        self._loop.unregister(self._link.fileno())
        processes.kill_until_none(self._loop, END, processes.reap_all)

    def _receive(self) -> None:
        try:
            message = self._link.receive()
        except (EOFError, BadMessage):
            self._is_over = True
            return
        assert message is not None  # it was readable
        acts: dict[str, Callable[[Message], object]] = {
            "start": self._start, "end": self._end, "kill": self._kill, "log": _log
        }  # fmt: skip
        try:
            if message.sender is None or message.sender.pid != self._worker or message.kind not in acts:
                log.error("a message that is not its worker's")
                self._is_over = True
                return
            acts[message.kind](message)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.error("a message that is wrong: %r", error)
            self._is_over = True
        finally:
            message.close()

    def _start(self, message: Message) -> None:
        changed = Standing.own().worsened(self._standing, os.getppid())
        if changed:
            self._say("changed", what=changed)
            self._is_over = True
            return
        fields, fds = message.fields, iter(message.fds)
        sources = [next(fds) if is_given else None for is_given in fields["given"]]
        umask, held = os.umask(fields["umask"]), -1
        try:
            held = _hold(fields["argv"][0])
            child = self._reaper.spawn(
                fields["argv"],
                env=fields["env"],
                cwd=fields["cwd"],
                sources=sources,
                limits={int(number): value for number, value in fields["limits"].items()},
                sandbox=self._sandbox(fields["sandbox"]),
                owner=None,  # type: ignore[arg-type]  # of pipes, of which it makes none
                on_exit=self._ended,
            )
        except OSError as error:
            self._say("failed", errno=error.errno or errno.EINVAL, text=error.strerror or str(error))
        else:
            self._say("started", pid=child.pid)
        finally:
            os.umask(umask)
            if held >= 0:
                os.close(held)

    def _sandbox(self, described: dict[str, Any] | None) -> Sandbox | None:
        if described is None:
            return None
        key = json.dumps(described)
        sandbox = self._sandboxes.get(key)
        if sandbox is None:
            if len(self._sandboxes) >= MOST_SANDBOXES:
                raise ValueError("too many sandboxes")
            sandbox = Sandbox(**described)
            if sandbox.private_tmp and not self._has_name_space:
                private_tmp.become_able()
                self._has_name_space = True
            self._sandboxes[key] = sandbox
        return sandbox

    def _ended(self, child: Child) -> None:
        self._say("ended", pid=child.pid, status=child.returncode, usage=list(child.rusage) if child.rusage else None)

    def _end(self, message: Message) -> None:
        self._child(message).terminate(float(message.fields["grace"]))

    def _kill(self, message: Message) -> None:
        self._child(message).kill()

    def _child(self, message: Message) -> Child:
        """A program that runs; or one that has ended, of whose group something may be left."""
        pid = int(message.fields["pid"])
        if pid <= 1:
            raise ValueError(f"no program has the number {pid}")
        child = self._reaper.running.get(pid)
        if child is None:
            child = Child(pid, "program", self._loop)
            child.returncode = 0
        return child

    def _say(self, kind: str, **fields: Any) -> None:
        try:
            self._link.send(kind, **fields)
        except OSError:
            self._is_over = True


def _hold(program: str) -> int:
    """Open a program, so that nobody can lease it (fcntl(2)): its start, and the worker, would wait up to 45 seconds.

    :returns: a descriptor, or -1 where this user can't read it.
    :raises OSError: it is leased.
    """
    try:
        return os.open(program, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except BlockingIOError as error:
        raise OSError(error.errno, "another process has leased it") from None
    except OSError:
        return -1  # the start says what is wrong, if anything is


def _log(message: Message) -> None:
    """Write to another log file from now on."""
    (fd,) = message.fds
    logs.take_over(fd)
