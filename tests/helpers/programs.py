"""Real programs, for tests in process: started, read from, waited for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from poolsrv.core import processes
from poolsrv.core.event_loop import EventLoop
from poolsrv.net.programs import start_program
from tests.helpers.server import TIMEOUT


def run_until(loop: EventLoop, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        loop.turn(0.05)


class Program:
    """A Python program that writes to a pipe."""

    def __init__(self, source: str, **options: object) -> None:
        self.reader, writer = os.pipe()
        arguments: dict[str, object] = {"env": None, "cwd": None, "descriptors": (None, writer, None), **options}
        self.pid = start_program([sys.executable, "-c", source], **arguments)  # type: ignore[arg-type]
        os.close(writer)
        self._file = os.fdopen(self.reader)

    def line(self) -> str:
        return self._file.readline().rstrip("\n")

    def output(self) -> str:
        with self._file:
            return self._file.read()

    def close(self) -> None:
        self._file.close()


def quiet_program(source: str) -> int:
    """A Python program that writes nothing; its pid."""
    return start_program([sys.executable, "-c", source], env=None, cwd=None, descriptors=(None, None, None))


def wait_for(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_a_subreaper(function: Callable[[], None]) -> None:
    """Call the function in a forked process that becomes a subreaper, which can't be undone."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            processes.become_subreaper()
            function()
            code = 0
        finally:
            os._exit(code)
    assert wait_for(pid) == 0
