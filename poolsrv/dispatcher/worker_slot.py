"""A worker, as the dispatcher knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from ..ipc.worker_channel import MAX_IN_FLIGHT, AcceptedConnection, Answer, DispatcherEnd

if TYPE_CHECKING:
    pass


STALL_TIME: Final = 0.5  # seconds that connections may wait in the channel of a worker before others are looked for

# States of a slot. A worker reports "serving", "full" and "draining" itself. One that has said what can't be is
# "condemned", from then until it has ended.
EMPTY, STARTING, SERVING, FULL, DRAINING = "empty", "starting", "serving", "full", "draining"
CONDEMNED: Final = "condemned"


class WorkerSlot(msgspec.Struct, eq=False):
    """The place of one worker in the pool, and what the dispatcher knows of the worker that is there now.

    :ivar max_waiting: the most connections that may wait in its channel.
    :ivar waiting: connections for it that it has not reported as taken, the oldest first: the listener's number by id.
    :ivar waiting_since: when the oldest of those may have been sent, in the loop's time.
    :ivar patience: seconds that they may wait before others are looked for.
    :ivar stalled: it did not take them in time; it gets no more until it is heard of.
    :ivar is_told: so the log has said.
    :ivar asked_at: when its worker was asked for a sign of life, in the loop's time; 0: it has not been.
    :ivar asked_again: for the second time.
    :ivar stopped: by SIGSTOP or the like.
    :ivar send_blocked: the kernel has refused a message for it; it gets no more for a moment.
    :ivar connections: of each connection that it has or is to get, by id, the number of its listener.
    :ivar peer_known: of these, the ones about whose client it has asked.
    :ivar condemned: what it has said can't be; nothing more of it is read, and it is being ended.
    :ivar leaving: it is to end, and its place in the pool is another slot's.
    :ivar given: how many connections its worker has been sent.
    :ivar recycle_at: of these, the number at which it is replaced.
    :ivar failed_starts: in a row.
    :ivar early_exits: of workers that had served for a moment only, in a row.
    :ivar restarts: how many workers have been here before the one that is here now.
    :ivar outbox: of these, the ones that are not sent yet; empty between two callbacks of the loop.
    :ivar unanswered: answers for which its socket has no room yet.
    """

    index: int
    max_waiting: int = MAX_IN_FLIGHT
    state: str = EMPTY
    pid: int = 0
    channel: DispatcherEnd | None = None
    waiting: dict[int, int] = {}
    waiting_since: float = 0.0
    patience: float = STALL_TIME
    stalled: bool = False
    is_told: bool = False
    asked_at: float = 0.0
    asked_again: bool = False
    stopped: bool = False
    send_blocked: bool = False
    connections: dict[int, int] = {}
    peer_known: set[int] = set()
    condemned: bool = False
    outbox: list[AcceptedConnection] = []
    unanswered: list[Answer] = []
    counters: tuple[int, ...] = ()
    last_heard: float = 0.0
    started_at: float = 0.0
    leaving: bool = False
    given: int = 0
    recycle_at: float = float("inf")
    failed_starts: int = 0
    early_exits: int = 0
    restarts: int = 0

    @property
    def tags(self) -> dict[str, object]:
        """For lines of the log that are about its worker."""
        return {"worker": self.index, "worker_pid": self.pid}

    def has_room(self) -> bool:
        """Whether it may be given a connection now."""
        return (
            self.state == SERVING
            and len(self.waiting) < self.max_waiting
            and not (self.stalled or self.stopped or self.send_blocked)
        )

    def assign(self, handed: AcceptedConnection) -> None:
        """It is to get this connection; into its outbox."""
        self.connections[handed.id] = self.waiting[handed.id] = handed.listener
        self.outbox.append(handed)
