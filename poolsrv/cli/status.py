"""``poolsrv status``: asks a running server by its control socket, and shows the answer as text.

Of the config only two keys are read, so that it works whatever else is wrong with the file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from ..core.text import one_line
from ..core.words import counted
from ..ipc.stats import ListenerStats, ProgramStats, RefusalStats, Status, WorkerStats
from .control_client import MOST_LINES

LONGEST_COMMAND: Final = 100  # characters


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


def worker_row(worker: WorkerStats) -> tuple[str, ...]:
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


def listener_row(listener: ListenerStats) -> tuple[str, ...]:
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


def program_row(program: ProgramStats) -> tuple[str, ...]:
    """The same of a program."""
    command = _cell(program.command)
    if len(command) > LONGEST_COMMAND:
        command = command[: LONGEST_COMMAND - 3] + "..."
    cells = (duration(program.age), duration(program.cpu), size(program.memory))
    return (str(program.pid), str(program.worker), *cells, command)


def refusal_row(refusal: RefusalStats) -> tuple[str, ...]:
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
