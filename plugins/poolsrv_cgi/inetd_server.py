"""The `inetd` protocol: one fixed program for each connection, which is its standard input and output.

For programs written for inetd, xinetd, tcpserver or systemd's `Accept=yes`: they read and write the connection
themselves, and the engine moves no byte. Their environment follows the UCSPI convention.
"""

from __future__ import annotations

import logging

from poolsrv_http import endpoints_of

from poolsrv import Connection, Worker

from .environment import inetd_environment
from .programs.limiter import Waiter
from .programs.program import Program
from .site import Site

__all__ = ["InetdServer"]


class InetdServer:
    """One per listener. `conn.state` is the waiter or the program."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection."""

    def on_connection_init(self, conn: Connection) -> None:
        """Start the program, before anything is read: every byte is the program's."""
        conn.pause_reading()
        limiter = self._site.limiter
        if limiter.take():
            self._start(conn)
        else:
            conn.state = Waiter(lambda: self._start(conn), lambda: _refuse_busy(conn))
            conn.hold()  # until it is closed: waiting is not idling
            if not limiter.wait(conn.state):
                _refuse_busy(conn)

    def on_readable(self, conn: Connection) -> None:
        """Never called: reading is paused from the first moment."""

    def on_writable(self, conn: Connection) -> None:
        """Only refusals are sent from here."""

    def on_connection_close(self, conn: Connection) -> None:
        """A waiter leaves the queue."""
        if isinstance(conn.state, Waiter):
            self._site.limiter.cancel(conn.state)

    def on_drain(self, conn: Connection) -> None:
        """The program may finish; who still waits for one is let go."""
        if isinstance(conn.state, Waiter):
            conn.close("drain")

    def _start(self, conn: Connection) -> None:
        site, argv = self._site, self._site.options.program
        program = Program(site, conn, argv[0], _ended)
        conn.state = program
        try:
            program.start(
                argv,
                env=inetd_environment(endpoints_of(conn), base=site.base, fixed=site.options.environment),
                cwd=None,
                stdin=conn,
                stdout=conn,
                stderr=conn if site.options.stderr == "client" else None,
            )
        except OSError as error:
            conn.log.error("can't start %s: %s", argv[0], error.strerror)
            conn.close("refused")


def _ended(program: Program) -> None:
    if program.overdue:
        program.conn.abort(f"program over its {program.overdue}")
    else:
        program.conn.close("program ended")


def _refuse_busy(conn: Connection) -> None:
    conn.log.log(logging.INFO, "refused: max_programs are running")
    conn.close("refused")
