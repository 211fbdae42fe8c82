"""``poolsrv status``: asks a running server by its control socket, and shows the answer as text.

Of the config only two keys are read, so that it works whatever else is wrong with the file.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from . import configfile, pidfile
from .config import PoolTable
from .errors import PoolsrvError
from .figures import PROTOCOL, Answer, ListenerFigures, ProgramFigures, RefusalFigures, Status, WorkerFigures
from .text import counted, one_line

PATIENCE: Final = 5.0  # seconds
MOST_LINES: Final = 20  # of programs and refusals in the text
LONGEST_COMMAND: Final = 100  # characters
LONGEST_ANSWER: Final = 1 << 26  # bytes; a server's is far below


class NoAnswer(PoolsrvError):
    """The server can't be asked. Its text says why; ``exit_code`` what the command ends with."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def ask(config: Path, patience: float | None = None) -> Status:
    """Ask the server of a config file.

    :param patience: seconds for the answer; None: ``PATIENCE``.
    :raises ConfigErrors: the file can't be read, or its ``pool.control`` is wrong.
    :raises NoAnswer: there is no control socket, or nobody answers.
    """
    patience = PATIENCE if patience is None else patience
    table = configfile.locate(config)
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
        pid = pidfile.running(os.fspath(table.pidfile)) if table.pidfile is not None else 0
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


# --- as text


def as_text(status: Status) -> str:
    """For people."""
    parts = ["\n".join(headline(status))]
    parts.append(table(WORKER_COLUMNS, map(worker_row, status.workers)))
    parts.append(table(LISTENER_COLUMNS, map(listener_row, status.listeners)))
    if status.totals.programs:
        rows = [program_row(program) for program in status.programs[:MOST_LINES]]
        parts.append(table(PROGRAM_COLUMNS, rows) + more(status.totals.programs - len(rows), "program"))
    if status.recent_refusals:
        parts.append(table(REFUSAL_COLUMNS, map(refusal_row, status.recent_refusals[-MOST_LINES:])))
    return "\n\n".join(parts)


def headline(status: Status) -> list[str]:
    """What stands above the tables."""
    server, totals = status.server, status.totals
    lines = [
        f"poolsrv {server.version}, {server.state}, up {duration(server.uptime)}, generation {server.generation}"
        f" (pid {server.pid}, dispatcher {server.dispatcher_pid})",
        one_line(server.config),
        f"{counted(totals.open, 'connection')}, {count(totals.accepted)} accepted, {rate(totals.accepted_rate)}/s;"
        f" {counted(totals.programs, 'program')}; CPU {totals.cpu_percent:.0f} %, memory {size(totals.memory)}",
        f"{rate(totals.events_rate)} events/s, in {size(totals.bytes_in_rate)}/s, out {size(totals.bytes_out_rate)}/s",
    ]
    if server.restarts:
        lines.append(f"{counted(server.restarts, 'pool has', 'pools have')} crashed and been replaced")
    if server.last_reload is not None:
        reload = server.last_reload
        lines.append(f"last reload: {moment(reload.at)}, {'done' if reload.ok else 'failed, nothing has changed:'}")
        lines += [f"  {one_line(error)}" for error in reload.errors[:MOST_LINES]]
    lines += [f"generation {pool.generation} (pid {pool.pid}) still drains" for pool in server.leaving]
    return lines


WORKER_COLUMNS: Final = (
    "<worker", ">pid", "<state", ">age", ">open", ">total", ">conn/s", ">events/s", ">in/s", ">out/s", ">CPU %", ">CPU",
    ">memory", ">restarts", ">silent",
)  # fmt: skip
LISTENER_COLUMNS: Final = (
    "<listener", "<handler", "<addresses", ">open", ">limit", ">total", ">conn/s", ">queued", ">waiting", ">refused",
)  # fmt: skip
PROGRAM_COLUMNS: Final = (">program", ">worker", ">age", ">CPU", ">memory", "<command")
REFUSAL_COLUMNS: Final = ("<refused", "<listener", "<peer", "<reason")


def worker_row(worker: WorkerFigures) -> tuple[str, ...]:
    """The cells of a worker's row, as ``WORKER_COLUMNS`` names them."""
    return (
        str(worker.slot),
        str(worker.pid or "-"),
        worker.state,
        duration(worker.age),
        str(worker.open),
        count(worker.accepted),
        rate(worker.accepted_rate),
        rate(worker.events_rate),
        size(worker.bytes_in_rate),
        size(worker.bytes_out_rate),
        f"{worker.cpu_percent:.0f}",
        duration(worker.cpu),
        size(worker.memory),
        str(worker.restarts),
        duration(worker.silent),
    )


def listener_row(listener: ListenerFigures) -> tuple[str, ...]:
    """The same of a listener."""
    reasons = ", ".join(f"{reason} {number}" for reason, number in listener.refusals.items())
    refused = sum(listener.refusals.values())
    return (
        listener.name,
        " > ".join((*listener.plugins, listener.handler)),
        _cell(", ".join(listener.addresses)),
        str(listener.open),
        str(listener.max_connections or "-"),
        count(listener.accepted),
        rate(listener.accepted_rate),
        "-" if listener.queued is None else str(listener.queued),
        str(listener.waiting),
        f"{refused} ({reasons})" if refused else "0",
    )


def program_row(program: ProgramFigures) -> tuple[str, ...]:
    """The same of a program."""
    command = _cell(program.command)
    if len(command) > LONGEST_COMMAND:
        command = command[: LONGEST_COMMAND - 3] + "..."
    cells = (duration(program.age), duration(program.cpu), size(program.memory))
    return (str(program.pid), str(program.worker), *cells, command)


def refusal_row(refusal: RefusalFigures) -> tuple[str, ...]:
    """The same of a connection that was refused."""
    return (moment(refusal.time), refusal.listener, _cell(refusal.peer), refusal.reason)


def more(number: int, noun: str) -> str:
    """A line about those that are not shown."""
    return f"\nand {counted(number, 'more ' + noun)}" if number > 0 else ""


def _cell(text: str) -> str:
    return one_line(text.replace("\t", " "))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns; each name begins with its alignment."""
    cells = [[column[1:] for column in columns], *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        aligned = zip(row, columns, widths, strict=True)
        lines.append("  ".join(f"{cell:{column[0]}{width}}" for cell, column, width in aligned).rstrip())
    return "\n".join(lines)


# --- figures for people


def count(number: float) -> str:
    """``1234`` as it is, more as ``12.3k``, ``4.5M``."""
    for limit, divisor, unit in ((10_000, 1, ""), (1_000_000, 1_000, "k"), (1_000_000_000, 1_000_000, "M")):
        if number < limit:
            return f"{number / divisor:.1f}{unit}" if unit else f"{number:.0f}"
    return f"{number / 1_000_000_000:.1f}G"


def rate(number: float) -> str:
    """A number for each second."""
    return f"{number:.1f}" if 0 < number < 10 else count(number)


def size(number: float) -> str:
    """Bytes: ``512 B``, ``1.5 KiB``."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"


def duration(seconds: float) -> str:
    """``4.2 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def moment(at: float) -> str:
    """Local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
