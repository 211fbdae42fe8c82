"""The dispatcher: accepts connections, chooses a worker for each, passes them on, takes back what was not taken.

Everything here runs in the parent of the workers. It never blocks on a worker and never spins: a worker whose channel
is full is passed over, and when no worker of a listener has room, the listening socket is not polled until one has.
Connections then wait in the kernel's queue.

The dispatcher knows exactly which connections each worker has: it sent them, and the worker reports what it has taken
and closed. So limits hold over the whole pool, ``least-connections`` is exact, and when a worker dies its channel
gives back what it had not taken.

A worker can be alive and yet take nothing: stopped by a signal, stuck in a plugin, at its descriptor limit. What has
waited in its channel for ``STALL_TIME`` is taken back and given to others, and it gets nothing new until it is heard
of again.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import deque
from functools import partial
from typing import Final

import msgspec

from .channel import MAX_IN_FLIGHT, MAX_PER_MESSAGE, DispatcherEnd, Handed, Report
from .config import ListenerConfig
from .eventloop import READ, EventLoop, Timer
from .listeners import Bound

log = logging.getLogger("poolsrv.dispatcher")

STALL_TIME: Final = 0.5  # seconds that connections may wait in the channel of a worker while another could serve them
STARVED_PAUSE: Final = 0.5  # seconds without accepting after the system has run out of descriptors

# States of a slot. A worker reports "serving", "full" and "draining" itself.
EMPTY, STARTING, SERVING, FULL, DRAINING = "empty", "starting", "serving", "full", "draining"


class Slot(msgspec.Struct, eq=False):
    """The place of one worker in the pool, and what the dispatcher knows of the worker that is there now.

    :ivar in_flight: connections sent to it that it has not reported as taken.
    :ivar waiting_since: when the oldest of those may have been sent, in the loop's time.
    :ivar stalled: it did not take them in time; it gets no more until it is heard of.
    :ivar stopped: by SIGSTOP or the like.
    :ivar connections: of each connection that it has or is to get, by id, the number of its listener.
    """

    index: int
    state: str = EMPTY
    pid: int = 0
    channel: DispatcherEnd | None = None
    in_flight: int = 0
    waiting_since: float = 0.0
    stalled: bool = False
    stopped: bool = False
    connections: dict[int, int] = {}
    outbox: list[Handed] = []
    counters: tuple[int, ...] = ()
    last_heard: float = 0.0
    started_at: float = 0.0

    def has_room(self) -> bool:
        """Whether it may be given a connection now."""
        return self.state == SERVING and self.in_flight < MAX_IN_FLIGHT and not self.stalled and not self.stopped


class Gate:
    """One listener, as the dispatcher sees it: its sockets, how many of its connections are open, who may serve it."""

    def __init__(self, number: int, config: ListenerConfig, sockets: list[Bound], slots: list[Slot]) -> None:
        self.number = number
        self.name = config.name
        self.sockets = sockets
        self.limit = config.max_connections
        self.slots = slots if config.workers is None else slots[: config.workers]
        self.open = 0
        self.accepted = 0
        self.paused = False
        self._next = 0

    def at_limit(self) -> bool:
        """Whether ``max_connections`` are open."""
        return 0 < self.limit <= self.open

    def next_in_turn(self) -> Slot | None:
        """Round robin: the next worker that has room; None where none has."""
        slots, count = self.slots, len(self.slots)
        for step in range(count):
            slot = slots[(self._next + step) % count]
            if slot.has_room():
                self._next = (self._next + step + 1) % count
                return slot
        return None

    def least_loaded(self) -> Slot | None:
        """The worker with the fewest connections, of those that have room; of equals the next in turn."""
        slots, count = self.slots, len(self.slots)
        best: Slot | None = None
        position = 0
        for step in range(count):
            slot = slots[(self._next + step) % count]
            if slot.has_room() and (best is None or len(slot.connections) < len(best.connections)):
                best, position = slot, (self._next + step) % count
        if best is not None:
            self._next = (position + 1) % count
        return best


class Dispatcher:
    """See the module's docstring.

    :param dispatch: ``"round-robin"`` or ``"least-connections"``.
    """

    def __init__(self, loop: EventLoop, gates: list[Gate], slots: list[Slot], dispatch: str) -> None:
        self._loop = loop
        self._gates = gates
        self._slots = slots
        self._choose = Gate.least_loaded if dispatch == "least-connections" else Gate.next_in_turn
        self._last_id = 0
        self._homeless: deque[Handed] = deque()  # accepted, or taken back, and no worker has room
        self._starved = False
        self._closed = False
        self._stall_check: Timer | None = None

    # --- accepting

    def open(self) -> None:
        """Begin to accept."""
        for gate in self._gates:
            for bound in gate.sockets:
                self._loop.register(bound.socket.fileno(), READ, partial(self._accept_all, gate, bound.socket))

    def close(self) -> None:
        """Accept no more; the listening sockets are the caller's to close."""
        if not self._closed:
            self._closed = True
            for gate in self._gates:
                for bound in gate.sockets:
                    self._loop.unregister(bound.socket.fileno())

    def _accept_all(self, gate: Gate, listener: socket.socket, mask: int) -> None:
        """Accept until the kernel's queue is empty or no worker has room, and send them off."""
        choose = self._choose
        touched: list[Slot] = []
        while True:
            if gate.at_limit():
                self._pause(gate)
                break
            slot = choose(gate) if not self._homeless else None
            if slot is None:
                self._pause(gate)
                break
            try:
                accepted, peer = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._starve(error)
                    break
                continue  # accept(2): errors of the new connection, which is gone, are told here
            self._last_id += 1
            gate.open += 1
            gate.accepted += 1
            slot.connections[self._last_id] = gate.number
            if not slot.outbox:
                touched.append(slot)
            slot.outbox.append(Handed(accepted.detach(), gate.number, self._last_id, peer))
            slot.in_flight += 1
            if len(slot.outbox) == MAX_PER_MESSAGE:
                self._send(slot)
        for slot in touched:
            if slot.outbox:
                self._send(slot)

    def _send(self, slot: Slot) -> None:
        """What is in the slot's outbox, as one message."""
        outbox, slot.outbox = slot.outbox, []
        assert slot.channel is not None
        if slot.in_flight == len(outbox):
            slot.waiting_since = self._loop.now
        if slot.channel.send(outbox):
            for handed in outbox:
                os.close(handed.fd)
            if self._stall_check is None:
                self._stall_check = self._loop.call_later(STALL_TIME / 2, self._check_stalls)
        else:
            slot.in_flight -= len(outbox)
            self._shelter(slot, outbox)
            self._loop.call_later(0.01, self._house)

    def _pause(self, gate: Gate) -> None:
        if not gate.paused:
            gate.paused = True
            for bound in gate.sockets:
                self._loop.modify(bound.socket.fileno(), 0)

    def _starve(self, error: OSError) -> None:
        """No descriptors left, here or in the system: stop polling for a moment, say so once."""
        for gate in self._gates:
            self._pause(gate)
        if not self._starved:
            self._starved = True
            log.warning("can't accept connections (%s): pausing", error.strerror)
        self._loop.call_later(STARVED_PAUSE, self._try_again)

    def _try_again(self) -> None:
        self._starved = False
        self.resume()

    def resume(self) -> None:
        """Something may have made room: house the homeless, and poll the listening sockets that can be served."""
        if self._homeless:
            self._house()
        if self._homeless or self._starved or self._closed:
            return
        for gate in self._gates:
            if gate.paused and not gate.at_limit() and any(slot.has_room() for slot in gate.slots):
                gate.paused = False
                for bound in gate.sockets:
                    self._loop.modify(bound.socket.fileno(), READ)

    # --- connections without a worker

    def _shelter(self, slot: Slot, connections: list[Handed]) -> None:
        for handed in connections:
            del slot.connections[handed.id]
        self._homeless.extend(connections)

    def _house(self) -> None:
        """Send connections that were taken back, or could not be sent, to workers that have room."""
        touched: list[Slot] = []
        for _ in range(len(self._homeless)):
            handed = self._homeless.popleft()
            slot = self._choose(self._gates[handed.listener])
            if slot is None:
                self._homeless.append(handed)
                continue
            slot.connections[handed.id] = handed.listener
            slot.outbox.append(handed)
            slot.in_flight += 1
            if slot not in touched:
                touched.append(slot)
            if len(slot.outbox) == MAX_PER_MESSAGE:
                self._send(slot)
        for slot in touched:
            if slot.outbox:
                self._send(slot)

    def _take_back(self, slot: Slot) -> int:
        """Whatever the worker has not taken; how many connections."""
        assert slot.channel is not None
        count = 0
        while handed := slot.channel.take_back():
            slot.in_flight -= len(handed)
            count += len(handed)
            self._shelter(slot, handed)
        return count

    # --- what is heard of workers

    def on_report(self, slot: Slot) -> None:
        """The worker's channel is readable."""
        if slot.channel is not None and (report := slot.channel.receive()) is not None:
            self._apply(slot, report)
            if slot.state in (FULL, DRAINING) and slot.in_flight:
                self._take_back(slot)
            self.resume()

    def _apply(self, slot: Slot, report: Report) -> None:
        now = self._loop.now
        slot.last_heard = now
        if slot.stalled:
            slot.stalled = False
            log.info("worker %d (pid %d) is heard of again", slot.index, slot.pid)
        if report.taken:
            slot.in_flight -= report.taken
            slot.waiting_since = now
        for number in report.closed:
            self._gates[slot.connections.pop(number)].open -= 1
        if report.state is not None:
            slot.state = report.state
        if report.counters is not None:
            slot.counters = report.counters

    def worker_stopped(self, slot: Slot, stopped: bool) -> None:
        """A signal has stopped the worker, or has had it go on."""
        slot.stopped = stopped
        if stopped:
            self._take_back(slot)
        self.resume()

    def worker_gone(self, slot: Slot) -> int:
        """The worker has ended: what it had not taken goes to others.

        :returns: how many connections were lost with it.
        """
        assert slot.channel is not None
        while (report := slot.channel.receive()) is not None:
            self._apply(slot, report)
        self._take_back(slot)
        lost = len(slot.connections)
        for number in slot.connections.values():
            self._gates[number].open -= 1
        self._loop.unregister(slot.channel.fileno())
        slot.channel.close()
        slot.channel = None
        slot.state = EMPTY
        slot.pid = slot.in_flight = 0
        slot.stalled = slot.stopped = False
        slot.connections.clear()
        slot.counters = ()
        self.resume()
        return lost

    def _check_stalls(self) -> None:
        """Runs while anything is in flight."""
        self._stall_check = None
        now = self._loop.now
        in_flight = False
        for slot in self._slots:
            if not slot.in_flight:
                continue
            in_flight = True
            if slot.stalled or now - slot.waiting_since < STALL_TIME or not self._others_have_room(slot):
                continue
            slot.stalled = True
            count = self._take_back(slot)
            log.warning(
                "worker %d (pid %d) takes no connections: %d go to others, and it gets no more until it is heard of",
                slot.index,
                slot.pid,
                count,
            )
        if in_flight:
            self._stall_check = self._loop.call_later(STALL_TIME / 2, self._check_stalls)
            self.resume()

    def _others_have_room(self, slot: Slot) -> bool:
        listeners = set(slot.connections.values())
        return all(any(other.has_room() for other in self._gates[n].slots if other is not slot) for n in listeners)

    def homeless(self) -> int:
        """Connections that are accepted and wait for a worker to have room."""
        return len(self._homeless)

    def give_up_homeless(self) -> None:
        """The pool ends, and nobody is left who could serve them."""
        while self._homeless:
            os.close(self._homeless.popleft().fd)
