"""What a server looks like at one moment: the figures that ``poolsrv status`` shows, and whoever else wants them.

These are the JSON of the control socket. Fields may be added; none goes or changes its meaning. Times are seconds since
the epoch, ages and rates go by seconds, memory is in bytes. Rates are means over the last ``WINDOW`` seconds.
"""

from __future__ import annotations

from typing import Final

import msgspec

PROTOCOL: Final = 1  # of the control socket; raised by a change that who reads an older one could not bear
WINDOW: Final = 5.0  # seconds


class Reload(msgspec.Struct, frozen=True):
    """How a reload went.

    :ivar at: when that was known.
    :ivar began: seconds after the machine's start (CLOCK_BOOTTIME, clock_gettime(2)), which no one sets.
    """

    at: float
    ok: bool
    errors: list[str] = []
    began: float = 0.0


class LeavingPool(msgspec.Struct, frozen=True):
    """A pool that a reload has replaced, and that still drains. Its workers are not among the figures."""

    generation: int
    pid: int


class About(msgspec.Struct, frozen=True):
    """What only the supervisor knows; it tells the pool.

    :ivar pid: the server's.
    :ivar began: its start, in seconds after the machine's start (CLOCK_BOOTTIME).
    :ivar serving: the generation of the pool that serves; None where none does.
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
    :ivar uptime: since then, whatever has become of the machine's time.
    :ivar pool_started_at: the pool's start, which read the config and the code.
    :ivar restarts: pools that have crashed and been replaced.
    :ivar leaving: older pools that still drain.
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


class WorkerStats(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, as the dispatcher knows it; nothing is asked of the worker itself.

    :ivar slot: its place in the pool; two have the same where one drains and its successor serves.
    :ivar pid: 0 where there is none at the moment: it could not start, and is tried again.
    :ivar state: ``"empty"``, ``"starting"``, ``"serving"``, ``"full"`` (near its limit of descriptors), ``"draining"``;
        or ``"stopped"`` (by a signal), ``"stalled"`` (it takes no connections), ``"condemned"`` (it is being killed).
    :ivar age: since it began to serve; while it starts, since its start.
    :ivar open: connections that it has, or is about to take.
    :ivar accepted: connections that it has been given.
    :ivar events: that its loop has dispatched, as it has last said.
    :ivar bytes_in: from clients, and ``bytes_out`` to them, as it has last said.
    :ivar cpu: CPU time that it has used.
    :ivar cpu_percent: of one CPU.
    :ivar memory: resident.
    :ivar restarts: how many workers have been in this slot before.
    :ivar silent: since it was last heard of. A worker with nothing to do says nothing.
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


class ListenerStats(msgspec.Struct, frozen=True, kw_only=True):
    """One listener.

    :ivar addresses: where it really listens.
    :ivar plugins: those called before the handler.
    :ivar open: connections over all workers.
    :ivar max_connections: the limit of that; 0 is none.
    :ivar accepted: since the pool's start, by which ``accepted_rate`` goes too.
    :ivar queued: connections that wait in the kernel's queues; None where the kernel does not say (unix sockets).
    :ivar waiting: connections that are accepted, and that no worker has taken yet.
    :ivar homeless: of these, the ones for which no worker has room.
    :ivar paused: it accepts nothing at the moment: a limit is reached, or no worker has room.
    :ivar refusals: how many were refused, by the reason.
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


class ProgramStats(msgspec.Struct, frozen=True, kw_only=True):
    """A program that runs: a child of a worker.

    :ivar worker: its worker's slot.
    :ivar command: its command line; of a dead one that nobody has waited for, its name in brackets.
    """

    pid: int
    worker: int
    worker_pid: int
    command: str
    age: float
    cpu: float
    memory: int


class RefusalStats(msgspec.Struct, frozen=True, kw_only=True):
    """A connection that was refused."""

    time: float
    listener: str
    peer: str
    reason: str


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Over the whole pool.

    :ivar open: connections.
    :ivar accepted: since the pool's start.
    :ivar programs: that run, those that are not listed included.
    :ivar cpu_percent: of one CPU, the workers'.
    :ivar memory: the workers' resident memory; what they share is counted for each.
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


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.

    :ivar time: when.
    :ivar workers: by slot.
    :ivar listeners: in the order of the config.
    :ivar programs: at most as many as ``snapshot.MOST_PROGRAMS``.
    :ivar recent_refusals: the latest last.
    """

    time: float
    server: ServerStats
    totals: Totals
    workers: list[WorkerStats]
    listeners: list[ListenerStats]
    programs: list[ProgramStats]
    recent_refusals: list[RefusalStats]


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the control socket.

    :ivar protocol: ``PROTOCOL``, of the server.
    :ivar status: where that was asked for.
    :ivar error: why there is no answer.
    """

    protocol: int
    status: Status | None = None
    error: str | None = None
