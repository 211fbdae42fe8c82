"""Logging: one line per event, as text or JSON, to standard error or a file.

The reader of standard error may be slow, stuck or gone, and a server that waits for it would serve nobody. So the
server waits only for a moment, and then drops the line. Once the reader reads again, the log says how many lines were
lost. O_NONBLOCK belongs to the open file, which the server shares with the process that started it: so a pipe or
terminal is opened again, by its name in /proc.

A file is opened for appending: each line is one write(2), and lines of several processes do not mix. To rotate the
file, rename it and have every process open the name again. Each process writes all its lines to one of the two files,
so no line is lost and none is in both. A full disk loses lines, which are counted too.

Where standard error is the systemd journal, a line has a priority in place of time and level, and a traceback belongs
to its record.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from . import journal, uncaught
from . import text as plain_text
from .safe_names import open_for_appending

LEVELS = ("debug", "info", "warning", "error")
# What a line is about, if anything; passed as "extra" to a call of the logger.
FIELDS = (
    "worker", "worker_pid", "listener", "connection", "peer", "reason", "duration", "bytes_in", "bytes_out", "programs",
)  # fmt: skip

TIMEOUT: Final = 0.2  # seconds to wait for a reader that lags behind
FILE_MODE: Final = 0o640

log = logging.getLogger("poolsrv.logs")

_role = "poolsrv"
_worker: int | str | None = None
_handler: _Handler | None = None

# Called with the descriptor once the log file has been opened again: for processes that could not do that themselves.
followers: Final[list[Callable[[int], object]]] = []


def set_up(
    level: str = "info", format: str = "text", file: str | None = None, owner: Sequence[int] | None = None
) -> None:
    """Send the log there from now on, including Python's warnings and uncaught exceptions.

    :param level: one of ``LEVELS``.
    :param format: ``"text"`` or ``"json"``.
    :param file: a path; None: standard error.
    :param owner: user and group of a file that root creates; -1: root's own.
    :raises OSError: the file can't be opened; then nothing has changed.
    """
    global _handler
    former, _handler = _handler, _standard_error() if file is None else _File(file, owner)
    text = _JournalText() if isinstance(_handler, _Journal) else _Text()
    _handler.setFormatter(_Json() if format == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [_handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    uncaught.install()
    if former is not None:
        former.close()


def reopen() -> None:
    """Open the log file again, after it has been renamed. If that fails, the old file is kept, and says so."""
    if isinstance(_handler, _File):
        _handler.reopen()
        for follow in list(followers):
            follow(_handler.fileno())


def take_over(fd: int) -> None:
    """Write to this open file from now on, in place of the log file: another process has opened that again.

    :raises ValueError: it is no file that is written to at its end.
    """
    is_file = stat.S_ISREG(os.fstat(fd).st_mode)
    if not is_file or not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
        raise ValueError("no log file")
    if isinstance(_handler, _File):
        _handler.take_over(fd)


def set_role(role: str, worker: int | str | None = None) -> None:
    """Set what every line says of this process: ``"dispatcher"``, or ``"worker"`` and its slot, or ``"apart"``."""
    global _role, _worker
    _role, _worker = role, worker


def say(lines: Sequence[str]) -> None:
    """Print lines for the user who starts the server, before there is a log: without time and level."""
    begin = f"<{journal.priority(logging.ERROR)}>" if journal.is_at(2) else ""
    try:
        with open(2, "w", closefd=False, errors="backslashreplace") as stream:
            stream.writelines(f"{begin}{plain_text.one_line(line)}\n" for line in lines)
    except OSError:
        pass  # nobody wants to know


class _Handler(logging.Handler):
    """Writes lines to a descriptor, whatever has become of it, and never raises."""

    _loss = ""  # how lines are lost, for who reads the next one

    def __init__(self) -> None:
        super().__init__()
        self._fd = 2
        self._put: Callable[[bytes], int] = partial(os.write, 2)
        self._lost = 0  # lines lost since the last one that was written
        self._torn = False  # only a part of the latest line was written

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            if self._lost:
                line = f"{self._format_loss(record)}\n{line}"
        except Exception as error:  # noqa: BLE001 - a bad format string, or a broken __str__, must not end anything
            why = type(error).__name__
            line = self._format_own(f"a line of the logger {record.name} can't be formatted: {why}") + "\n"
        data = plain_text.encodable(line).encode()
        self._lost = 0 if self._deliver(data, record.levelno) else self._lost + 1

    def _deliver(self, data: bytes, level: int) -> bool:
        """Write the lines of a record.

        :returns: False if they are lost.
        """
        return self._write(b"\n" + data if self._torn else data)

    def _format_loss(self, record: logging.LogRecord) -> str:
        text = f"lines that {self._loss}, and are lost: {self._lost}"
        if not isinstance(self.formatter, _Json):
            return f"({text})"
        return self._format_own(text)

    def _format_own(self, text: str) -> str:
        return self.format(logging.LogRecord(log.name, logging.WARNING, "", 0, text, (), None))

    def _write(self, data: bytes) -> bool:
        deadline = 0.0
        whole = data
        while True:
            try:
                data = data[self._put(data) :]
            except BlockingIOError:
                now = time.monotonic()
                deadline = deadline or now + (0 if self._lost else TIMEOUT)
                if now >= deadline:
                    self._torn = self._torn or len(data) < len(whole)
                    return False
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll((deadline - now) * 1000)
            except OSError as error:
                self._torn = self._torn or len(data) < len(whole)
                return self._failed(error)
            if not data:
                self._torn = False
                return True

    def _failed(self, error: OSError) -> bool:
        """Handle a line that can't be written.

        :returns: whether to forget it, rather than count it as lost.
        """
        return True

    def close(self) -> None:
        if self._fd != 2:
            self._put = len  # as if all were written
            os.close(self._fd)
            self._fd = 2
        super().close()


class _StandardError(_Handler):
    _loss = "nobody has read in time"

    def __init__(self) -> None:
        super().__init__()
        try:
            mode = os.fstat(2).st_mode
            if stat.S_ISSOCK(mode):  # journald's
                fd = os.dup(2)
                self._sock = socket.socket(fileno=fd)
                self._put = lambda data: self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._fd = fd
            elif stat.S_ISFIFO(mode) or os.isatty(2):
                self._put = _put_without_waiting  # if opening fails: it has no reader, or is another user's
                self._fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                self._put = partial(os.write, self._fd)
        except OSError:
            pass

    def close(self) -> None:
        if hasattr(self, "_sock"):
            self._sock.detach()
        super().close()


class _Journal(_StandardError):
    """Writes to the systemd journal: lines with their priority, and a traceback in one record with its line."""

    def _deliver(self, data: bytes, level: int) -> bool:
        lines = data.splitlines(keepends=True)
        if len(lines) > 1 and not self._lost and journal.send(data.rstrip(b"\n"), level):
            return True
        return super()._deliver(b"".join(b"<%d>%b" % (journal.priority(level), line) for line in lines), level)


def _standard_error() -> _StandardError:
    return _Journal() if journal.is_at(2) else _StandardError()


def _put_without_waiting(data: bytes) -> int:
    """Write to standard error as if it had O_NONBLOCK.

    :raises OSError: as write(2); ``BlockingIOError`` if it would wait.
    """
    try:
        return os.pwritev(2, [data], -1, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ESPIPE):
            raise
    # A terminal, or an old kernel. A pipe that is writable has room for PIPE_BUF bytes (pipe(7)).
    waiting = select.poll()
    waiting.register(2, select.POLLOUT)
    if not waiting.poll(0):
        raise BlockingIOError
    return os.write(2, data[: select.PIPE_BUF])


class _File(_Handler):
    """Writes to a file; its own errors go to standard error.

    :raises OSError: the file can't be opened.
    """

    _loss = "could not be written"

    def __init__(self, path: str, owner: Sequence[int] | None) -> None:
        super().__init__()
        self._path = path
        self._owner = owner
        self._fd = self._open()
        self._put = partial(os.write, self._fd)
        self._standard_error = _standard_error()
        self._standard_error.setFormatter(_JournalText() if isinstance(self._standard_error, _Journal) else _Text())

    def _open(self) -> int:
        return open_for_appending(self._path, FILE_MODE, self._owner)

    def reopen(self) -> None:
        try:
            fd = self._open()
        except OSError as error:
            log.error("can't reopen the log %s: %s; going on with the old file", self._path, error.strerror)
            self._complain(f"can't reopen the log {self._path}: {error.strerror}; going on with the old file")
            return
        self.take_over(fd)
        os.close(fd)

    def take_over(self, fd: int) -> None:
        os.dup2(fd, self._fd, inheritable=False)  # at once, for threads too
        self._torn = False

    def fileno(self) -> int:
        return self._fd

    def _failed(self, error: OSError) -> bool:
        if not self._lost:
            self._complain(f"can't write the log {self._path}: {error.strerror}")
        return False

    def _complain(self, message: str) -> None:
        self._standard_error.emit(logging.LogRecord(log.name, logging.ERROR, "", 0, message, (), None))

    def close(self) -> None:
        super().close()
        self._standard_error.close()


class _Text(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        # Messages contain what clients send: their line breaks and escape sequences must not get into the log.
        message = plain_text.one_line(record.message)
        role = _role if _worker is None else f"{_role} {_worker}"
        return f"{self._begin(record)}{role}[{record.process}] {message}"

    def _begin(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record)} {record.levelname:<7} "

    def formatException(self, ei: Any) -> str:
        return plain_text.lines(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return plain_text.lines(stack_info)


class _JournalText(_Text):
    def _begin(self, record: logging.LogRecord) -> str:
        return ""  # the journal has the time, and is told the priority


class _Json(logging.Formatter):
    """One JSON object per line, in ASCII (RFC 8259), with the time in UTC (RFC 3339)."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "role": _role,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if _worker is not None:
            fields |= {"worker": _worker, "worker_pid": record.process}
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                fields[name] = value
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        for name, value in fields.items():
            if isinstance(value, str):
                fields[name] = plain_text.encodable(value)
        return json.dumps(fields, default=lambda value: plain_text.encodable(str(value)))
