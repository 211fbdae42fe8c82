"""One listener, as the dispatcher sees it: its sockets, its counts, and the workers that may serve it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from ..config.model import ListenerConfig
from ..core.event_loop import READ, EventLoop
from ..ipc.worker_channel import AcceptedConnection
from ..net.accepting import Arrivals
from .admission import AdmissionControl, ListenerCounts
from .bound import Bound
from .worker_slot import WorkerSlot


class Listener:
    """A listener of the pool.

    :param number: its place in the config.
    :param slots: all slots of the pool; the listener's own "workers" may leave it only the first ones.
    :param dispatch: as in the config.
    :ivar slots: the slots of the workers that may serve it now.
    :ivar counts: its connections.
    :ivar admission: its limits; None if it has none.
    :ivar unassigned: connections that are accepted or reclaimed, and for which no worker has room.
    :ivar is_open: whether the acceptor accepts here.
    :ivar polled: those of the sockets at which the dispatcher accepts now: all, unless workers accept by themselves.
    :ivar arrivals: how connections arrive.
    :ivar starved: whether the system has no descriptors for more connections.
    """

    def __init__(
        self,
        loop: EventLoop,
        number: int,
        config: ListenerConfig,
        sockets: list[Bound],
        slots: list[WorkerSlot],
        dispatch: str = "round-robin",
    ) -> None:
        self.number = number
        self.name = config.name
        self.config = config
        self.sockets = sockets
        self.polled = [bound for bound in sockets if bound.share is None]
        self.counts = ListenerCounts()
        self.admission: AdmissionControl | None = None
        self.unassigned: deque[AcceptedConnection] = deque()
        self.is_open = False
        self.starved = False
        self.arrivals = Arrivals()
        self._loop = loop
        self.slots = [slot for slot in slots if self.is_for(slot)]
        self._picks_least_loaded = dispatch == "least-connections"
        self._next = 0  # the place in slots whose turn it is
        self._to_next = 1 - config.first_worker  # from a slot's number to the place after its own

    @property
    def tags(self) -> dict[str, object]:
        """Fields for log lines about the listener."""
        return {"listener": self.name}

    @property
    def refusals(self) -> Mapping[str, int]:
        """Count the refused connections by the config key that refused them."""
        return self.admission.refusals if self.admission is not None else {}

    def is_for(self, slot: WorkerSlot) -> bool:
        """Tell whether the worker may serve this listener."""
        return self.config.is_for(slot.index)

    def replace(self, slot: WorkerSlot, successor: WorkerSlot) -> None:
        """Put another slot in the place of this one, if that is here."""
        if slot in self.slots:
            self.slots[self.slots.index(slot)] = successor

    # --- polling its sockets

    def pause(self) -> None:
        """Stop polling its sockets; connections wait in the kernel's queue."""
        if not self.counts.paused:
            self.counts.paused = True
            for bound in self.polled:
                self._loop.modify(bound.socket.fileno(), 0)

    def resume(self) -> None:
        """Poll its sockets again if the next connection can be served."""
        if (
            self.is_open
            and not (self.unassigned or self.starved or self._must_wait())
            and any(slot.has_room() for slot in self.slots)
        ):
            self.counts.paused = False
            for bound in self.polled:
                self._loop.modify(bound.socket.fileno(), READ)

    def _must_wait(self) -> bool:
        return self.admission is not None and self.admission.must_wait() is not None

    # --- choosing a worker

    def pick_worker(self) -> WorkerSlot | None:
        """Choose the worker for the next connection.

        By least connections that is the one with the fewest, otherwise the next one that has room.

        :returns: None if no worker has room.
        """
        if self._picks_least_loaded:
            return self._least_loaded()
        slots, place = self.slots, self._next
        if place < len(slots) and (slot := slots[place]).has_room():  # as nearly always
            return slot
        return next((slot for slot in (*slots[place:], *slots[:place]) if slot.has_room()), None)

    def _least_loaded(self) -> WorkerSlot | None:
        """Of equals, the next in turn."""
        best: WorkerSlot | None = None
        for step in range(len(self.slots)):
            slot = self.slots[(self._next + step) % len(self.slots)]
            if slot.has_room() and (best is None or len(slot.connections) < len(best.connections)):
                best = slot
        return best

    def pick_last(self) -> WorkerSlot | None:
        """Choose a worker that drains, when there are no others: the one with the fewest connections that has room."""
        draining = [slot for slot in self.slots if slot.has_last_room()]
        return min(draining, key=lambda slot: len(slot.connections)) if draining else None

    def given_to(self, slot: WorkerSlot) -> None:
        """Pass the turn to the slot after this one, whose worker has got a connection.

        A worker that is picked, and then finds the kernel's queue empty, keeps its turn.
        """
        self._next = (slot.index + self._to_next) % len(self.slots)
