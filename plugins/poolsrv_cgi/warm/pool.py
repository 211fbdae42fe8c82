"""The warm interpreters of one worker: a fork server for each interpreter that scripts name.

The fork servers that a listener's scripts need are started with the worker, one after the other (`beforehand`). One
that has not been foreseen is started when the first script asks for its interpreter. While one starts, requests wait
for it, for a bounded time. Whenever it can't do its work, scripts are started cold: warmth is never a reason for a
request to fail. A fork server that has ended is replaced, after a delay that grows while it fails again and again.

The pipes of a script are made here and passed to the fork server, which reports the process that has got them, and
later how that has ended. Until the first of these reports, this side keeps its copies of the descriptors. So a script
that the fork server could not start can still be started cold, with the same pipes.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from poolsrv import PIPE, Child, Connection, Worker

from ..process import Launch
from ..scripts import Script
from ..shebang import read_head
from .child import WarmChild, WarmProgram
from .fork_server import ForkServer
from .messages import encode_run, python_command
from .start_queue import queue_of

__all__ = ["WarmPool"]

log = logging.getLogger("poolsrv.cgi")

FIRST_DELAY = 0.5  # seconds from a fork server's failure to its replacement; doubled each time
MAX_DELAY = 60.0
PROVEN = 10.0  # seconds; one that has been ready for so long is replaced without a delay
MOST_FAILURES = 5  # in a row; then a replacement is started only when a script asks for it
MOST_AWAITED = 1  # failures in a row; after more of them, no request waits for the next start
MOST_BEFOREHAND = 4  # interpreters that are started with the worker
LOOK_TIME = 0.002  # seconds in each turn of the worker's loop, to find out which these are
STOP_GRACE = 5.0  # seconds from TERM to KILL for what runs when the worker ends
MAX_COMMANDS = 4096  # scripts whose first line is remembered
_NONE = (0, 0.0)


def _nothing() -> None:
    """Stand in for a callback."""


class WarmPool:
    """One per listener; each worker has fork servers of its own.

    :param modules: that the fork servers import beforehand.
    :param environment: of the fork servers; what the environments of all scripts have in common.
    :param limits: resource limits of each script.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str], limits: Mapping[int, int]) -> None:
        self._worker: Worker
        self._modules = tuple(modules)
        self._environment = dict(environment)
        self._limits = [(number, value, value) for number, value in limits.items()]
        self._fork_servers: dict[tuple[str, ...], ForkServer] = {}
        self._failures: dict[tuple[str, ...], tuple[int, float]] = {}  # how many in a row, not before (monotonic)
        self._commands: dict[str, tuple[tuple[int, ...], tuple[str, ...] | None]] = {}
        self._beforehand: set[tuple[str, ...]] = set()
        self._cold: dict[int, ForkServer] = {}  # process ids of what runs cold while that starts
        self._closed = False
        self._null = -1

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self._worker = worker

    def start_beforehand(self, needed: Iterator[tuple[str, ...] | None]) -> None:
        """Start interpreters, one after the other, before a script asks for them; not within this call.

        :param needed: commands of those that scripts need, and None for each thing looked at in vain. It is looked into
            a bit at a time.
        """
        self._worker.call_later(0.0, partial(self._look, needed))

    def _look(self, needed: Iterator[tuple[str, ...] | None]) -> None:
        until = time.monotonic() + LOOK_TIME
        for command in needed:
            if self._is_ending() or len(self._beforehand) >= MOST_BEFOREHAND:
                return
            if command is not None and command not in self._beforehand and self._is_there(command):
                self._beforehand.add(command)
                queue_of(self._worker).add(partial(self._start_unless_started, command))
            if time.monotonic() > until:
                self._worker.call_later(0.0, partial(self._look, needed))
                return

    def _is_ending(self) -> bool:
        return self._closed or self._worker.draining

    def _is_there(self, command: tuple[str, ...]) -> bool:
        """Whether its programs exist: scripts that nobody asks for need not."""
        if os.path.basename(command[0]) == "env" and not shutil.which(command[1], path=self._environment.get("PATH")):
            return False
        return shutil.which(command[0]) is not None

    def _start_unless_started(self, command: tuple[str, ...], settled: Callable[[], object] = _nothing) -> bool:
        """Start a fork server; False if it has been started already, or can't be."""
        return not self._is_ending() and command not in self._fork_servers and self._start(command, settled) is not None

    def close(self) -> None:
        """End everything at the worker's end: TERM to what runs, then KILL."""
        self._closed = True
        for fork_server in list(self._fork_servers.values()):
            for child in fork_server.children.values():
                child.terminate(STOP_GRACE)
            fork_server.give_up_waiting()
            fork_server.wait_for_children(STOP_GRACE)
            fork_server.close(with_children=True)
        self._fork_servers.clear()
        if self._null >= 0:
            os.close(self._null)
            self._null = -1

    def command_for(self, script: Script) -> tuple[str, ...] | None:
        """The interpreter of a script that is to run warm, from the config or from its first line. None where that is
        not Python."""
        if len(script.argv) > 1:  # configured: the kernel doesn't look at the first line, so neither does this
            command = script.argv[:-1]
            return command if python_command(f"#!/{' '.join(command)}".encode()) is not None else None
        try:
            status = os.stat(script.filename)
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._commands.get(script.filename)
            if known is not None and known[0] == key:
                return known[1]
        except OSError:
            return None
        head = read_head(script.filename)
        if head is None:
            return None
        command_found = python_command(head)
        if len(self._commands) >= MAX_COMMANDS:
            self._commands.clear()
        self._commands[script.filename] = (key, command_found)
        return command_found

    def start(
        self,
        program: WarmProgram,
        launch: Launch,
        command: tuple[str, ...],
        stderr: int,
        spawn: Callable[[int, int, int], Child],
    ) -> WarmChild | None:
        """Run a script in a child of a fork server. None where it has to be started cold.

        :param launch: as for a cold start; the script's name is the last of its arguments.
        :param command: of the interpreter.
        :param stderr: a descriptor.
        :param spawn: starts the script cold, with these descriptors, should the fork server fail later.
        """
        fork_server = self._fork_server(command)
        if fork_server is None or not fork_server.can_run():
            return None
        argv, environment, cwd = launch.argv[-1:], launch.environment, launch.cwd or "/"
        child = WarmChild(self._worker, program, spawn)
        try:
            self._open_pipes(child, program.conn, launch.stdin, stderr)
            kinds, directory = _kinds(launch.stdin), launch.real_directory or None
            if fork_server.run(
                child, lambda number: encode_run(number, argv, environment, cwd, self._limits, kinds, directory)
            ):
                return child
        except OSError:  # no descriptors are left for all that; a cold start keeps fewer
            pass
        except BaseException:
            child.drop()
            raise
        child.drop()
        return None

    def started_cold(self, command: tuple[str, ...], child: Child) -> None:
        """Take note of a script that runs cold, although it is one for this interpreter."""
        fork_server = self._fork_servers.get(command)
        if fork_server is not None and not fork_server.ready_since:
            fork_server.cold += 1
            self._cold[child.pid] = fork_server

    def child_ended(self, child: Child) -> None:
        """Take note that a process has been reaped: a script that ran cold, or a fork server."""
        if self._cold and (starting := self._cold.pop(child.pid, None)) is not None:
            starting.cold_ended()
        for fork_server in self._fork_servers.values():
            if fork_server.process is child:
                fork_server.end()
                return

    def _open_pipes(self, child: WarmChild, conn: Connection, stdin: Connection | int | None, stderr: int) -> None:
        own = child.own_descriptors
        if stdin == PIPE:
            its_stdin, ours = os.pipe2(os.O_CLOEXEC)
            own.append(its_stdin)
            child.stdin = conn.open_stream(ours)
        elif isinstance(stdin, int):
            its_stdin = os.dup(stdin)
            own.append(its_stdin)
        else:
            its_stdin = self._null_device()
        ours, its_stdout = os.pipe2(os.O_CLOEXEC)
        own.append(its_stdout)
        child.stdout = conn.open_stream(ours)
        its_stderr = os.dup(stderr)
        own.append(its_stderr)
        child.descriptors = its_stdin, its_stdout, its_stderr

    def _fork_server(self, command: tuple[str, ...]) -> ForkServer | None:
        """The fork server of an interpreter, started if need be; None where there is none at the moment."""
        fork_server = self._fork_servers.get(command)
        if fork_server is not None:
            return fork_server
        if time.monotonic() < self._failures.get(command, _NONE)[1] or self._is_ending():
            return None
        return self._start(command)

    def _start(self, command: tuple[str, ...], settled: Callable[[], object] = _nothing) -> ForkServer | None:
        failures = self._failures.get(command, _NONE)[0]
        try:
            fork_server = ForkServer(
                self._worker,
                command,
                self._modules,
                self._environment,
                self._ended,
                settled,
                is_awaited=failures <= MOST_AWAITED,
            )
        except OSError as error:
            log.error("can't start the warm interpreter %s: %s", " ".join(command), error.strerror)
            self._failed(command, failures + 1)
            return None
        self._fork_servers[command] = fork_server
        return fork_server

    def _ended(self, fork_server: ForkServer) -> None:
        command, since = fork_server.command, fork_server.ready_since
        if self._fork_servers.get(command) is fork_server:
            del self._fork_servers[command]
        if since:
            failures = 0 if time.monotonic() - since >= PROVEN else 1
        else:
            failures = self._failures.get(command, _NONE)[0] + 1
        when = " when a script asks for it" if failures >= MOST_FAILURES else ""
        then = "" if self._is_ending() else f": it will be replaced{when}"
        log.error("the warm interpreter %s has ended%s", " ".join(command), then)
        self._failed(command, failures)

    def _failed(self, command: tuple[str, ...], failures: int) -> None:
        """Have another one started in a while.

        :param failures: in a row.
        """
        delay = min(FIRST_DELAY * 2 ** min(failures - 1, 10), MAX_DELAY) if failures else 0.0
        self._failures[command] = failed = failures, time.monotonic() + delay
        if failures < MOST_FAILURES:
            self._worker.call_later(delay, partial(self._replace, command, failed))

    def _replace(self, command: tuple[str, ...], failed: tuple[int, float]) -> None:
        if self._failures[command] is failed:  # else it has been replaced meanwhile, in vain
            self._start_unless_started(command)

    def _null_device(self) -> int:
        if self._null < 0:
            self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        return self._null


def _kinds(stdin: Connection | int | None) -> bytes:
    """The kinds of a script's standard input, output and error (`encode_run`)."""
    return b"ppp" if stdin == PIPE else b"npp" if stdin is None else b"?pp"
