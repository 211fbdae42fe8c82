"""The server's stats at one moment: what ``poolsrv status`` and monitoring get from the control socket, as JSON.

Fields may be added, but none is removed or changes its meaning. Times are in seconds since the epoch, ages in seconds,
rates per second, memory in bytes. Rates are means over the last ``WINDOW`` seconds.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ..core.text import encodable_in
from .runs import Run

PROTOCOL: Final = 1  # of the control socket; bump it on a change that breaks existing readers
WINDOW: Final = 5.0  # seconds
PAUSE_SHARE: Final = 9.0  # so at most a tenth of the dispatcher's time goes into a worker's answers
LONGEST_PAUSE: Final = 1.0  # seconds


class Reload(msgspec.Struct, frozen=True):
    """The outcome of a reload.

    :ivar at: when it ended.
    :ivar began: when it began, in seconds since boot (CLOCK_BOOTTIME, clock_gettime(2)), a clock that nobody sets.
    """

    at: float
    ok: bool
    errors: list[str] = []
    began: float = 0.0


class LeavingPool(msgspec.Struct, frozen=True):
    """A pool that a reload has replaced and that still drains. The stats do not include its workers."""

    generation: int
    pid: int


class About(msgspec.Struct, frozen=True):
    """What only the supervisor knows, and tells the pool.

    :ivar pid: the supervisor's.
    :ivar began: its start, in seconds since boot (CLOCK_BOOTTIME).
    :ivar serving: the generation of the pool that serves; None if none does.
    :ivar restarts: pools that have crashed and been replaced.
    """

    pid: int = 0
    started_at: float = 0.0
    began: float = 0.0
    serving: int | None = None
    restarts: int = 0
    last_reload: Reload | None = None
    leaving: list[LeavingPool] = []


class ServerStats(msgspec.Struct, frozen=True, kw_only=True):
    """The server, and the pool that answers.

    :ivar version: of poolsrv, as the pool runs it.
    :ivar config: the config file's absolute path.
    :ivar pid: the supervisor's, to which signals go.
    :ivar dispatcher_pid: of the pool.
    :ivar state: of the pool: ``"starting"``, ``"serving"`` or ``"stopping"``.
    :ivar started_at: the supervisor's start.
    :ivar uptime: since then, by a clock that nobody sets.
    :ivar pool_started_at: the pool's start, when the config and the code were read.
    :ivar restarts: pools that have crashed and been replaced.
    :ivar leaving: older pools that still drain.
    :ivar drain_notice: seconds between the signal to stop and the end of accepting (``pool.drain_notice``).
    :ivar drains_in: seconds that are left of these, once the signal has come; None before that.
    """

    version: str
    config: str
    pid: int
    dispatcher_pid: int
    generation: int
    state: str
    started_at: float
    uptime: float
    pool_started_at: float
    restarts: int
    last_reload: Reload | None
    leaving: list[LeavingPool]
    drain_notice: float = 0.0
    drains_in: float | None = None


class HistogramStats(msgspec.Struct, frozen=True):
    """How values are distributed: mostly times in seconds.

    :ivar count: how many values there are.
    :ivar sum: of all values.
    :ivar buckets: the upper bounds of the buckets that are not empty, each with the number of values in that bucket
        alone; the bounds are among ``metrics.BOUNDS``, and None is for what exceeds them all.
    :ivar p50: half of the values are below it, estimated; None if there are no values.
    :ivar p90: the same for 90 %, and ``p99`` for 99 %.
    """

    count: int
    sum: float
    buckets: list[tuple[float | None, int]]
    p50: float | None
    p90: float | None
    p99: float | None


class SeriesStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """A series of a metric.

    :ivar labels: what tells it from the metric's other series; those of plugins begin with ``listener`` and ``plugin``.
    :ivar value: of a counter or a gauge.
    :ivar histogram: of a histogram.
    """

    labels: dict[str, str]
    value: float | None = None
    histogram: HistogramStats | None = None


class MetricStats(msgspec.Struct, frozen=True):
    """A metric: the server's own, whose names begin with ``poolsrv_`` (figures.py), or a plugin's.

    Counters and histograms count from the server's start, over workers that have ended and over reloads. A gauge is the
    sum over the workers that run.

    :ivar name: without the ending ``_total`` that Prometheus expects of counters.
    :ivar kind: ``"counter"``, ``"gauge"`` or ``"histogram"``.
    :ivar help: what it counts; empty if only a former pool has known that.
    """

    name: str
    kind: str
    help: str
    series: list[SeriesStats]


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's accept queue of a listening socket.

    :ivar address: the real one.
    :ivar queued: connections that wait in it.
    :ivar limit: how many there can be (``backlog``).
    :ivar workers: the slots of the workers that accept at this socket by themselves now (``dispatch = "kernel"``); if
        there are none, the dispatcher does.
    :ivar accepted: connections that workers have accepted here since the pool's start.
    :ivar passed_on: those that the dispatcher has accepted in a worker's place, and passed on.
    """

    address: str
    queued: int
    limit: int
    workers: list[int] = []
    accepted: int = 0
    passed_on: int = 0


