"""The records of ``status`` as words: a headline, and the rows of four tables. ``status`` and ``top`` show them."""

from __future__ import annotations

from typing import Final

from ..core.text import one_line
from ..core.words import counted
from ..ipc import figures
from ..ipc.stats import (
    HistogramStats,
    LauncherStats,
    ListenerStats,
    ProgramStats,
    RefusalStats,
    SeriesStats,
    Status,
    WorkerStats,
)
from .tables import count, duration, moment, rate, size, span

TROUBLES: Final = frozenset({figures.SLOW_HOOKS, figures.FAULTS, figures.LOST})  # shown beside those of plugins
MOST_LINES: Final = 20  # of errors, programs and refusals in a text
LONGEST_COMMAND: Final = 100  # characters

WORKER_COLUMNS: Final = (
    "<worker", ">pid", "<state", ">age", ">open", ">total", ">conn/s", ">events/s", ">in/s", ">out/s", ">CPU %", ">CPU",
    ">memory", ">restarts", ">silent", ">lag", ">files",
)  # fmt: skip
LISTENER_COLUMNS: Final = (
    "<listener", "<handler", "<addresses", ">open", ">limit", ">total", ">conn/s", ">queued", ">waiting", ">refused",
)  # fmt: skip
QUEUE_COLUMNS: Final = ("<listener", "<address", "<accepts", ">queued", ">total", ">passed on", ">share")
TIME_COLUMNS: Final = ("<time", "<of", ">count", ">p50", ">p90", ">p99")
METRIC_COLUMNS: Final = ("<metric", "<of", ">value")
PROGRAM_COLUMNS: Final = (">program", ">worker", ">age", ">CPU", ">memory", "<command")
LAUNCHER_COLUMNS: Final = (">launcher", ">worker", ">age", ">CPU", ">memory", ">programs", "<listener", "<user")
REFUSAL_COLUMNS: Final = ("<refused", "<listener", "<peer", "<reason")


def headline(status: Status) -> list[str]:
    """The lines above the tables: the server, its totals, its last reload, and former pools."""
    server, totals = status.server, status.totals
    lines = [
        f"poolsrv {server.version}, {server.state}, up {duration(server.uptime)}, generation {server.generation}"
        f" (pid {server.pid}, dispatcher {server.dispatcher_pid})",
        one_line(server.config),
        f"{counted(totals.open, 'connection')}, {count(totals.accepted)} accepted, {rate(totals.accepted_rate)}/s;"
        f" {counted(totals.programs, 'program')}; CPU {totals.cpu_percent:.0f} %, memory {size(totals.memory)}",
        f"{rate(totals.events_rate)} events/s, in {size(totals.bytes_in_rate)}/s, out {size(totals.bytes_out_rate)}/s",
    ]
    if server.drains_in is not None:
        lines.append(f"it has been told to stop, and accepts for {duration(server.drains_in)} more (drain_notice)")
    if server.restarts:
        lines.append(f"{counted(server.restarts, 'pool has', 'pools have')} crashed and been replaced")
    if server.last_reload is not None:
        reload = server.last_reload
        lines.append(f"last reload: {moment(reload.at)}, {'done' if reload.ok else 'failed, nothing has changed:'}")
        lines += [f"  {one_line(error)}" for error in reload.errors[:MOST_LINES]]
    lines += [f"generation {pool.generation} (pid {pool.pid}) still drains" for pool in server.leaving]
    return lines


def worker_row(worker: WorkerStats) -> tuple[str, ...]:
    """A row of the table of workers."""
    return (
        str(worker.slot) if worker.slot >= 0 else "apart",
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
        span(worker.lag),
        f"{worker.descriptors}/{worker.descriptor_limit or '-'}",
    )


def listener_row(listener: ListenerStats) -> tuple[str, ...]:
    """A row of the table of listeners."""
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


def queue_rows(status: Status) -> list[tuple[str, ...]]:
    """The rows of the table of queues, if workers accept by themselves: one for each socket."""
    rows: list[tuple[str, ...]] = []
    if not any(queue.workers or queue.accepted for one in status.listeners for queue in one.queues) and not any(
        one.dispatched for one in status.listeners
    ):
        return rows
    for one in status.listeners:
        total = sum(queue.accepted + queue.passed_on for queue in one.queues)
        for queue in one.queues:
            own = queue.accepted + queue.passed_on
            why = one.dispatched.get(queue.address)
            rows.append(
                (
                    one.name,
                    _cell(queue.address),
                    f"dispatcher ({why})" if why else _accepts(queue.workers),
                    str(queue.queued),
                    "-" if why else count(own),
                    "-" if why else count(queue.passed_on),
                    f"{100 * own / total:.0f} %" if total and not why else "-",
                )
            )
    return rows


def _accepts(workers: list[int]) -> str:
    return f"worker {', '.join(map(str, workers))}" if workers else "dispatcher"


def time_rows(status: Status) -> list[tuple[str, ...]]:
    """The rows of the table of histograms: those that have values."""
    return [
        (_metric_name(metric.name), _of(series), count(histogram.count), *_quantiles(metric.name, histogram))
        for metric in status.metrics
        for series in metric.series
        if (histogram := series.histogram) is not None and histogram.count
    ]


def metric_rows(status: Status) -> list[tuple[str, ...]]:
    """The rows of the table of plugins' counters and gauges. The server's own figures are in the other tables."""
    return [
        (metric.name, _of(series), count(series.value))
        for metric in status.metrics
        for series in metric.series
        if series.value is not None and ("plugin" in series.labels or metric.name in TROUBLES)
    ]


def _metric_name(name: str) -> str:
    return name.removeprefix("poolsrv_").removesuffix("_seconds").replace("_", " ")


def _of(series: SeriesStats) -> str:
    """The labels in short: the names of listener and plugin need no more."""
    words = [value if name in ("listener", "plugin") else f"{name}={value}" for name, value in series.labels.items()]
    return _cell(" ".join(words))


def _quantiles(name: str, histogram: HistogramStats) -> list[str]:
    show = span if name.endswith("_seconds") else lambda value: "-" if value is None else count(value)
    return [show(value) for value in (histogram.p50, histogram.p90, histogram.p99)]


def program_row(program: ProgramStats) -> tuple[str, ...]:
    """A row of the table of programs."""
    command = _cell(program.command)
    if len(command) > LONGEST_COMMAND:
        command = command[: LONGEST_COMMAND - 3] + "..."
    cells = (duration(program.age), duration(program.cpu), size(program.memory))
    return (str(program.pid), str(program.worker), *cells, command)


def launcher_row(launcher: LauncherStats) -> tuple[str, ...]:
    """A row of the table of launchers."""
    cells = (duration(launcher.age), duration(launcher.cpu), size(launcher.memory), count(launcher.programs))
    return (str(launcher.pid), str(launcher.worker), *cells, launcher.listener, _cell(launcher.user))


def refusal_row(refusal: RefusalStats) -> tuple[str, ...]:
    """A row of the table of refused connections."""
    return (moment(refusal.time), refusal.listener, _cell(refusal.peer), refusal.reason)


def _cell(text: str) -> str:
    return one_line(text.replace("\t", " "))
