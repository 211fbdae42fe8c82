"""Starts the programs of a listener as their own user, by a launcher (spawner/launcher.py).

To the rest of the worker they are like its own: started at once or not at all, told to end, reported when they have.
The worker waits for a launcher's answer. One that has ended, or does not answer, is given up with all its programs, and
the next start gets another one. A program of its user can stop it: then the spawner kills it. Such a program can also
change what the launcher's next programs inherit: the launcher says so, and another one is asked. And it can leave the
launcher hardly any CPU time: a worker that has to wait looks for that. The wait itself can't be short, since a new
launcher takes seconds to its first answer on a machine that has too much to do.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ..core import logs
from ..core.event_loop import READ, EventLoop
from ..core.sandbox import Sandbox
from ..core.standing import SHARE, cpu_share, has_lost_share
from ..ipc.pool_link import BadMessage, Message, PoolLink
from ..net.programs import Child, Reaper

log = logging.getLogger("poolsrv.children")

ANSWER_TIMEOUT = 10.0  # seconds
LOOK_EVERY = 50  # milliseconds: how often a worker that waits looks at its launcher
_LOST = "its user's launcher has been lost, see the log"
_CHANGED = "has had its %s changed by another process"
_WRONG = (KeyError, TypeError, ValueError)  # what a message that is none raises


class LaunchedChild(Child):
    """A program that a launcher has started."""

    __slots__ = ("_programs",)

    def __init__(self, pid: int, loop: EventLoop, name: str, programs: LaunchedPrograms) -> None:
        Child.__init__(self, pid, "program", loop, name)
        self._programs = programs

    def terminate(self, grace: float = 5.0) -> None:
        self._programs.tell("end", pid=self.pid, grace=grace)

    def kill(self) -> None:
        self._programs.tell("kill", pid=self.pid)


class LaunchedPrograms(Reaper):
    """The programs of one listener in a worker.

    :param reaper: of the worker, which waits for all of them at its end.
    :param spawner: the link to the spawner.
    :param listener: the listener's name, which is all that the spawner wants to know.
    """

    def __init__(self, reaper: Reaper, loop: EventLoop, spawner: PoolLink, listener: str) -> None:
        Reaper.__init__(self, loop)
        self.running = reaper.running
        self._spawner = spawner
        self._listener = listener
        self._link: PoolLink | None = None
        self._own: dict[int, tuple[Child, Callable[[Child], object]]] = {}
        self._later: deque[Message] = deque()  # what came before an answer
        self._pid = 0  # the launcher's, once it has said something
        self._share = cpu_share(0)  # what the launcher has too, since both have inherited it

    def open(self) -> PoolLink:
        """Have a launcher, if there is none.

        :raises OSError: the spawner is gone.
        """
        if self._link is not None:
            return self._link
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # before a message is sent
        try:
            self._spawner.send("launch", [theirs.fileno()], listener=self._listener)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.settimeout(ANSWER_TIMEOUT)
        self._link, self._pid = PoolLink(ours), 0
        link = self._link
        if self._pass_log not in logs.followers:
            logs.followers.append(self._pass_log)
        self._loop.register(link.fileno(), READ, lambda _: self._receive())
        return link

    def _pass_log(self, fd: int) -> None:
        self.tell("log", [fd])

    def tell(self, kind: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Tell the launcher, if there still is one."""
        if self._link is not None:
            try:
                self._link.send(kind, fds, **fields)
            except OSError as error:
                self._lost(f"does not listen: {error.strerror or error}")

    def close_inherited(self) -> None:
        """In a copy of the worker: close its copy of the socket."""
        if self._link is not None:
            self._link.close()

    def _start(
        self,
        argv: Sequence[str],
        descriptors: tuple[int | None, int | None, int | None],
        on_exit: Callable[[Child], object],
        ends_with_output: bool,
        **how: Any,
    ) -> Child:
        env: Mapping[str, str] | None = how["env"]
        cwd: str | os.PathLike[str] | None = how["cwd"]
        sandbox: Sandbox | None = how["sandbox"]
        os.umask(umask := os.umask(0o077))
        pid = self._ask(
            [fd for fd in descriptors if fd is not None],
            argv=[os.fsdecode(word) for word in argv],
            env=None if env is None else dict(env),
            cwd=None if cwd is None else os.fspath(cwd),
            given=[fd is not None for fd in descriptors],
            limits=dict(how["limits"] or {}),
            umask=umask,
            sandbox=None if sandbox is None else sandbox.arguments(),
        )
        child = LaunchedChild(pid, self._loop, os.fsdecode(argv[0]), self)
        self.running[pid] = child
        self._own[pid] = child, on_exit
        return child

    def _ask(self, fds: Sequence[int], **fields: Any) -> int:
        """Have a program started.

        :returns: its pid.
        :raises OSError: it can't be started.
        """
        pid = self._ask_one(fds, **fields) or self._ask_one(fds, **fields)
        if not pid:
            raise OSError(errno.ECHILD, _LOST)
        return pid

    def _ask_one(self, fds: Sequence[int], **fields: Any) -> int:
        """Have a program started by the launcher that there is.

        :returns: its pid; 0: nothing has been started, and another launcher is to be asked.
        :raises OSError: it can't be started.
        """
        link = self.open()
        if self._pid and self._is_slowed_down():  # it would say so itself, but on a busy machine it may take long
            self._lost(_CHANGED % SHARE)
            return 0
        try:
            link.send("start", fds, **fields)
            deadline = time.monotonic() + ANSWER_TIMEOUT
            while (message := self._wait(link, deadline)) is not None:
                if message.kind == "started":
                    return self._new(_number(message.fields["pid"], least=2))
                if message.kind == "failed":
                    raise OSError(_number(message.fields["errno"]), f"{message.fields['text']}")
                if message.kind == "changed":
                    self._lost(_CHANGED % str(message.fields["what"])[:40])
                    return 0
                self._later.append(message)
                self._loop.at_end_of_turn(self._take_later)
        except TimeoutError as error:
            self._lost(str(error) or "does not answer")
        except EOFError:
            self._lost("has ended")
        except (BadMessage, *_WRONG) as error:
            self._lost(f"sends what is wrong: {error!r}")
        raise OSError(errno.ECHILD, _LOST)

    def _new(self, pid: int) -> int:
        """Check that it is no running program's; one that had this number may have ended just now.

        :raises ValueError: it is.
        """
        if pid in self.running:
            self._take_later()
        if pid in self.running:
            raise ValueError(f"process {pid} is another program's")
        return pid

    def _receive(self) -> None:
        if self._link is None:
            return
        try:
            message = self._next(self._link)
        except (EOFError, BadMessage, OSError):
            self._lost("has ended")
            return
        if message is not None:
            self._take(message)

    def _wait(self, link: PoolLink, deadline: float) -> Message | None:
        """Wait for the next message.

        :raises TimeoutError: there is none in time, or the launcher has been slowed down; with the words for that.
        :raises OSError: as ``_next``, which also tells of the other errors.
        """
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        while time.monotonic() < deadline:
            if poll.poll(LOOK_EVERY):
                return self._next(link)
            if self._pid and self._is_slowed_down():
                raise TimeoutError("has been slowed down")
        raise TimeoutError

    def _is_slowed_down(self) -> bool:
        """Whether the launcher has less of the CPUs than this worker: less than that had at first, and than it has
        now."""
        return has_lost_share(cpu_share(self._pid), self._share, 0)

    def _next(self, link: PoolLink) -> Message | None:
        """Receive a message. No descriptor belongs to it.

        :raises EOFError: as ``PoolLink.receive``.
        :raises BadMessage: likewise.
        :raises OSError: likewise.
        """
        message = link.receive()
        if message is not None:
            message.close()
            if message.sender is not None:
                self._pid = message.sender.pid
        return message

    def _take_later(self) -> None:
        while self._later:
            self._take(self._later.popleft())

    def _take(self, message: Message) -> None:
        if message.kind != "ended":
            return
        try:
            pid, status = _number(message.fields["pid"], least=2), _number(message.fields["status"])
            usage = _usage(message.fields["usage"])
        except _WRONG as error:
            self._lost(f"sends what is wrong: {error!r}")
            return
        self._ended(pid, status, usage)

    def _ended(self, pid: int, status: int, usage: resource.struct_rusage | None) -> None:
        child, on_exit = self._own.pop(pid, (None, None))
        if child is not None and on_exit is not None:
            del self.running[pid]
            child.reaped(status, usage)
            on_exit(child)

    def _lost(self, why: str) -> None:
        """The launcher is gone, or as good as that, and so are its programs: the spawner kills what is left."""
        link, self._link = self._link, None
        if link is None:
            return
        log.error("%s: the launcher of its programs %s", self._listener, why)
        self._loop.unregister(link.fileno())
        self._loop.at_end_of_turn(link.close)
        self._loop.at_end_of_turn(partial(self._end_lost, list(self._own)))  # the next one's are not among them

    def _end_lost(self, pids: Iterable[int]) -> None:
        self._take_later()
        for pid in pids:
            self._ended(pid, -signal.SIGKILL, None)


def _number(value: Any, least: int = -(2**31)) -> int:
    """Check a number that has 32 bits.

    :raises ValueError: it has not, or is too low.
    """
    if type(value) is not int or not least <= value < 2**31:
        raise ValueError(f"{value!r:.100} is no such number")
    return value


def _usage(value: Any) -> resource.struct_rusage | None:
    if value is None:
        return None
    if not isinstance(value, list) or [type(one) for one in value] != [float] * 2 + [int] * 14:
        raise ValueError("no usage")
    return resource.struct_rusage(value)
