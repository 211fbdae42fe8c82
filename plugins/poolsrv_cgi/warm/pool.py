"""The warm interpreters of one worker: a fork server for each interpreter that scripts name.

A fork server is started when the first script asks for its interpreter. Until it is ready, and whenever it can't do its
work, scripts are started cold: warmth is never a reason for a request to fail or to wait. A fork server that has ended
is replaced at the next request, after a delay that grows while it fails again and again.

The pipes of a script are made here and passed to the fork server, which reports the process that has got them, and
later how that has ended. Until the first of these reports, this side keeps its copies of the descriptors. So a script
that the fork server could not start can still be started cold, with the same pipes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence

from poolsrv import PIPE, Child, Connection, Worker

from ..process import Launch
from ..scripts import Script
from .child import WarmChild, WarmProgram
from .fork_server import ForkServer
from .messages import encode_run, python_command

__all__ = ["WarmPool"]

log = logging.getLogger("poolsrv.cgi")

FIRST_DELAY = 0.5  # seconds from a fork server's failure to its replacement; doubled each time
MAX_DELAY = 60.0
STOP_GRACE = 5.0  # seconds from TERM to KILL for what runs when the worker ends
MAX_COMMANDS = 4096  # scripts whose first line is remembered


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
        self._null = -1

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self._worker = worker

    def close(self) -> None:
        """End everything at the worker's end: TERM to what runs, then KILL."""
        for fork_server in list(self._fork_servers.values()):
            for child in fork_server.children.values():
                child.terminate(STOP_GRACE)
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
            with open(script.filename, "rb") as file:
                command_found = python_command(file.readline(256))
        except OSError:
            return None
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
        :raises OSError: there are no descriptors left.
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
        except BaseException:
            child.drop()
            raise
        child.drop()
        return None

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
        failures, not_before = self._failures.get(command, (0, 0.0))
        if time.monotonic() < not_before or self._worker.draining:
            return None
        try:
            fork_server = ForkServer(self._worker, command, self._modules, self._environment, self._ended)
        except OSError as error:
            log.error("can't start the warm interpreter %s: %s", " ".join(command), error.strerror)
            self._failed(command, failures)
            return None
        self._fork_servers[command] = fork_server
        return fork_server

    def _ended(self, fork_server: ForkServer) -> None:
        command = fork_server.command
        if self._fork_servers.get(command) is fork_server:
            del self._fork_servers[command]
        failures = 0 if fork_server.ready else self._failures.get(command, (0, 0.0))[0]
        log.error("the warm interpreter %s has ended: it will be replaced", " ".join(command))
        self._failed(command, failures)

    def _failed(self, command: tuple[str, ...], failures: int) -> None:
        self._failures[command] = (failures + 1, time.monotonic() + min(FIRST_DELAY * 2**failures, MAX_DELAY))

    def _null_device(self) -> int:
        if self._null < 0:
            self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        return self._null


def _kinds(stdin: Connection | int | None) -> bytes:
    """The kinds of a script's standard input, output and error (`encode_run`)."""
    return b"ppp" if stdin == PIPE else b"npp" if stdin is None else b"?pp"
