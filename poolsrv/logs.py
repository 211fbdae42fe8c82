"""Logging: to standard error, one line per event: time, level, role and pid of the process, message."""

from __future__ import annotations

import logging
import time

LEVELS = ("debug", "info", "warning", "error")

# What clients send ends up in messages: no line break or escape sequence of theirs gets into the log.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x09), *range(0x0A, 0x20), *range(0x7F, 0xA0))}

_role = "poolsrv"


def set_up(level: str = "info") -> None:
    """Send everything from this level on to standard error, Python's warnings included.

    :param level: one of ``LEVELS``.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)


def set_role(role: str) -> None:
    """Say what this process is (``"dispatcher"``, ``"worker 3"``), in every line from now on."""
    global _role
    _role = role


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = record.message.translate(_CONTROL)
        return f"{self.formatTime(record)} {record.levelname:<7} {_role}[{record.process}] {message}"
