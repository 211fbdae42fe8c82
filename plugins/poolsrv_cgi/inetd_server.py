"""The `inetd` protocol: one fixed program for each connection, which is its standard input and output.

For programs written for inetd, xinetd, tcpserver or systemd's `Accept=yes`: they read and write the connection
themselves, and the engine moves no byte. Their environment follows the UCSPI convention.
"""

from __future__ import annotations

import logging

from poolsrv_http import endpoints_of

from poolsrv import Connection, Worker

from .environment import inetd_environment
from .process import Launch
from .programs.limiter import Waiter
from .programs.program import Program, close_connection
from .programs.runner import ProgramRunner

__all__ = ["InetdServer"]


class InetdServer:
    """One per listener. `conn.state` is the waiter or the program."""

    def __init__(self, runner: ProgramRunner) -> None:
        self._runner = runner
        self._limiter = runner.limiter

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""

    def on_connection_init(self, conn: Connection) -> None:
        """Start the program before anything is read: every byte is the program's."""
        conn.pause_reading()
        if self._limiter.acquire():
            self._start(conn)
        else:
            conn.state = Waiter(lambda: self._start(conn), lambda: _refuse_busy(conn))
            conn.hold()  # until it is closed: a connection that waits is not idle
            if not self._limiter.wait(conn.state):
                _refuse_busy(conn)

    def on_readable(self, conn: Connection) -> None:
        """Never called: reading is paused from the start."""

    def on_writable(self, conn: Connection) -> None:
        """Do nothing: no more than refusals is sent from here."""

    def on_connection_close(self, conn: Connection) -> None:
        """Take a waiter out of the queue."""
        if isinstance(conn.state, Waiter):
            self._limiter.cancel(conn.state)
        conn.state = None  # no reference cycle

    def on_drain(self, conn: Connection) -> None:
        """Let the program finish. A connection that waits for one still gets it, or a reload would lose it."""

    def _start(self, conn: Connection) -> None:
        runner, argv = self._runner, self._runner.options.program
        program = Program(runner, conn, argv[0], close_connection)
        if isinstance(conn.state, Waiter):
            program.queued = conn.state.waited
        conn.state = program
        try:
            program.start(
                Launch(
                    argv=argv,
                    environment=inetd_environment(
                        endpoints_of(conn), base=runner.base, fixed=runner.options.environment
                    ),
                    cwd=None,
                    stdin=conn,
                    stdout=conn,
                    stderr=conn if runner.options.stderr == "client" else None,
                )
            )
        except OSError as error:
            conn.log.error("can't start %s: %s", argv[0], error.strerror)
            conn.close("refused")


def _refuse_busy(conn: Connection) -> None:
    conn.log.log(logging.INFO, "refused: max_programs are running")
    conn.close("refused")
