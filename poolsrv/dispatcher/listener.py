"""What the dispatcher knows of each worker (a slot) and of each listener (a gate), and how a worker is chosen."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ..config.model import ListenerConfig
from ..ipc.worker_channel import AcceptedConnection
from .bind import Bound
from .worker_slot import WorkerSlot

if TYPE_CHECKING:
    from .admission import AdmissionControl

MOST_SINGLE_TURNS: Final = 16  # in which a gate accepts one connection each before it looks for more again


class Listener:
    """One listener, as the dispatcher sees it: its sockets, how many of its connections are open, who may serve it.

    :ivar admission: who is admitted; None where there is no limit.
    """

    def __init__(self, number: int, config: ListenerConfig, sockets: list[Bound], slots: list[WorkerSlot]) -> None:
        self.number = number
        self.name = config.name
        self.config = config
        self.sockets = sockets
        self._workers = config.workers
        self.slots = [slot for slot in slots if self.is_for(slot)]
        self.admission: AdmissionControl | None = None
        self.open = 0
        self.accepted = 0
        self.paused = False
        self._last_turn = 0  # the loop's latest turn in which there was something to accept
        self._single_turns = 0  # in so many turns only one connection is accepted, although they come close together
        self._back_off = 1  # and in so many after the next time that this proves right
        self.unassigned: deque[AcceptedConnection] = deque()  # accepted, or taken back, and no worker has room
        self._next = 0

    @property
    def tags(self) -> dict[str, object]:
        """For lines of the log that are about it."""
        return {"listener": self.name}

    def is_for(self, slot: WorkerSlot) -> bool:
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

    def next_in_turn(self) -> WorkerSlot | None:
        """Round robin: the next worker that has room; None where none has."""
        for step in range(len(self.slots)):
            slot = self.slots[(self._next + step) % len(self.slots)]
            if slot.has_room():
                return slot
        return None

    def least_loaded(self) -> WorkerSlot | None:
        """The worker with the fewest connections, of those that have room; of equals the next in turn."""
        best: WorkerSlot | None = None
        for step in range(len(self.slots)):
            slot = self.slots[(self._next + step) % len(self.slots)]
            if slot.has_room() and (best is None or len(slot.connections) < len(best.connections)):
                best = slot
        return best

    def given_to(self, slot: WorkerSlot) -> None:
        """The worker has got a connection of this listener: the turn is the next one's. To choose a worker and then
        find no connection in the kernel's queue must cost it nothing."""
        self._next = (slot.index + 1) % len(self.slots)
