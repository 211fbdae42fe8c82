"""``poolsrv runs``: the records of program runs as words."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from ..core.processes import describe_exit
from ..core.text import one_line
from ..core.words import counted
from ..ipc.runs import Run, is_id
from .control_client import ask_for_runs
from .output import echo
from .tables import duration, moment, size, span, table

COLUMNS: Final = (
    "<run", ">age", "<listener", "<program", "<outcome", ">status", ">queued", ">start", ">took", ">CPU", ">memory",
    "<request",
)  # fmt: skip
FOLLOW_EVERY: Final = 1.0  # seconds
_LONGEST_CELL: Final = 60  # characters


class Filter(NamedTuple):
    """Which runs are wanted.

    :ivar slow: seconds that they took at least; None: any.
    """

    failed: bool = False
    slow: float | None = None

    def apply(self, runs: Sequence[Run]) -> list[Run]:
        """Return those that are wanted."""
        return [
            run
            for run in runs
            if (run.failed or not self.failed) and (self.slow is None or run.took + run.queued >= self.slow)
        ]


def all_of(config: Path) -> list[Run]:
    """Ask a server for its records; as ``ask_for_runs``."""
    return ask_for_runs(config)


def find(config: Path, run_id: str) -> Run | None:
    """Find one run, complete, by its ID or the beginning of it; None if there is none, or more than one."""
    if not is_id(run_id):
        fitting = [run.id for run in ask_for_runs(config) if run.id.startswith(run_id)]
        if len(fitting) != 1:
            return None
        run_id = fitting[0]
    found = ask_for_runs(config, run_id)
    return found[0] if found else None


def not_found(config: Path, run_id: str) -> str:
    """Say why there is no such run."""
    runs = ask_for_runs(config)
    fitting = [run.id for run in runs if run.id.startswith(run_id)]
    shown = one_line(run_id[:40])
    if len(fitting) > 1:
        return f"poolsrv: {counted(len(fitting), 'run begins', 'runs begin')} with {shown}: {', '.join(fitting[:6])}"
    if not runs:
        return f"poolsrv: no run {shown}: no program has run, or pool.runs is 0"
    return f"poolsrv: no run {shown}: the server has {counted(len(runs), 'record')}, which poolsrv runs lists"


def nothing(wanted: Filter) -> str:
    """Say that there is nothing to show."""
    return "no such run" if wanted != Filter() else "no program has run yet"


def as_table(runs: Sequence[Run]) -> str:
    """A table of runs."""
    return table(COLUMNS, [_row(run) for run in runs])


def follow(config: Path, wanted: Filter) -> NoReturn:
    """Print runs as they end, until Ctrl-C."""
    seen: set[str] = set()
    is_first = True
    try:
        while True:
            runs = wanted.apply(all_of(config))
            new = [run for run in runs if run.id not in seen]
            seen = {run.id for run in runs}
            if is_first:
                echo(as_table(new[-10:]))
            elif new:
                echo("\n".join(as_table(new).splitlines()[1:]))
            is_first = False
            sys.stdout.flush()
            time.sleep(FOLLOW_EVERY)
    except KeyboardInterrupt:
        sys.exit(0)


def outcome(run: Run) -> str:
    """How a run has ended: ``exited 1``, ``over its timeout``."""
    if run.returncode is None:
        return run.reason or "not started"
    ended = describe_exit(run.returncode)
    return f"{ended}; {run.reason}" if run.reason else ended


def _row(run: Run) -> tuple[str, ...]:
    return (
        run.id,
        duration(max(time.time() - run.at - run.took, 0.0)),
        _cell(run.listener),
        _cell(run.program),
        _cell(outcome(run)),
        str(run.status or "-"),
        span(run.queued) if run.queued else "-",
        span(run.start),
        span(run.took),
        span(run.cpu),
        size(run.peak_memory) if run.peak_memory is not None else "-",
        _cell(run.request) or "-",
    )


def _cell(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 3] + "..."


def details(run: Run) -> str:
    """All that is known of a run."""
    rows = [
        ("run", run.id),
        ("began", moment(run.at)),
        ("listener", run.listener),
        ("client", run.client),
        ("request", run.request or "-"),
        ("program", f"{run.program}{f', pid {run.pid}' if run.pid else ''}{', warm' if run.warm else ''}"),
        ("command", shlex.join(run.command)),
        ("directory", run.directory or "the server's"),
        ("outcome", outcome(run) + (", failed" if run.failed else "")),
        ("status", str(run.status or "-")),
        ("queued", span(run.queued)),
        ("start", span(run.start)),
        ("took", span(run.took)),
        ("CPU", span(run.cpu)),
        ("peak memory", size(run.peak_memory) if run.peak_memory is not None else "not known"),
    ]
    rows += [(name.replace("_", " "), str(number)) for name, number in run.usage.items()]
    if run.capture:
        rows.append(("capture", f"{run.capture}, see poolsrv replay"))
    rows += [("environment", f"{name}={value}") for name, value in sorted(run.environment.items())]
    rows += [("stderr", line) for line in run.stderr]
    width = max(len(label) for label, _ in rows)
    return "\n".join(one_line(f"{label:{width}}  {text}") for label, text in rows)
