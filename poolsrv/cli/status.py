"""``poolsrv status``: a running server's status as text."""

from __future__ import annotations

from ..core.words import counted
from ..ipc.stats import Status
from .stats_tables import (
    LAUNCHER_COLUMNS,
    LISTENER_COLUMNS,
    METRIC_COLUMNS,
    MOST_LINES,
    PROGRAM_COLUMNS,
    QUEUE_COLUMNS,
    REFUSAL_COLUMNS,
    TIME_COLUMNS,
    WORKER_COLUMNS,
    headline,
    launcher_row,
    listener_row,
    metric_rows,
    program_row,
    queue_rows,
    refusal_row,
    time_rows,
    worker_row,
)
from .tables import table

MOST_METRICS = 60  # lines of histograms, and of plugins' metrics


def as_text(status: Status) -> str:
    """Write a server's status for a reader."""
    parts = ["\n".join(headline(status))]
    parts.append(table(WORKER_COLUMNS, map(worker_row, [*status.workers, *status.apart])))
    parts.append(table(LISTENER_COLUMNS, map(listener_row, status.listeners)))
    if queues := queue_rows(status):
        parts.append(table(QUEUE_COLUMNS, queues))
    for columns, shown, noun in (
        (TIME_COLUMNS, time_rows(status), "histogram"),
        (METRIC_COLUMNS, metric_rows(status), "series"),
    ):
        if shown:
            parts.append(table(columns, shown[:MOST_METRICS]) + _more(len(shown) - MOST_METRICS, noun))
    if status.launchers:
        rows = list(map(launcher_row, status.launchers[:MOST_LINES]))
        parts.append(table(LAUNCHER_COLUMNS, rows) + _more(len(status.launchers) - len(rows), "launcher"))
    if status.totals.programs:
        rows = [program_row(program) for program in status.programs[:MOST_LINES]]
        parts.append(table(PROGRAM_COLUMNS, rows) + _more(status.totals.programs - len(rows), "program"))
    if status.recent_refusals:
        parts.append(table(REFUSAL_COLUMNS, map(refusal_row, status.recent_refusals[-MOST_LINES:])))
    return "\n\n".join(parts)


def _more(number: int, noun: str) -> str:
    """A line that says how many rows are not shown."""
    return f"\nand {counted(number, 'more ' + noun)}" if number > 0 else ""
