"""Asks a running server's control socket."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Final

import msgspec

from ..config import reader
from ..config.model import PoolTable
from ..core import pid_file
from ..errors import PoolsrvError
from ..ipc.stats import PROTOCOL, Answer, Status

TIMEOUT: Final = 5.0  # seconds
MOST_LINES: Final = 20  # of programs and refusals in the text
LONGEST_ANSWER: Final = 1 << 26  # bytes; a server's is far below


class NoAnswer(PoolsrvError):
    """The server can't be asked. Its text says why; ``exit_code`` what the command ends with."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def ask(config: Path, patience: float | None = None) -> Status:
    """Ask the server of a config file.

    :param patience: seconds for the answer; None: ``TIMEOUT``.
    :raises ConfigErrors: the file can't be read, or its ``pool.control`` is wrong.
    :raises NoAnswer: there is no control socket, or nobody answers.
    """
    patience = TIMEOUT if patience is None else patience
    table = reader.locate(config)
    if table.control is None:
        raise NoAnswer(f'{config}: pool.control: missing, expected a path for it, such as "run/poolsrv.ctl"', 2)
    try:
        line = _exchange(os.fspath(table.control), b"status\n", patience)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise NoAnswer(f"{config}: the server does not run{_but(table)}") from None
    except PermissionError:
        raise NoAnswer(f"{table.control}: permission denied: only root and the server's own user may ask") from None
    except TimeoutError:
        raise NoAnswer(f"{table.control}: no answer within {patience:.0f} s: it is starting, or stuck") from None
    except OSError as error:
        raise NoAnswer(f"{table.control}: {error.strerror}") from None
    return _read(os.fspath(table.control), line)


def _read(path: str, line: bytes) -> Status:
    try:
        answer = msgspec.json.decode(line, type=Answer)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        if not line:
            raise NoAnswer(f"{path}: the server has closed the connection: it is stopping, or too many ask") from None
        raise NoAnswer(f"{path}: not understood: {error}; the server may be of another version") from None
    if answer.error is not None:
        raise NoAnswer(f"{path}: {answer.error}")
    if answer.protocol != PROTOCOL or answer.status is None:
        raise NoAnswer(f"{path}: the server speaks protocol {answer.protocol}, and this is {PROTOCOL}")
    return answer.status


def _but(table: PoolTable) -> str:
    """What the file with the pid says to that."""
    try:
        pid = pid_file.running(os.fspath(table.pidfile)) if table.pidfile is not None else 0
    except OSError:
        pid = 0
    if not pid:
        return ""
    return f" with the control socket {table.control}, but it does run (pid {pid}): it is stopping, or needs a reload"


def _exchange(path: str, question: bytes, patience: float) -> bytes:
    """One question, one line.

    :raises OSError: nobody is there, or answers in time.
    """
    deadline = time.monotonic() + patience
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(patience)
        sock.connect(path)
        sock.sendall(question)
        pieces: list[bytes] = []
        room = LONGEST_ANSWER
        while room > 0 and not (pieces and pieces[-1].endswith(b"\n")):
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                piece = sock.recv(1 << 16)
            except ConnectionResetError:
                piece = b""
            if not piece:
                break
            pieces.append(piece)
            room -= len(piece)
    return b"".join(pieces)
