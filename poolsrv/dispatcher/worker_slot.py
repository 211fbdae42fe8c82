"""A worker slot: a place in the pool, and what the dispatcher knows of the worker that is there now."""

from __future__ import annotations

from typing import Final

import msgspec

from ..config.model import APART
from ..ipc.metrics import Series
from ..ipc.worker_channel import DRAINING, MAX_IN_FLIGHT, SERVING, AcceptedConnection, Answer, DispatcherEnd
from .granted_ids import GrantedIds

STALL_TIME: Final = 0.5  # seconds that connections may wait in a worker's channel before another worker is looked for

# States that only the dispatcher knows; the others are those of worker_channel.py. A worker is condemned from the
# moment at which it breaks the protocol until it has ended.
EMPTY: Final = "empty"
STARTING: Final = "starting"
CONDEMNED: Final = "condemned"


class WorkerSlot(msgspec.Struct, eq=False):
    """A place in the pool, with its worker.

    :ivar index: its number, from 0; or ``APART``.
    :ivar max_waiting: the most connections that may wait in the channel.
    :ivar state: of the worker.
    :ivar pid: 0 if there is no worker.
    :ivar waiting: connections that the worker has not reported as taken, the oldest first; by id, the number of the
        listener.
    :ivar waiting_since: the earliest time at which the oldest of these was sent, in the loop's time.
    :ivar stall_time: seconds that these may wait before another worker is looked for.
    :ivar stalled: whether the worker did not take them in time. It gets no more until it responds.
    :ivar stall_logged: whether the log says so.
    :ivar asked_at: when the worker was asked for a report, in the loop's time; 0 if it was not.
    :ivar asked_again: whether that was the second time.
    :ivar stopped: whether a signal (SIGSTOP) has stopped the worker.
    :ivar send_blocked: whether the kernel has refused a message for the worker. It gets no more for a moment.
    :ivar connections: connections that the worker has, or is about to get; by id, the number of the listener.
    :ivar peer_known: ids of those about whose client the worker has asked.
    :ivar condemned: whether the worker broke the protocol. Nothing more is read from it, and it is being killed.
    :ivar own_sockets: the numbers of those at which it accepts by itself (kernel_dispatch.py).
    :ivar granted: ids for what it accepts.
    :ivar outbox: connections that are assigned and not sent yet; empty between two callbacks of the loop.
    :ivar unanswered: answers for which the socket has no room yet.
    :ivar counters: the worker's totals, as it has last reported them.
    :ivar series: the metrics that the worker has described; None in the place of one that is not shown.
    :ivar gauges: its gauges, by their place in ``series``.
    :ivar last_report_at: when it last reported, in the loop's time.
    :ivar started_at: when it began to serve, or else when it was forked, in the loop's time.
    :ivar leaving: whether the worker is to end, and another slot has its place in the pool.
    :ivar given: the number of connections that the worker has been sent, or has accepted.
    :ivar recycle_at: the value of ``given`` at which it is replaced.
    :ivar failed_starts: failed starts in a row.
    :ivar early_exits: workers in a row that ended soon after they began to serve.
    :ivar restarts: the number of workers that were here before this one.
    """

    index: int
    max_waiting: int = MAX_IN_FLIGHT
    state: str = EMPTY
    pid: int = 0
    channel: DispatcherEnd | None = None
    waiting: dict[int, int] = {}
    waiting_since: float = 0.0
    stall_time: float = STALL_TIME
    stalled: bool = False
    stall_logged: bool = False
    asked_at: float = 0.0
    asked_again: bool = False
    stopped: bool = False
    send_blocked: bool = False
    connections: dict[int, int] = {}
    peer_known: set[int] = set()
    condemned: bool = False
    own_sockets: frozenset[int] = frozenset()
    granted: GrantedIds = msgspec.field(default_factory=GrantedIds)
    outbox: list[AcceptedConnection] = []
    unanswered: list[Answer] = []
    counters: tuple[int, ...] = ()
    series: list[Series | None] = []
    gauges: dict[int, float] = {}
    last_report_at: float = 0.0
    started_at: float = 0.0
    leaving: bool = False
    given: int = 0
    recycle_at: float = float("inf")
    failed_starts: int = 0
    early_exits: int = 0
    restarts: int = 0

    @property
    def tags(self) -> dict[str, object]:
        """Fields for log lines about the worker."""
        return {"worker": self.label, "worker_pid": self.pid}

    @property
    def label(self) -> int | str:
        """Its number for the log; or ``"apart"``."""
        return self.index if self.index != APART else "apart"

    def has_room(self) -> bool:
        """Tell whether the worker may be given a connection now."""
        if self.state != SERVING or self.stalled or self.stopped or self.send_blocked:
            return False
        return len(self.waiting) < self.max_waiting

    def has_last_room(self) -> bool:
        """Tell whether the worker drains, and may be given a connection that no other worker can serve."""
        if self.state != DRAINING or self.stopped or self.send_blocked:
            return False
        return len(self.waiting) < self.max_waiting

    def accepts(self) -> bool:
        """Tell whether the worker accepts by itself now, at its own sockets."""
        return self.state == SERVING and self.granted.left > 0 and not (self.stalled or self.stopped)

    def clear(self) -> None:
        """Forget the worker, which has ended."""
        self.channel = None
        self.state = EMPTY
        self.pid = 0
        self.stalled = self.stall_logged = self.stopped = self.send_blocked = self.condemned = False
        self.asked_at, self.stall_time = 0.0, STALL_TIME
        self.connections.clear()
        self.peer_known.clear()
        self.waiting.clear()
        self.unanswered.clear()
        self.own_sockets, self.granted = frozenset(), GrantedIds()
        self.counters = ()
        self.series.clear()
        self.gauges.clear()
