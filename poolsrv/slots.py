"""What the dispatcher knows of each worker (a slot) and of each listener (a gate), and how a worker is chosen."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from .channel import MAX_IN_FLIGHT, Answer, DispatcherEnd, Handed
from .config import ListenerConfig
from .listeners import Bound

if TYPE_CHECKING:
    from .admission import Admission

STALL_TIME: Final = 0.5  # seconds that connections may wait in the channel of a worker before others are looked for
MOST_SINGLE_TURNS: Final = 16  # in which a gate accepts one connection each before it looks for more again

# States of a slot. A worker reports "serving", "full" and "draining" itself. One that has said what can't be is
# "condemned", from then until it has ended.
EMPTY, STARTING, SERVING, FULL, DRAINING = "empty", "starting", "serving", "full", "draining"
CONDEMNED: Final = "condemned"


class Slot(msgspec.Struct, eq=False):
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
    :ivar choked: the kernel has refused a message for it; it gets no more for a moment.
    :ivar connections: of each connection that it has or is to get, by id, the number of its listener.
    :ivar identified: of these, the ones about whose client it has asked.
    :ivar condemned: what it has said can't be; nothing more of it is read, and it is being ended.
    :ivar leaving: it is to end, and its place in the pool is another slot's.
    :ivar given: how many connections its worker has been sent.
    :ivar recycle_at: of these, the number at which it is replaced.
    :ivar failed_starts: in a row.
    :ivar young_deaths: of workers that had served for a moment only, in a row.
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
    choked: bool = False
    connections: dict[int, int] = {}
    identified: set[int] = set()
    condemned: bool = False
    outbox: list[Handed] = []
    unanswered: list[Answer] = []
    counters: tuple[int, ...] = ()
    last_heard: float = 0.0
    started_at: float = 0.0
    leaving: bool = False
    given: int = 0
    recycle_at: float = float("inf")
    failed_starts: int = 0
    young_deaths: int = 0
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
            and not (self.stalled or self.stopped or self.choked)
        )

    def assign(self, handed: Handed) -> None:
        """It is to get this connection; into its outbox."""
        self.connections[handed.id] = self.waiting[handed.id] = handed.listener
        self.outbox.append(handed)


class Gate:
    """One listener, as the dispatcher sees it: its sockets, how many of its connections are open, who may serve it.

    :ivar admission: who is admitted; None where there is no limit.
    """

    def __init__(self, number: int, config: ListenerConfig, sockets: list[Bound], slots: list[Slot]) -> None:
        self.number = number
        self.name = config.name
        self.config = config
        self.sockets = sockets
        self._workers = config.workers
        self.slots = [slot for slot in slots if self.is_for(slot)]
        self.admission: Admission | None = None
        self.open = 0
        self.accepted = 0
        self.paused = False
        self._last_turn = 0  # the loop's latest turn in which there was something to accept
        self._single_turns = 0  # in so many turns only one connection is accepted, although they come close together
        self._back_off = 1  # and in so many after the next time that this proves right
        self.homeless: deque[Handed] = deque()  # accepted, or taken back, and no worker has room
        self._next = 0

    @property
    def tags(self) -> dict[str, object]:
        """For lines of the log that are about it."""
        return {"listener": self.name}

    def is_for(self, slot: Slot) -> bool:
        """Whether the worker may serve this listener."""
        return self._workers is None or slot.index < self._workers

    @property
    def refusals(self) -> Mapping[str, int]:
        """How many connections have been refused, by the key of the config that refused them."""
        return self.admission.refusals if self.admission is not None else {}

    def must_wait(self) -> bool:
        """Whether a limit has whoever comes wait in the kernel's queue."""
        return self.admission is not None and self.admission.must_wait() is not None

    def expects_one(self, turn: int) -> bool:
        """Whether the connection that has come is probably alone: to look for a second one in vain costs a system call
        and an exception.

        It is, where the turn before brought none, and where looking has found a single one in each turn: that is tried
        more and more seldom. Where there are more after all, the next turn comes at once.

        :param turn: the number of the loop's turn.
        """
        close = turn - self._last_turn <= 1
        self._last_turn = turn
        if close and self._single_turns:
            self._single_turns -= 1
            return True
        return not close

    def found(self, count: int) -> None:
        """So many were accepted when ``expects_one`` had said no."""
        if count > 1:
            self._single_turns, self._back_off = 0, 1
        elif count == 1:
            self._single_turns = self._back_off
            self._back_off = min(2 * self._back_off, MOST_SINGLE_TURNS)

    def next_in_turn(self) -> Slot | None:
        """Round robin: the next worker that has room; None where none has."""
        for step in range(len(self.slots)):
            slot = self.slots[(self._next + step) % len(self.slots)]
            if slot.has_room():
                return slot
        return None

    def least_loaded(self) -> Slot | None:
        """The worker with the fewest connections, of those that have room; of equals the next in turn."""
        best: Slot | None = None
        for step in range(len(self.slots)):
            slot = self.slots[(self._next + step) % len(self.slots)]
            if slot.has_room() and (best is None or len(slot.connections) < len(best.connections)):
                best = slot
        return best

    def given_to(self, slot: Slot) -> None:
        """The worker has got a connection of this listener: the turn is the next one's. To choose a worker and then
        find no connection in the kernel's queue must cost it nothing."""
        self._next = (slot.index + 1) % len(self.slots)
