"""The "line" protocol: one line names a program and its arguments, all that follows is the program's output.

    PROGRAM[ ARGS...] CRLF          (LF alone is accepted)

There is no quoting: words are separated by spaces and tabs. Arguments are taken only where the config allows them. The
refusal that a client sees says nothing about the file system; the log has the reason.
"""

from __future__ import annotations

import logging
import os
from functools import partial

import msgspec
from poolsrv_http import endpoints_of

from poolsrv import Connection, LineTooLong, Worker

from .environment import SOFTWARE, line_environment
from .process import Launch
from .programs.limiter import Waiter
from .programs.program import Program, close_connection
from .programs.runner import ProgramRunner
from .scripts import NoScript, Script, ScriptPaths, resolve_line

__all__ = ["LineServer", "find_script_of_line", "refusal"]

DRAIN_WAIT = 2.0  # seconds that a client gets for its line, once the worker is to end; HTTP's is the same


class LineServer:
    """One per listener. `conn.state` is None until the line is there, then the waiter or the program."""

    def __init__(self, runner: ProgramRunner) -> None:
        options = runner.options
        assert options.root is not None
        self._runner = runner
        self._limiter = runner.limiter
        self.paths = ScriptPaths(root=options.root, extensions=options.extensions, interpreters=options.interpreters)

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""

    def on_connection_init(self, conn: Connection) -> None:
        """Wait for the line."""

    def on_readable(self, conn: Connection) -> None:
        """Run the program, once the line is whole."""
        if conn.state is not None:
            return
        options = self._runner.options
        try:
            line = conn.recv_line(options.max_line)
        except LineTooLong:
            reason = f"the line is over max_line ({options.max_line} bytes)"
            _refuse(conn, b"refused: the line is too long\r\n", reason)
            return
        if line is None:
            return
        found = find_script_of_line(self.paths, line, arguments=options.arguments)
        if isinstance(found, NoScript):
            _refuse(conn, refusal(found), found.reason)
            return
        # Nothing reads what follows the line: left in the socket, it slows the client down instead of filling memory.
        conn.pause_reading()
        if self._limiter.acquire():
            self._start(conn, found, line)
        else:
            conn.state = Waiter(lambda: self._start(conn, found, line), lambda: _refuse_busy(conn))
            conn.hold()  # until it is closed: a connection that waits is not idle
            if not self._limiter.wait(conn.state):
                _refuse_busy(conn)

    def on_writable(self, conn: Connection) -> None:
        """Do nothing: no more than refusals is sent from here."""

    def on_connection_close(self, conn: Connection) -> None:
        """Take a waiter out of the queue. (The engine ends the programs of a connection that has failed.)"""
        if isinstance(conn.state, Waiter):
            self._limiter.cancel(conn.state)
        conn.state = None  # no reference cycle

    def on_drain(self, conn: Connection) -> None:
        """Close a connection whose line does not come soon. One that is on its way is served: else a reload would lose
        it."""
        if conn.state is None:
            conn.call_later(DRAIN_WAIT, partial(_close_if_silent, conn))

    def _start(self, conn: Connection, found: Script, line: bytes) -> None:
        runner = self._runner
        program = Program(runner, conn, found.script_name, close_connection)
        program.request = os.fsdecode(line.rstrip(b"\r\n"))
        if isinstance(conn.state, Waiter):
            program.queued = conn.state.waited
        conn.state = program
        environment = line_environment(
            endpoints_of(conn), base=runner.base, fixed=runner.options.environment, software=SOFTWARE
        )
        try:
            program.start(
                Launch(
                    argv=found.argv,
                    environment=environment,
                    cwd=found.directory,
                    stdin=None,
                    stdout=conn,
                    stderr=conn if runner.options.stderr == "client" else None,
                )
            )
        except OSError as error:
            _refuse(conn, b"refused: the program can't be started\r\n", f"{found.filename}: {error.strerror}")


def _close_if_silent(conn: Connection) -> None:
    if conn.state is None:
        conn.close("drain")


def _refuse(conn: Connection, answer: bytes, reason: str) -> None:
    conn.log.log(logging.INFO, "refused: %s", reason)
    conn.send(answer)
    conn.close("refused")


def _refuse_busy(conn: Connection) -> None:
    _refuse(conn, b"refused: too many programs are running\r\n", "max_programs are running")


# --- the line


def find_script_of_line(paths: ScriptPaths, line: bytes, *, arguments: bool) -> Script | NoScript:
    """The script that `line` names, its arguments in `argv`.

    :param line: what the client sent, with or without its line end.
    :param arguments: whether the client may give arguments.
    """
    if line.endswith(b"\n"):
        line = line[:-1].removesuffix(b"\r")
    if b"\r" in line or b"\n" in line or b"\0" in line:
        return NoScript(400, "a CR, LF or NUL in the line")
    words = [word for word in line.replace(b"\t", b" ").split(b" ") if word]
    if not words:
        return NoScript(400, "an empty line")
    if len(words) > 1 and not arguments:
        return NoScript(403, "arguments, which this listener does not take")
    script = resolve_line(paths, words[0])
    if isinstance(script, NoScript) or len(words) == 1:
        return script
    more = (os.fsdecode(word) for word in words[1:])
    return msgspec.structs.replace(script, argv=(*script.argv, *more))


def refusal(found: NoScript) -> bytes:
    """The one line that a client gets in place of a program's output."""
    if found.status == 400:
        return b"refused: not a valid request\r\n"
    if found.reason.startswith("arguments"):
        return b"refused: arguments are not allowed\r\n"
    if found.status == 503:
        return b"refused: the program can't be started\r\n"
    return b"refused: no such program\r\n"
