"""Logging: to standard error, one line per event: time, level, role and pid of the process, message.

The reader of standard error may be slow, stuck or gone, and a server that waits for it would serve nobody. So a line
is waited for only for a moment, and then lost; how many were is said once the reader reads again. O_NONBLOCK belongs
to the open file, which the starter of the server shares: so a pipe or terminal is opened anew, by its name in /proc.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import Final

LEVELS = ("debug", "info", "warning", "error")

# What clients send ends up in messages: no line break or escape sequence of theirs gets into the log.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x09), *range(0x0A, 0x20), *range(0x7F, 0xA0))}

PATIENCE: Final = 0.2  # seconds for a reader that lags behind

_role = "poolsrv"


def set_up(level: str = "info") -> None:
    """Send everything from this level on to standard error, Python's warnings included.

    :param level: one of ``LEVELS``.
    """
    handler = _StandardError()
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)


def set_role(role: str) -> None:
    """Say what this process is (``"dispatcher"``, ``"worker 3"``), in every line from now on."""
    global _role
    _role = role


class _StandardError(logging.Handler):
    """Writes to descriptor 2, whatever has become of it, and never raises."""

    def __init__(self) -> None:
        super().__init__()
        self._fd = 2
        self._put: Callable[[bytes], int] = partial(os.write, 2)
        self._lost = 0  # lines, since the reader has stalled
        try:
            mode = os.fstat(2).st_mode
            if stat.S_ISSOCK(mode):  # journald's
                self._fd = os.dup(2)
                sock = socket.socket(fileno=self._fd)
                self._put = lambda data: sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            elif stat.S_ISFIFO(mode) or os.isatty(2):
                self._fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                self._put = partial(os.write, self._fd)
        except OSError:
            pass  # nobody reads it, or it is another user's: then it can block

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
        except Exception:  # noqa: BLE001 - as every logging handler: a bad format string is told, and ends nothing
            self.handleError(record)
            return
        if self._lost:
            line = f"(lines that nobody has read in time, and are lost: {self._lost})\n{line}"
        self._lost = 0 if self._write(line.encode(errors="backslashreplace")) else self._lost + 1

    def _write(self, data: bytes) -> bool:
        deadline = 0.0
        while True:
            try:
                data = data[self._put(data) :]
            except BlockingIOError:
                now = time.monotonic()
                deadline = deadline or now + (0 if self._lost else PATIENCE)
                if now >= deadline:
                    return False
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll((deadline - now) * 1000)
            except OSError:
                return True  # nobody will ever read it
            if not data:
                return True


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = record.message.translate(_CONTROL)
        return f"{self.formatTime(record)} {record.levelname:<7} {_role}[{record.process}] {message}"
