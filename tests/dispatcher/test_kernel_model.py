"""Kernel dispatch against a model: workers accept by themselves, the dispatcher in place of those that do not, and no
connection is lost or counted twice."""

from __future__ import annotations

import os
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from poolsrv.config.model import ListenerConfig, PoolConfig
from poolsrv.core.event_loop import EventLoop
from poolsrv.dispatcher.acceptor import Acceptor
from poolsrv.dispatcher.bind import bind
from poolsrv.dispatcher.dispatcher import Dispatcher
from poolsrv.dispatcher.kernel_dispatch import KernelDispatch
from poolsrv.dispatcher.listener import Listener
from poolsrv.dispatcher.shares import Shares
from poolsrv.dispatcher.worker_slot import EMPTY, STARTING, WorkerSlot
from poolsrv.ipc.worker_channel import DRAINING, FULL, SERVING, DispatcherEnd, Report, WorkerEnd
from poolsrv.net.addresses import parse
from tests.helpers.depth import machine_settings
from tests.helpers.streams import pass_time

WORKERS = st.integers(0, 2)


class Worker:
    """What a worker knows of itself.

    :ivar ids: granted, and not used.
    :ivar accepted: by socket, since its last report.
    :ivar held: descriptors of its connections, by id.
    """

    def __init__(self, end: WorkerEnd) -> None:
        self.end = end
        self.ids: list[int] = []
        self.accepted: Counter[int] = Counter()
        self.held: dict[int, int] = {}
        self.untold: set[int] = set()  # accepted by itself and not reported
        self.closed: list[int] = []
        self.taken = 0
        self.state = STARTING


