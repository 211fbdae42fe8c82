"""``poolsrv top``: a live view of ``status`` in the terminal, refreshed every second.

Each refresh asks on a new connection. So the view survives reloads, and waits for a server that has stopped. Rows that
do not fit on the screen are left out: each table gets a share of the lines, and lines that one does not need go to the
others.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, Literal, NamedTuple, NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..core.text import one_line
from ..ipc.stats import Status
from .control_client import NoAnswer, ask
from .stats_tables import (
    LAUNCHER_COLUMNS,
    LISTENER_COLUMNS,
    PROGRAM_COLUMNS,
    REFUSAL_COLUMNS,
    TIME_COLUMNS,
    WORKER_COLUMNS,
    headline,
    launcher_row,
    listener_row,
    program_row,
    refusal_row,
    time_rows,
    worker_row,
)

INTERVAL: Final = 1.0  # seconds
TIMEOUT: Final = 1.0  # seconds for an answer, during which no key is read
WIDE: Final = 120  # columns of a terminal that is wide enough for every column of the tables
GAP: Final = 2  # columns between two columns of a table
KEYS: Final = "q or Ctrl-C to quit"

_OPTIONAL: Final = frozenset({"age", "total", "CPU", "restarts", "silent", "lag", "files", "handler"})
_STYLES: Final = dict.fromkeys(("stopped", "stalled", "condemned", "empty"), "bold red") | dict.fromkeys(
    ("full", "starting", "draining"), "yellow"
)


class _Section(NamedTuple):
    """A table on the screen: its columns with their alignment, and its rows, the most important first.

    :ivar total: how many rows the server has.
    :ivar optional: the columns that a narrow terminal does not show.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: int
    optional: frozenset[str] = frozenset()


def run(config: Path) -> None:
    """Show the view until the user quits.

    :raises ConfigErrors: the file can't be read, or its ``pool.control`` is wrong.
    :raises NoAnswer: the server does not answer at the start, or there is no terminal.
    """
    console = Console(highlight=False)
    if not (sys.stdin.isatty() and console.is_terminal) or console.is_dumb_terminal:
        raise NoAnswer("top needs a terminal; `poolsrv status` prints the same once")
    latest = ask(config)
    with _quiet_terminal(), Live(console=console, screen=True, auto_refresh=False) as live:
        trouble = ""
        while True:
            live.update(_screen(latest, console.width, console.height, trouble), refresh=True)
            if _key(INTERVAL) in ("q", "Q", "\x03", ""):
                return
            try:
                latest, trouble = ask(config, TIMEOUT), ""
            except NoAnswer as error:
                trouble = one_line(str(error))


@contextmanager
def _quiet_terminal() -> Iterator[None]:
    """Read keys one by one without echo, and restore the terminal whatever ends the block."""
    fd = sys.stdin.fileno()
    attributes = termios.tcgetattr(fd)
    former = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    former[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # stopping would not restore the screen
    tty.setcbreak(fd)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, attributes)
        for number, handler in former.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _key(seconds: float) -> str | None:
    """Wait for a key.

    :returns: the key; None if none came in time; empty if the terminal is gone.
    """
    fd = sys.stdin.fileno()
    if not select.select([fd], [], [], seconds)[0]:
        return None
    try:
        return os.read(fd, 1).decode(errors="replace")
    except OSError:
        return ""


def _screen(status: Status, width: int, height: int, trouble: str) -> RenderableType:
    """Lay out what fits into so many columns and lines.

    :param trouble: why the latest status is not up to date; empty if it is.
    """
    lines: list[RenderableType] = [_line(text, "bold" if n == 0 else "") for n, text in enumerate(headline(status))]
    lines = lines[: max(height // 3, 1)]
    trouble_lines = -(-len(trouble) // width)
    if trouble:
        lines.append(Text(trouble, "bold red", overflow="fold"))
    workers = [*status.workers, *status.apart]
    workers.sort(key=lambda worker: (-worker.cpu_percent, -worker.open, worker.slot))
    programs = sorted(status.programs, key=lambda program: -program.age)
    times = time_rows(status)
    refusals = list(map(refusal_row, reversed(status.recent_refusals)))
    sections = [
        _Section(WORKER_COLUMNS, list(map(worker_row, workers)), len(workers), _OPTIONAL),
        _Section(LISTENER_COLUMNS, list(map(listener_row, status.listeners)), len(status.listeners), _OPTIONAL),
        _Section(TIME_COLUMNS, times, len(times)),
        _Section(LAUNCHER_COLUMNS, list(map(launcher_row, status.launchers)), len(status.launchers)),
        _Section(PROGRAM_COLUMNS, list(map(program_row, programs)), status.totals.programs),
        _Section(REFUSAL_COLUMNS, refusals, len(refusals)),
    ]
    sections = [section for section in sections if section.rows]
    room = height - len(lines) - max(trouble_lines - 1, 0) - 1  # the last line is for the keys
    for section, share in zip(sections, _shares([len(one.rows) for one in sections], room), strict=True):
        if share > 0:
            lines += [Text(""), _table(section, share, width)]
    return Group(*lines, _line(KEYS, "dim"))


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """Share out lines among tables.

    :param wanted: how many rows each table has.
    :param room: the lines that there are; a table needs two besides its rows, a blank one and its header.
    :returns: how many rows each table gets.
    """
    shares = [0] * len(wanted)
    for place in range(len(wanted)):
        if room >= 3:
            shares[place] = 1
            room -= 3
    while room > 0 and any(0 < share < want for share, want in zip(shares, wanted, strict=True)):
        for place, want in enumerate(wanted):
            if room > 0 and 0 < shares[place] < want:
                shares[place] += 1
                room -= 1
    return shares


def _table(section: _Section, share: int, width: int) -> Table:
    shown = [n for n, column in enumerate(section.columns) if width >= WIDE or column[1:] not in section.optional]
    names = [section.columns[number][1:] for number in shown]
    if section.total > share:
        names[0] += f" ({share} of {section.total})"
    rows = [[row[number] for number in shown] for row in section.rows[:share]]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    # The widest column, commands or addresses, gives up what does not fit.
    widest = widths.index(max(widths))
    widths[widest] = max(widths[widest] - max(sum(widths) + GAP * (len(widths) - 1) - width, 0), len(names[widest]))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for number, name, cell_width in zip(shown, names, widths, strict=True):
        justify: Literal["left", "right"] = "right" if section.columns[number][0] == ">" else "left"
        table.add_column(Text(name), justify=justify, no_wrap=True, overflow="ellipsis", max_width=cell_width)
    for row in rows:
        # As Text, because a command line may contain what rich takes for markup.
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    return table


def _line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
