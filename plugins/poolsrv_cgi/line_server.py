"""The `line` protocol on a connection: read the line, run the program with the connection as its output, close."""

from __future__ import annotations

import logging

from poolsrv_http import endpoints_of

from poolsrv import Connection, LineTooLong, Worker

from .environment import line_environment
from .line import find_script_of_line, refusal
from .programs.limiter import Waiter
from .programs.program import Program
from .scripts import NoScript, Script, ScriptPaths
from .site import SOFTWARE, Site

__all__ = ["LineServer"]


class LineServer:
    """One per listener. `conn.state` is None until the line is there, then the waiter or the program."""

    def __init__(self, site: Site) -> None:
        options = site.options
        assert options.root is not None
        self._site = site
        self._paths = ScriptPaths(root=options.root, extensions=options.extensions, interpreters=options.interpreters)

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection."""

    def on_connection_init(self, conn: Connection) -> None:
        """Nothing before the line."""

    def on_readable(self, conn: Connection) -> None:
        """The line, or a part of it."""
        if conn.state is not None:
            return
        try:
            line = conn.recv_line(self._site.options.max_line)
        except LineTooLong:
            reason = f"the line is over max_line ({self._site.options.max_line} bytes)"
            _refuse(conn, b"refused: the line is too long\r\n", reason)
            return
        if line is None:
            return
        found = find_script_of_line(self._paths, line, arguments=self._site.options.arguments)
        if isinstance(found, NoScript):
            _refuse(conn, refusal(found), found.reason)
            return
        # What follows the line is nobody's; unread, it slows the client down instead of filling memory.
        conn.pause_reading()
        limiter = self._site.limiter
        if limiter.take():
            self._start(conn, found)
        else:
            conn.state = Waiter(lambda: self._start(conn, found), lambda: _refuse_busy(conn))
            conn.hold()  # until it is closed: waiting is not idling
            if not limiter.wait(conn.state):
                _refuse_busy(conn)

    def on_writable(self, conn: Connection) -> None:
        """Only refusals are sent from here."""

    def on_connection_close(self, conn: Connection) -> None:
        """A waiter leaves the queue. (Programs of a connection that has failed are ended by the engine.)"""
        if isinstance(conn.state, Waiter):
            self._site.limiter.cancel(conn.state)

    def on_drain(self, conn: Connection) -> None:
        """A connection that has not asked for anything yet has nothing to finish."""
        if conn.state is None:
            conn.close("drain")

    def _start(self, conn: Connection, found: Script) -> None:
        site = self._site
        program = Program(site, conn, found.script_name, _ended)
        conn.state = program
        try:
            program.start(
                found.argv,
                env=line_environment(
                    endpoints_of(conn), base=site.base, fixed=site.options.environment, software=SOFTWARE
                ),
                cwd=found.directory,
                stdin=None,
                stdout=conn,
                stderr=conn if site.options.stderr == "client" else None,
            )
        except OSError as error:
            _refuse(conn, b"refused: the program can't be started\r\n", f"{found.filename}: {error.strerror}")


def _ended(program: Program) -> None:
    """Its output is in the kernel's hands; what is left is to close."""
    if program.overdue:
        program.conn.abort(f"program over its {program.overdue}")
    else:
        program.conn.close("program ended")


def _refuse(conn: Connection, answer: bytes, reason: str) -> None:
    conn.log.log(logging.INFO, "refused: %s", reason)
    conn.send(answer)
    conn.close("refused")


def _refuse_busy(conn: Connection) -> None:
    _refuse(conn, b"refused: too many programs are running\r\n", "max_programs are running")
