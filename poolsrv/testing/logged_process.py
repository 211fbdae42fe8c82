"""A server's process with its log, until it is killed: for ``Server``, and for the project's own tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ..core.procfs import children_of

TIMEOUT: Final = 30.0  # seconds that a method waits

_ADDRESS = re.compile(r"(\S+) on (\S+?)(?=, | \(|$)")


class ServerFailed(AssertionError):
    """The server did not start, did not do what a method waited for, or left something behind."""


class LoggedProcess:
    """Starts it, in a session of its own.

    :param folder: its working directory.
    :ivar lines: the lines of its log so far.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="poolsrv log", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._grown:
                self.lines.append(line.decode(errors="backslashreplace").rstrip("\n"))
                self._grown.notify_all()
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    @property
    def log(self) -> str:
        """All lines of its log so far."""
        with self._grown:
            return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, *, count: int = 1, after: int = 0, timeout: float = TIMEOUT) -> re.Match[str]:
        """Wait for lines of the log.

        :param pattern: a regular expression, which is searched for in each line.
        :param count: how many lines are to match.
        :param after: how many lines to leave out.
        :param timeout: seconds.
        :returns: the match of the last one.
        :raises ServerFailed: they do not come in time, or the server ends.
        """
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout
        seen, found = after, 0
        with self._grown:
            while True:
                while seen < len(self.lines):
                    match = expression.search(self.lines[seen])
                    seen += 1
                    found += match is not None
                    if match is not None and found >= count:
                        return match
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the server has ended" if self._ended else f"waited {timeout:g} seconds"
                    often = f" {count} times" if count > 1 else ""
                    log = "\n".join(self.lines)
                    raise ServerFailed(f"no line of the log matches {pattern!r}{often} ({why}):\n{log}")
                self._grown.wait(left)

    def addresses(self, listener: str | None) -> list[str]:
        """The addresses that a listener is bound to, from the line with ``ready``; None: those of all listeners."""
        line = self.wait_for_line(r"\bready: .*").group().removeprefix("ready: ")
        return [address for name, address in _ADDRESS.findall(line) if listener in (None, name)]

    def join(self, timeout: float | None = None) -> None:
        """Wait until the log is complete, after the end of the process."""
        self._reader.join(timeout)

    def kill(self) -> None:
        """Kill it and all its descendants, whatever has happened."""
        descendants = descendants_of(self.process.pid) if self.process.poll() is None else []
        self.process.kill()
        for pid in descendants:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.join(TIMEOUT)
        assert self.process.stderr is not None
        self.process.stderr.close()


def descendants_of(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    children = sorted(children_of(pid))
    return children + [one for child in children for one in descendants_of(child)]