class WorkerStats(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, as the dispatcher knows it; the worker itself is not asked.

    :ivar slot: its place in the pool; a draining worker and its successor have the same.
    :ivar pid: 0 if there is none at the moment: it could not start, and is tried again.
    :ivar state: ``"empty"``, ``"starting"``, ``"serving"``, ``"full"`` (near its limit of descriptors), ``"draining"``;
        or ``"stopped"`` (by a signal), ``"stalled"`` (it takes no connections), ``"condemned"`` (it is being killed).
    :ivar age: since it began to serve; while it starts, since its start.
    :ivar open: connections that it has, or is about to take.
    :ivar accepted: connections that it has been given.
    :ivar events: that its loop has dispatched, as last reported.
    :ivar bytes_in: from clients, and ``bytes_out`` to them, as last reported.
    :ivar cpu: CPU time that it has used.
    :ivar cpu_percent: of one CPU.
    :ivar memory: resident.
    :ivar restarts: the number of earlier workers in this slot.
    :ivar silent: since its last report. A worker with nothing to do does not report.
    :ivar in_flight: connections that it has been sent, and has not taken yet.
    :ivar lag: how long an event may have to wait in it: the longest iteration of its loop in the second before its last
        report, or the wait of what is in flight.
    :ivar descriptors: open ones, as last reported; 0 before that.
    :ivar descriptor_limit: the limit of open descriptors; 0 for none.
    """

    slot: int
    pid: int
    state: str
    age: float
    open: int
    accepted: int
    events: int
    bytes_in: int
    bytes_out: int
    accepted_rate: float
    events_rate: float
    bytes_in_rate: float
    bytes_out_rate: float
    cpu: float
    cpu_percent: float
    memory: int
    restarts: int
    silent: float
    in_flight: int = 0
    lag: float = 0.0
    descriptors: int = 0
    descriptor_limit: int = 0


class ListenerStats(msgspec.Struct, frozen=True, kw_only=True):
    """One listener.

    :ivar addresses: the real ones.
    :ivar plugins: those called before the handler.
    :ivar open: connections over all workers.
    :ivar max_connections: the limit of these; 0 for none.
    :ivar accepted: since the server's start.
    :ivar queued: connections in the kernel's accept queues; None if the kernel does not tell.
    :ivar waiting: accepted connections that no worker has taken yet.
    :ivar homeless: those of them for which no worker has room.
    :ivar paused: whether it accepts nothing at the moment, for a limit is reached or no worker has room.
    :ivar refusals: the number of refused connections since the server's start, by reason.
    :ivar queues: of each socket, in the order of ``addresses``; without those of which the kernel does not tell. With
        kernel dispatch an address has several sockets.
    :ivar dispatched: why the dispatcher accepts at an address although the config wants kernel dispatch, by address.
    """

    name: str
    handler: str
    plugins: list[str]
    addresses: list[str]
    open: int
    max_connections: int
    accepted: int
    accepted_rate: float
    queued: int | None
    waiting: int
    homeless: int
    paused: bool
    refusals: dict[str, int]
    queues: list[QueueStats] = []
    dispatched: dict[str, str] = {}


class ProgramStats(msgspec.Struct, frozen=True, kw_only=True):
    """A running program: a child of a worker, or of one of its launchers.

    :ivar worker: its worker's slot.
    :ivar command: its command line; for a zombie, its name in brackets.
    :ivar launcher: the pid of the launcher that has started it; 0: the worker has.
    """

    pid: int
    worker: int
    worker_pid: int
    command: str
    age: float
    cpu: float
    memory: int
    launcher: int = 0


class LauncherStats(msgspec.Struct, frozen=True, kw_only=True):
    """A launcher: it starts the programs of a listener that have a user or a /tmp of their own, for one worker.

    :ivar user: of the programs, and its own.
    :ivar worker: its worker's slot.
    :ivar programs: how many of them run.
    """

    pid: int
    listener: str
    user: str
    worker: int
    worker_pid: int
    age: float
    cpu: float
    memory: int
    programs: int


class RefusalStats(msgspec.Struct, frozen=True, kw_only=True):
    """A refused connection."""

    time: float
    listener: str
    peer: str
    reason: str


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Over the whole server.

    :ivar open: connections.
    :ivar accepted: since the server's start; so are ``events``, the bytes and ``cpu``, with those of ended workers.
    :ivar programs: running programs, those that are not listed included.
    :ivar cpu_percent: the workers', of one CPU.
    :ivar memory: the workers' resident memory; what they share counts for each.
    """

    open: int
    accepted: int
    accepted_rate: float
    events_rate: float
    bytes_in_rate: float
    bytes_out_rate: float
    programs: int
    cpu_percent: float
    memory: int
    events: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    cpu: float = 0.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All stats.

    :ivar time: when they were collected.
    :ivar workers: by slot.
    :ivar listeners: in the order of the config.
    :ivar programs: at most ``program_stats.MOST``.
    :ivar recent_refusals: the latest last.
    :ivar metrics: by name.
    :ivar apart: the worker of its own for handlers that are to answer whatever ``workers`` do, such as ``status``; its
        ``slot`` is -1. Empty if no listener has such a handler. After a reload, a draining one beside its successor.
    :ivar launchers: at most 200. Empty if no programs have a user or a /tmp of their own, or none has been asked for.
    """

    time: float
    server: ServerStats
    totals: Totals
    workers: list[WorkerStats]
    listeners: list[ListenerStats]
    programs: list[ProgramStats]
    recent_refusals: list[RefusalStats]
    metrics: list[MetricStats] = []
    apart: list[WorkerStats] = []
    launchers: list[LauncherStats] = []


def as_json(status: Status) -> bytes:
    """Encode for programs, as ``poolsrv status --json`` does. Bytes of names that are no text are escaped."""
    return msgspec.json.format(as_compact_json(status), indent=2)


def as_compact_json(status: Status) -> bytes:
    """The same in one line."""
    return msgspec.json.encode(encodable_in(msgspec.to_builtins(status)))


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the control socket.

    :ivar protocol: ``PROTOCOL``, of the server.
    :ivar status: if that was asked for.
    :ivar runs: the records of program runs, if these were asked for.
    :ivar error: why there is no answer.
    """

    protocol: int
    status: Status | None = None
    runs: list[Run] | None = None
    error: str | None = None
