"""The dispatcher's books against a model: what it believes to be open is open, whatever happens in whatever order.

Workers are in this process, and honest: they take what is sent to them, ask, close, drain, are full, stop and die. The
model knows where each connection is by the descriptor, which is a real one: as long as nobody has closed it, the other
side sees no end.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from poolsrv.config.model import ListenerConfig
from poolsrv.dispatcher.worker_slot import EMPTY, STARTING, WorkerSlot
from poolsrv.ipc import figures
from poolsrv.ipc.worker_channel import (
    DRAINING,
    FULL,
    MAX_IN_FLIGHT,
    MAX_PER_MESSAGE,
    SERVING,
    AcceptedConnection,
    Report,
)
from tests.helpers.books import Books
from tests.helpers.depth import machine_settings
from tests.helpers.streams import pass_time

CONFIGS = (
    ListenerConfig("plain", (), "p"),
    ListenerConfig("limited", (), "p", max_connections=20, max_per_source=6),
    ListenerConfig("refusing", (), "p", max_connections=5, when_full="refuse"),
    ListenerConfig("proxied", (), "p", proxy_protocol=True, max_per_source=3),
    ListenerConfig("sole", (), "p", workers=1),
)
WORKERS = st.integers(0, 2)
LISTENERS = st.integers(0, len(CONFIGS) - 1)
SOURCES = st.integers(1, 3)


class Client:
    """The client's side of a connection.

    :ivar where: a worker's number once that has taken it.
    :ivar is_open: the server has not closed it, as far as anyone but the dispatcher may know.
    """

    def __init__(self, number: int, listener: int, sock: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self.sock = sock
        self.where: int | None = None

    def has_ended(self) -> bool:
        """Whether every copy of the other side is closed."""
        try:
            return self.sock.recv(1, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


class Worker:
    """What a worker knows of itself.

    :ivar held: the descriptors of its connections, by id.
    :ivar taken: how many it has received and not reported.
    :ivar closed: ids that it has closed and not reported.
    """

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.taken = 0
        self.closed: list[int] = []
        self.state: str | None = SERVING  # to be reported
        self.asked: list[tuple[int, tuple[str, int]]] = []
        self.has_asked: set[int] = set()


class DispatcherBooks(RuleBasedStateMachine):
    """Three workers and listeners with all kinds of limits."""

    @initialize(dispatch=st.sampled_from(["round-robin", "least-connections"]))
    def begin(self, dispatch: str) -> None:
        self.books = Books(CONFIGS, 3, dispatch)
        self.clients: dict[int, Client] = {}
        self.workers = {index: Worker() for index in range(3)}
        self.lost = 0
        self.is_closed = False
        for index in range(3):
            self.report(index)

    # --- the dispatcher's part

    @rule(listener=LISTENERS, source=SOURCES, count=st.sampled_from([1, 1, 2, 9, 40]))
    def accept(self, listener: int, source: int, count: int) -> None:
        """As Acceptor._accept_within_limits does it, without a socket that listens."""
        books, gate = self.books, self.books.listeners[listener]
        assigned: list[WorkerSlot] = []
        for _ in range(0 if self.is_closed else count):
            admission = gate.admission
            waits = admission is not None and admission.must_wait() is not None
            slot = None if gate.unassigned or waits else gate.pick_worker()
            if slot is None and not (admission is not None and admission.is_full()):
                break
            number = books.new_id()
            ours, theirs = socket.socketpair()
            fd, peer = ours.detach(), (f"192.0.2.{source}", 1000)
            self.clients[number] = Client(number, listener, theirs)
            if admission is not None and not admission.admit(number, fd, peer):
                self.forget(number)
                continue
            assert slot is not None
            self._assign(slot, listener, number, fd, peer, assigned)
        books.dispatcher.flush(assigned)

    def _assign(
        self, slot: WorkerSlot, listener: int, number: int, fd: int, peer: Any, assigned: list[WorkerSlot]
    ) -> None:
        gate = self.books.listeners[listener]
        gate.counts.open += 1
        gate.counts.accepted += 1
        if not slot.outbox:
            assigned.append(slot)
        self.books.dispatcher.assign(slot, gate, AcceptedConnection(fd, listener, number, peer))

    @rule(seconds=st.sampled_from([0.05, 0.3, 0.6, 5.1]))
    def time_passes(self, seconds: float) -> None:
        pass_time(self.books.loop, seconds)

    # --- workers

    def is_alive(self, index: int) -> bool:
        return self.books.slots[index].channel is not None

    @rule(index=WORKERS, most=st.sampled_from([1, 1, 2, 100]), tells=st.booleans())
    def take(self, index: int, most: int, tells: bool) -> None:
        if not self.is_alive(index) or self.books.slots[index].stopped:
            return
        worker = self.workers[index]
        while most and (handed := self.books.workers[index].receive()) is not None:
            most -= 1
            for one in handed:
                assert one.id not in worker.held
                assert self.clients[one.id].where is None
                assert not self.clients[one.id].has_ended()
                worker.held[one.id] = one.fd
                worker.taken += 1
                self.clients[one.id].where = index
        if tells:
            self.report(index)

    @rule(index=WORKERS, count=st.sampled_from([1, 3, 100]), tells=st.booleans())
    def close(self, index: int, count: int, tells: bool) -> None:
        if not self.is_alive(index) or self.books.slots[index].stopped:
            return
        worker = self.workers[index]
        for number in list(worker.held)[:count]:
            os.close(worker.held.pop(number))
            worker.closed.append(number)
            self.forget(number)
        if tells:
            self.report(index)

    @rule(index=WORKERS, source=SOURCES)
    def ask(self, index: int, source: int) -> None:
        """A client is known by what its proxy has told."""
        worker = self.workers[index]
        for number in worker.held:
            if CONFIGS[self.clients[number].listener].proxy_protocol and number not in worker.has_asked:
                worker.asked.append((number, (f"192.0.2.{source}", 7)))
                worker.has_asked.add(number)
                break

    @rule(index=WORKERS, state=st.sampled_from([FULL, SERVING, DRAINING]))
    def change(self, index: int, state: str) -> None:
        slot = self.books.slots[index]
        if self.is_alive(index) and not slot.stopped and slot.state in (SERVING, FULL):
            self.workers[index].state = state
            self.report(index)

    @rule(index=WORKERS)
    def report(self, index: int) -> None:
        slot, worker = self.books.slots[index], self.workers[index]
        if not self.is_alive(index) or slot.stopped:
            return
        report = Report(worker.taken, worker.closed, worker.state, None, worker.asked)
        worker.taken, worker.closed, worker.state, worker.asked = 0, [], None, []
        assert self.books.say(report, index)
        answered = self.books.workers[index].receive_answers()
        for number, refusal in answered:
            if refusal is not None and number in worker.held:
                os.close(worker.held.pop(number))
                worker.closed.append(number)
                self.forget(number)

    @rule(index=WORKERS, stopped=st.booleans())
    def stop_or_continue(self, index: int, stopped: bool) -> None:
        if self.is_alive(index):
            self.books.dispatcher.worker_stopped(self.books.slots[index], stopped)

    @rule(index=WORKERS)
    def die(self, index: int) -> None:
        """Its descriptors are closed by the kernel. What it has not taken goes to others."""
        if not self.is_alive(index):
            return
        slot, worker = self.books.slots[index], self.workers[index]
        for number, fd in worker.held.items():
            os.close(fd)
            self.forget(number)
        believed = len(slot.connections)
        in_channel = sum(client.where is None for client in self.clients.values())
        lost = self.books.dispatcher.worker_ended(slot)
        assert lost == len(worker.held) + len(worker.closed)
        assert believed - lost <= in_channel
        self.lost += lost
        self.books.loop.turn(0)
        assert slot.state == EMPTY
        self.workers[index] = Worker()
        self.forget_dropped()

    @rule(index=WORKERS, begins=st.booleans())
    def start(self, index: int, begins: bool) -> None:
        slot = self.books.slots[index]
        if slot.state == EMPTY and not self.is_closed:
            slot.pid, slot.state = 2000 + index, STARTING
            self.books.start(slot)
            self.workers[index] = Worker()
        if begins:
            self.report(index)

    @rule(at_last=st.sampled_from([False] * 9 + [True]))
    def pool_drains(self, at_last: bool) -> None:
        """A worker that drains takes what nobody else can, however little it had room for."""
        if not at_last or self.is_closed:
            return
        self.is_closed = True
        self.books.dispatcher.close(self.books.listeners)
        self.forget_dropped()
        for index in range(3):
            self.change(index, DRAINING)

    def forget_dropped(self) -> None:
        """What no worker is left for is closed, once the pool drains."""
        for number, client in list(self.clients.items()):
            slots = self.books.listeners[client.listener].slots
            if self.is_closed and client.where is None and all(slot.state == EMPTY for slot in slots):
                self.forget(number)

    def forget(self, number: int) -> None:
        """Nobody has it any more: its client sees the end."""
        client = self.clients.pop(number)
        assert client.has_ended(), number
        client.sock.close()

    # --- what holds

    @invariant()
    def the_books_are_right(self) -> None:
        self.books.check()
        assert not self.books.killed

    @invariant()
    def what_is_believed_to_be_open_is_open(self) -> None:
        believed = {number for slot in self.books.slots for number in slot.connections}
        believed |= {one.id for listener in self.books.listeners for one in listener.unassigned}
        untold = {number for worker in self.workers.values() for number in worker.closed}
        assert believed - untold == self.clients.keys()
        for client in self.clients.values():
            assert not client.has_ended(), client.number
            if client.where is not None:
                assert client.number in self.books.slots[client.where].connections

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        for listener in self.books.listeners:
            most = listener.config.max_connections
            assert not most or listener.counts.open <= most
        for slot in self.books.slots:
            assert len(slot.waiting) <= MAX_IN_FLIGHT
            assert not slot.has_room() or len(slot.waiting) < MAX_IN_FLIGHT
            if listener_limited := self.books.listeners[4].slots:
                assert slot is listener_limited[0] or 4 not in slot.connections.values()

    @invariant()
    def nothing_is_left_over_while_there_is_room(self) -> None:
        for listener in self.books.listeners:
            if listener.unassigned:
                assert not any(slot.has_room() for slot in listener.slots), listener.name
                if self.is_closed:
                    assert not any(slot.has_last_room() for slot in listener.slots), listener.name

    @invariant()
    def lost_connections_are_counted(self) -> None:
        counted = self.books.dispatcher.ledger.snapshot().get(figures.LOST, {})
        assert sum(amount for amount in counted.values() if isinstance(amount, int | float)) == self.lost

    def teardown(self) -> None:
        if not hasattr(self, "books"):
            return
        try:
            self.drain()
        finally:
            for worker in self.workers.values():
                for fd in worker.held.values():
                    os.close(fd)
            self.books.close()
            for client in self.clients.values():
                client.sock.close()

    def drain(self) -> None:
        """All workers come back, and take and close everything: then nothing is open, and nobody waits. In a pool that
        drains, those do that are still there."""
        for index, slot in enumerate(self.books.slots):
            if slot.state in (DRAINING, STARTING) and not self.is_closed:
                self.die(index)
            self.stop_or_continue(index, False)
            self.start(index, begins=True)
            if self.is_closed:
                self.change(index, DRAINING)
            elif slot.state == FULL:
                self.change(index, SERVING)
        for _ in range(len(self.clients) // MAX_PER_MESSAGE + 10):
            pass_time(self.books.loop, 1.0)
            for index in range(3):
                self.take(index, 1000, tells=True)
                self.close(index, 1000, tells=True)
            self.the_books_are_right()
            self.what_is_believed_to_be_open_is_open()
        assert not self.clients
        assert self.books.dispatcher.open_connections() == self.books.dispatcher.unassigned() == 0
        assert [listener.counts.open for listener in self.books.listeners] == [0] * len(CONFIGS)


TestDispatcherBooks = DispatcherBooks.TestCase
TestDispatcherBooks.settings = machine_settings(25, 40)
