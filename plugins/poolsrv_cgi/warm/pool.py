"""The warm interpreters of one worker: a helper for each interpreter that scripts name, and the children it forks.

A helper (`helper.py`) is started when the first script asks for its interpreter. Until it is ready, and whenever it
can't do its work, scripts are started the ordinary way: warm is never a reason for a request to fail or to wait. A
helper that has ended is replaced at the next request, after a delay that grows while it fails again and again.

The pipes of a script are made here and passed to the helper; the helper says which process has got them, and later how
that has ended. Until it has said the first, this side keeps its copies of the descriptors, so that a script that the
helper could not start can still be started the ordinary way, with the same pipes.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from poolsrv import PIPE, Child, Connection, Handle, Worker

from .child import WarmChild, end_of, signal_group
from .messages import (
    VERSION,
    Exited,
    Pong,
    Ready,
    Reply,
    Started,
    encode_run,
    helper_argv,
    python_command,
    read_replies,
    send_ping,
    send_run,
)

if TYPE_CHECKING:
    from ..programs.program import Program
    from ..scripts import Script

__all__ = ["WarmPool"]

log = logging.getLogger("poolsrv.cgi")

CONTROL = 3  # the descriptor of its end in a helper
LOOK_EVERY = 1.0  # seconds between two looks whether a helper is well
START_TIME = 60.0  # seconds that it has for its imports
ANSWER_TIME = 10.0  # seconds that it has for an answer, while it has scripts
FIRST_DELAY = 0.5  # seconds from a failure of a helper to its replacement; doubled each time
MAX_DELAY = 60.0
STOP_GRACE = 5.0  # seconds from TERM to KILL for what runs when the worker ends
MAX_COMMANDS = 4096  # scripts whose first line is remembered

_DEFAULT_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


class _Helper:
    """One helper process, from its start to its end.

    :param command: the interpreter, with its flags.
    :param gone: called as `gone(helper)` when it has ended.
    :raises OSError: it can't be started.
    """

    def __init__(
        self,
        worker: Worker,
        command: tuple[str, ...],
        modules: Sequence[str],
        environment: Mapping[str, str],
        gone: Callable[[_Helper], object],
    ) -> None:
        self.command = command
        self.ready = False
        self.children: dict[int, WarmChild] = {}
        self._gone = gone
        self._ids = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        try:
            argv = helper_argv(command, CONTROL, modules)
            spawn = os.posix_spawn if "/" in argv[0] else os.posix_spawnp
            null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
            self.pid = spawn(
                argv[0],
                argv,
                dict(environment),
                file_actions=[*null, (os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL)],
                setpgroup=0,
                setsigmask=(),
                setsigdef=_DEFAULT_SIGNALS,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker.reap_orphans_of(self.pid)
        self._closed = False
        self._started_at = time.monotonic()
        self._asked_at = 0.0  # monotonic; 0: it owes no answer
        self._looks: Handle = worker.every(LOOK_EVERY, self.is_well)
        self._watch: Handle = worker.add_reader(ours.fileno(), self._on_replies)

    def run(self, child: WarmChild, message: Callable[[int], bytes]) -> bool:
        """Send a request; False where it can't be sent."""
        self._ids += 1
        try:
            stdin, stdout, stderr = child.descriptors
            if not send_run(self._control, message(self._ids), (stdin, stdout, stderr)):
                return False
        except (OSError, ValueError):
            return False
        self.children[self._ids] = child
        return True

    def is_well(self) -> bool:
        """Whether it neither has been stopped nor hangs; else it is ended, to be replaced."""
        if self._closed:
            return False
        now = time.monotonic()
        wrong = ""
        if self._is_stopped():
            wrong = "has been stopped by a signal"
        elif not self.ready:
            wrong = f"is not ready after {START_TIME:g} s" if now - self._started_at > START_TIME else ""
        elif self._asked_at:
            wrong = f"has not answered for {ANSWER_TIME:g} s" if now - self._asked_at > ANSWER_TIME else ""
        elif self.children:
            self._asked_at = now
            send_ping(self._control)
        if wrong:
            log.error("the warm interpreter %s %s", " ".join(self.command), wrong)
            self.close()
            self._gone(self)
        return not wrong

    def _is_stopped(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return False

    def _on_replies(self) -> None:
        if self._hear():
            self.close()
            self._gone(self)

    def _hear(self) -> bool:
        """Take in what it has said; True where it will say no more."""
        try:
            replies, ended = read_replies(self._control)
            for reply in replies:
                self._take(reply)
        except (ValueError, KeyError) as error:
            log.error("warm %s: %s", " ".join(self.command), error)
            return True
        return ended

    def _take(self, reply: Reply) -> None:
        if isinstance(reply, Ready):
            self.ready = reply.version == VERSION
        elif isinstance(reply, Pong):
            self._asked_at = 0.0
        elif isinstance(reply, Started):
            self.children[reply.id].started(reply.pid)
        elif isinstance(reply, Exited):
            child = self.children.pop(reply.id)
            if child.pid:
                child.ended(reply.returncode, reply.user_time + reply.system_time)
            else:
                child.not_started()  # it has ended before it ran
        elif reply.id in self.children:
            self.children.pop(reply.id).not_started()
        else:
            log.error("warm %s: %s", " ".join(self.command), reply.message)

    def wait_for_children(self, seconds: float) -> None:
        """Without a loop: until every child has ended, at most so long."""
        deadline = time.monotonic() + seconds
        while self.children and (left := deadline - time.monotonic()) > 0:
            self._control.settimeout(left)
            try:
                if not self._control.recv(1, socket.MSG_PEEK):
                    return
            except TimeoutError:
                return
            self._control.settimeout(None)
            self._on_replies()

    def close(self) -> None:
        """End it. It kills what it has started, and so does this side, should it be gone already."""
        if self._closed:
            return
        self._closed = True
        self._watch.cancel()
        self._looks.cancel()
        signal_group(self.pid, signal.SIGKILL)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # somebody was faster
        # Read what is left: a child that has said that it runs does run, one that can't say so will not (`helper`). So
        # no script is run twice.
        self._control.shutdown(socket.SHUT_RD)
        while not self._hear():
            pass
        self._control.close()
        children, self.children = self.children, {}
        for child in children.values():
            if child.pid:
                child.ended(end_of(child), None)
            else:
                child.not_started()


class WarmPool:
    """One per listener; in each worker it has helpers of its own.

    :param modules: that the helpers import beforehand.
    :param environment: of the helpers; what the environments of all scripts have in common.
    :param limits: resource limits of each script.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str], limits: Mapping[int, int]) -> None:
        self.worker: Worker
        self._modules = tuple(modules)
        self._environment = dict(environment)
        self._limits = [(number, value, value) for number, value in limits.items()]
        self._helpers: dict[tuple[str, ...], _Helper] = {}
        self._failures: dict[tuple[str, ...], tuple[int, float]] = {}  # how many in a row, not before (monotonic)
        self._commands: dict[str, tuple[tuple[int, ...], tuple[str, ...] | None]] = {}
        self._null = -1

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection."""
        self.worker = worker

    def close(self) -> None:
        """In a worker, at its end: TERM to what runs, then KILL."""
        for helper in list(self._helpers.values()):
            for child in helper.children.values():
                child.terminate(STOP_GRACE)
            helper.wait_for_children(STOP_GRACE)
            helper.close()
        self._helpers.clear()
        if self._null >= 0:
            os.close(self._null)
            self._null = -1

    def command_for(self, program: Script) -> tuple[str, ...] | None:
        """The interpreter of a program that is to run warm: that of the config, or of its first line. None where it is
        no Python."""
        if len(program.argv) > 1:  # configured; what its name is does not matter to the kernel, and no more here
            command = program.argv[:-1]
            return command if python_command(f"#!/{' '.join(command)}".encode()) is not None else None
        try:
            status = os.stat(program.filename)
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._commands.get(program.filename)
            if known is not None and known[0] == key:
                return known[1]
            with open(program.filename, "rb") as file:
                command_found = python_command(file.readline(256))
        except OSError:
            return None
        if len(self._commands) >= MAX_COMMANDS:
            self._commands.clear()
        self._commands[program.filename] = (key, command_found)
        return command_found

    def start(
        self,
        program: Program,
        command: tuple[str, ...],
        argv: Sequence[str],
        environment: Mapping[str, str],
        cwd: str | None,
        stdin: Connection | int | None,
        stderr: int,
    ) -> WarmChild | None:
        """Run a script in a child of the helper; None where the ordinary way has to be taken.

        :param argv: of the ordinary way; the script's name comes last.
        :param stdin: None, `PIPE`, or a descriptor.
        :param stderr: a descriptor.
        :raises OSError: there are no descriptors left.
        """
        helper = self._helper(command)
        if helper is None or not helper.ready or not helper.is_well():
            return None
        conn = program.conn

        def fallback() -> Child:
            ends = child.descriptors
            return program.spawn(argv, environment, cwd, ends[0], ends[1], ends[2])

        child = WarmChild(self, program, fallback)
        limits, directory = self._limits, cwd or "/"
        try:
            if stdin == PIPE:
                theirs, ours = os.pipe2(os.O_CLOEXEC)
                child.descriptors.append(theirs)
                child.stdin = conn.open_stream(ours)
            else:
                child.descriptors.append(os.dup(stdin if isinstance(stdin, int) else self._null_device()))
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            child.descriptors.append(theirs)
            child.stdout = conn.open_stream(ours)
            child.descriptors.append(os.dup(stderr))
            if helper.run(child, lambda number: encode_run(number, argv[-1:], environment, directory, limits)):
                return child
        except BaseException:
            child.drop()
            raise
        child.drop()
        return None

    def _helper(self, command: tuple[str, ...]) -> _Helper | None:
        helper = self._helpers.get(command)
        if helper is not None:
            return helper
        failures, not_before = self._failures.get(command, (0, 0.0))
        if time.monotonic() < not_before or self.worker.draining:
            return None
        try:
            helper = _Helper(self.worker, command, self._modules, self._environment, self._gone)
        except OSError as error:
            log.error("can't start the warm interpreter %s: %s", " ".join(command), error.strerror)
            self._failed(command, failures)
            return None
        self._helpers[command] = helper
        return helper

    def _gone(self, helper: _Helper) -> None:
        """A helper has ended by itself."""
        if self._helpers.get(helper.command) is helper:
            del self._helpers[helper.command]
        failures = 0 if helper.ready else self._failures.get(helper.command, (0, 0.0))[0]
        log.error("the warm interpreter %s has ended: it will be replaced", " ".join(helper.command))
        self._failed(helper.command, failures)

    def _failed(self, command: tuple[str, ...], failures: int) -> None:
        self._failures[command] = (failures + 1, time.monotonic() + min(FIRST_DELAY * 2**failures, MAX_DELAY))

    def _null_device(self) -> int:
        if self._null < 0:
            self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        return self._null