class KernelBooks(RuleBasedStateMachine):
    """Three workers, and as many sockets, or more, or fewer."""

    @initialize(sockets=st.integers(2, 4))
    def begin(self, sockets: int) -> None:
        config = ListenerConfig("a", (parse("127.0.0.1:0", Path("/")),), "echo")
        (self.group,) = bind((config,), {}, shares=Shares(PoolConfig(workers=sockets, dispatch="kernel")))
        self.loop = EventLoop()
        self.slots = [WorkerSlot(index) for index in range(3)]
        self.listener = Listener(self.loop, 0, config, self.group, self.slots, "kernel")
        self.dispatcher = Dispatcher(self.loop, [self.listener], self.slots)
        self.acceptor = Acceptor(self.loop, self.dispatcher, [self.listener], 1)
        self.kernel = KernelDispatch(self.loop, [self.listener], self.acceptor.callback, self.acceptor.allocate)
        self.dispatcher.kernel = self.kernel
        self.killed: list[WorkerSlot] = []
        self.dispatcher.kill_worker = self.killed.append
        self.workers: dict[int, Worker] = {}
        self.clients: list[socket.socket] = []
        for index in range(3):
            self.start(index)
        self.acceptor.open()
        self.kernel.open()

    # --- clients, and the dispatcher

    @rule(count=st.sampled_from([1, 3, 10]))
    def connect(self, count: int) -> None:
        for _ in range(count if len(self.clients) < 60 else 0):
            self.clients.append(socket.create_connection(self.group[0].socket.getsockname()))

    @rule(turns=st.integers(1, 3))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.loop.turn(0)

    @rule(seconds=st.sampled_from([0.05, 0.3, 0.6]))
    def time_passes(self, seconds: float) -> None:
        pass_time(self.loop, seconds)

    # --- workers

    def can_run(self, index: int) -> bool:
        return self.slots[index].channel is not None and not self.slots[index].stopped

    @rule(index=WORKERS, most=st.sampled_from([1, 2, 50]), tells=st.booleans())
    def accept(self, index: int, most: int, tells: bool) -> None:
        slot, worker = self.slots[index], self.workers[index]
        if not self.can_run(index):
            return
        self.take(index)
        for number in sorted(slot.own_sockets):
            while worker.state == SERVING and worker.ids and most:
                try:
                    sock, _ = self.kernel.sockets[number].bound.socket.accept()
                except BlockingIOError:
                    break
                most -= 1
                one = worker.ids.pop(0)
                worker.held[one] = sock.detach()
                worker.untold.add(one)
                worker.accepted[number] += 1
        if tells:
            self.report(index)

    @rule(index=WORKERS)
    def take(self, index: int) -> None:
        """Take what the dispatcher has accepted, and grants of ids."""
        worker = self.workers[index]
        while self.can_run(index) and (handed := worker.end.receive()) is not None:
            for one in handed:
                worker.held[one.id] = one.fd
                worker.taken += 1
            if (grant := worker.end.grant) is not None:
                worker.end.grant = None
                granted = range(*grant)
                if not worker.ids or granted[0] > worker.ids[-1]:  # one may come again
                    worker.ids += granted

    @rule(index=WORKERS, count=st.sampled_from([1, 5, 100]), tells=st.booleans())
    def close(self, index: int, count: int, tells: bool) -> None:
        worker = self.workers[index]
        if self.can_run(index):
            for one in list(worker.held)[:count]:
                os.close(worker.held.pop(one))
                worker.closed.append(one)
            if tells:
                self.report(index)

    @rule(index=WORKERS)
    def report(self, index: int) -> None:
        slot, worker = self.slots[index], self.workers[index]
        if not self.can_run(index):
            return
        state = worker.state if worker.state != slot.state else None
        accepted = list(worker.accepted.items())
        assert worker.end.report(Report(worker.taken, worker.closed, state, None, accepted=accepted))
        worker.taken, worker.closed = 0, []
        worker.accepted.clear()
        worker.untold.clear()
        assert self.dispatcher.on_report(slot)

    @rule(index=WORKERS, state=st.sampled_from([SERVING, FULL, SERVING, FULL, DRAINING]))
    def change(self, index: int, state: str) -> None:
        if self.can_run(index) and self.workers[index].state != DRAINING:
            self.workers[index].state = state
            self.report(index)

    @rule(index=WORKERS, stopped=st.booleans())
    def stop_or_continue(self, index: int, stopped: bool) -> None:
        if self.slots[index].channel is not None:
            self.dispatcher.worker_stopped(self.slots[index], stopped)

    @rule(index=WORKERS)
    def die(self, index: int) -> None:
        slot, worker = self.slots[index], self.workers[index]
        if slot.channel is None:
            return
        for fd in worker.held.values():
            os.close(fd)
        known = (worker.held.keys() | set(worker.closed)) - worker.untold
        assert self.dispatcher.worker_ended(slot) == len(known)
        worker.held.clear()
        self.loop.turn(0)

    @rule(index=WORKERS)
    def start(self, index: int) -> None:
        slot = self.slots[index]
        if slot.state == EMPTY:
            slot.pid, slot.state = 1000 + index, STARTING
            slot.channel = DispatcherEnd()
            slot.own_sockets = self.kernel.numbers_for(slot)
            self.workers[index] = Worker(WorkerEnd(slot.channel._worker_socket))
            self.change(index, SERVING)

    # --- what holds

    @invariant()
    def a_socket_is_taken_over_if_no_worker_accepts(self) -> None:
        for own in self.kernel.sockets:
            accepts = any(slot.accepts() and own.number in slot.own_sockets for slot in self.slots)
            assert own.taken_over is not accepts, own.number
            assert (own.bound in self.listener.polled) is own.taken_over
        assert not self.killed

    @invariant()
    def what_is_believed_to_be_open_is_open(self) -> None:
        waiting = {one.id for one in self.listener.unassigned}
        seen = set(waiting)
        for index, slot in enumerate(self.slots):
            believed = slot.connections.keys()
            assert seen.isdisjoint(believed)
            seen |= believed
            if slot.channel is not None:
                worker = self.workers[index]
                taken = slot.waiting.keys() & (worker.held.keys() | set(worker.closed))
                assert believed - slot.waiting.keys() | taken == (
                    (worker.held.keys() | set(worker.closed)) - worker.untold
                )
        assert self.listener.counts.open == len(seen)

    @invariant()
    def each_id_is_one_worker_s(self) -> None:
        ids = Counter(one for worker in self.workers.values() for one in worker.held)
        assert not ids or max(ids.values()) == 1

    def teardown(self) -> None:
        if not hasattr(self, "clients"):
            return
        try:
            self.drain()
        finally:
            self.acceptor.close()
            self.kernel.close()
            for index in range(3):
                self.die(index)
            self.dispatcher.drop_unassigned()
            self.loop.turn(0)
            self.loop.close()
            for sock in (*self.clients, *(bound.socket for bound in self.group)):
                sock.close()

    def drain(self) -> None:
        """All workers come back: every client is served, by whomever, and then nothing is open."""
        for index, slot in enumerate(self.slots):
            self.stop_or_continue(index, False)
            if slot.state == DRAINING:
                self.die(index)
            self.start(index)
            self.change(index, SERVING)
        for _ in range(100):
            self.turn(1)
            pass_time(self.loop, 0.3)
            for index in range(3):
                self.accept(index, 1000, tells=True)
                self.close(index, 1000, tells=True)
            self.what_is_believed_to_be_open_is_open()
            if all(map(has_ended, self.clients)):
                break
        assert all(map(has_ended, self.clients))
        assert self.listener.counts.open == self.dispatcher.unassigned() == 0


def has_ended(client: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    with suppress(BlockingIOError):
        try:
            return client.recv(1, socket.MSG_DONTWAIT) == b""
        except ConnectionResetError:
            return True
    return False


TestKernelBooks = KernelBooks.TestCase
TestKernelBooks.settings = machine_settings(20, 30)
