"""Ask a running server's control socket.

Only two keys of the config are read, so this works whatever else is wrong with the file.
"""

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
from ..ipc.runs import Run
from ..ipc.stats import PROTOCOL, Answer, Status

TIMEOUT: Final = 5.0  # seconds
LONGEST_ANSWER: Final = 1 << 26  # bytes; a server's is far shorter


class NoAnswer(PoolsrvError):
    """The server can't be asked. The message says why.

    :ivar exit_code: the exit code of the command.
    :ivar is_down: the server does not run, or does not answer in time.
    """

    def __init__(self, message: str, exit_code: int = 1, is_down: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.is_down = is_down


def ask(config: Path, timeout: float | None = None) -> Status:
    """Ask the server of a config file for its status.

    :param timeout: seconds for the answer; None: ``TIMEOUT``.
    :raises ConfigErrors: the file can't be read, or its ``pool.control`` is wrong.
    :raises NoAnswer: there is no control socket, or no answer.
    """
    path, line = _ask(config, b"status\n", timeout)
    return decode(path, line)


def ask_for_runs(config: Path, run_id: str = "") -> list[Run]:
    """Ask for records of program runs.

    :param run_id: of one run, which is then complete; else all of them.
    :returns: the latest last; empty if there is no such run.
    :raises ConfigErrors: the file can't be read, or its ``pool.control`` is wrong.
    :raises NoAnswer: there is no control socket, or no answer, or the server is of a version that keeps no records.
    """
    path, line = _ask(config, f"run {run_id}\n".encode() if run_id else b"runs\n", None)
    answer = _answer(path, line)
    if answer.error is not None and answer.error.startswith("unknown request"):
        raise NoAnswer(f"{path}: the server is of an older version, which keeps no records of runs; reload it")
    if answer.error is not None or answer.runs is None:
        raise NoAnswer(f"{path}: {answer.error or 'no records in the answer'}")
    return answer.runs


def _ask(config: Path, request: bytes, timeout: float | None) -> tuple[str, bytes]:
    timeout = TIMEOUT if timeout is None else timeout
    table = reader.locate(config)
    if table.control is None:
        raise NoAnswer(f'{config}: pool.control: missing, expected a path for it, such as "run/poolsrv.ctl"', 2)
    path = os.fspath(table.control)
    try:
        return path, _exchange(path, request, timeout)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        but = _unless_pid_file_says_otherwise(table)
        raise NoAnswer(f"{config}: the server does not run{but}", is_down=not but) from None
    except PermissionError:
        raise NoAnswer(f"{path}: permission denied: only root and the server's own user may ask") from None
    except TimeoutError:
        message = f"{path}: no answer within {timeout:.0f} s: the server is starting, or stuck"
        raise NoAnswer(message, is_down=True) from None
    except OSError as error:
        raise NoAnswer(f"{path}: {error.strerror}") from None


def decode(path: str, line: bytes) -> Status:
    """Decode an answer.

    :param path: the control socket, for messages.
    :raises NoAnswer: it is empty, an error, or can't be understood.
    """
    answer = _answer(path, line)
    if answer.error is not None:
        raise NoAnswer(f"{path}: {answer.error}")
    if answer.protocol != PROTOCOL or answer.status is None:
        raise NoAnswer(f"{path}: the server speaks protocol {answer.protocol}, and this is {PROTOCOL}")
    return answer.status


def _answer(path: str, line: bytes) -> Answer:
    if not line:
        raise NoAnswer(f"{path}: the server has closed the connection: it is stopping, or has too many of them")
    try:
        return msgspec.json.decode(line, type=Answer)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise NoAnswer(f"{path}: not understood: {error}; the server may be of another version") from None


def _unless_pid_file_says_otherwise(table: PoolTable) -> str:
    try:
        pid = pid_file.running(os.fspath(table.pidfile)) if table.pidfile is not None else 0
    except OSError:
        pid = 0
    if not pid:
        return ""
    return f" with the control socket {table.control}, but it does run (pid {pid}): it is stopping, or needs a reload"


def _exchange(path: str, request: bytes, timeout: float) -> bytes:
    """Send one line, and receive one.

    :raises OSError: there is no server, or no answer in time.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        sock.connect(path)
        sock.sendall(request)
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
