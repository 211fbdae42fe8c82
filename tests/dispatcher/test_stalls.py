"""Busy and stuck workers: a connection that waits for one of them goes to the worker that serves it first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.core.event_loop import EventLoop
from poolsrv.dispatcher.dispatcher import Dispatcher
from poolsrv.dispatcher.listener import Listener
from poolsrv.dispatcher.worker_slot import STALL_TIME, WorkerSlot
from poolsrv.ipc.worker_channel import SERVING, AcceptedConnection, DispatcherEnd, Report, WorkerEnd
from tests.helpers.plugins import ask, listener, served

MODULE = """
class Busy(Tells):
    # Works in long turns, one after the other, and serves its clients in between.

    def __init__(self):
        self.turns = 0

    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            if line == b"work\\n":
                conn.hold()
                self.work(conn)
            conn.send(f"{os.getpid()} {self.turns}\\n".encode())

    def work(self, conn):
        if self.turns:
            time.sleep(0.8)
        self.turns += 1
        conn.call_later(0.0, lambda: self.work(conn))
"""


@pytest.mark.server
def test_while_all_workers_are_busy_each_client_waits_for_two_iterations_at_most(tmp_path: Path) -> None:
    """Nothing goes to and fro between them; that once left most clients unserved for ever."""
    with served(tmp_path, MODULE, listener("busy"), pool="workers = 2") as server:
        busy = [server.connect("busy") for _ in range(2)]
        pids = {ask(sock, b"work").split()[0] for sock in busy}
        assert len(pids) == 2
        clients = [server.connect("busy") for _ in range(12)]
        for client in clients:
            client.sendall(b"x\n")
        # Counts turns, not seconds: from that on in which all have connected, at the earliest.
        since = dict(ask_nothing(sock) for sock in busy)
        answers = [ask_nothing(client) for client in clients]
        assert {pid for pid, _ in answers} == pids
        assert max(int(turns) - int(since[pid]) for pid, turns in answers) <= 2
        assert "takes no connections" not in server.log
        for sock in (*busy, *clients):
            sock.close()


def ask_nothing(sock: object) -> tuple[bytes, bytes]:
    pid, turns = ask(sock, b"").split()[:2]  # type: ignore[arg-type]
    return pid, turns


class Three:
    """A dispatcher with three workers, whose ends are in this process."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.slots = [WorkerSlot(index, state=SERVING, pid=1000 + index) for index in range(3)]
        self.workers = []
        for slot in self.slots:
            slot.channel = DispatcherEnd()
            self.workers.append(WorkerEnd(slot.channel._worker_socket))
        self.listener = Listener(self.loop, 0, ListenerConfig("p", (), "p"), [], self.slots)
        self.dispatcher = Dispatcher(self.loop, [self.listener], self.slots)
        self.last = 0

    def give(self, index: int, count: int) -> None:
        """Send connections to one worker, each in a message of its own."""
        for _ in range(count):
            self.last += 1
            self.listener.counts.open += 1
            fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self.dispatcher.assign(self.slots[index], self.listener, AcceptedConnection(fd, 0, self.last, ""))
            self.dispatcher.flush([self.slots[index]])

    def later(self, seconds: float) -> None:
        """Let time pass, and have the dispatcher look at the channels."""
        self.loop.now += seconds
        self.dispatcher._stalls._look()

    def is_stalled(self, index: int) -> bool:
        return self.slots[index].stalled

    def iterate(self, index: int) -> list[int]:
        """Have a worker take what is there, and report it."""
        taken: list[int] = []
        while (connections := self.workers[index].receive()) is not None:
            for one in connections:
                os.close(one.fd)
                taken.append(one.id)
        assert self.workers[index].report(Report(len(taken), [], None, None))
        assert self.dispatcher.on_report(self.slots[index])
        return taken

    def close(self) -> None:
        for index in range(3):
            self.iterate(index)
        for slot in self.slots:
            assert slot.channel is not None
            slot.channel.close()
        self.loop.close()


@pytest.fixture
def three() -> Iterator[Three]:
    three = Three()
    yield three
    three.close()


def test_an_idle_worker_gets_what_waits_for_a_silent_one(three: Three) -> None:
    three.give(0, 3)
    three.later(STALL_TIME - 0.01)
    assert not three.is_stalled(0)
    three.later(0.01)
    assert three.is_stalled(0)
    assert not three.slots[0].has_room()
    assert three.iterate(1) == []  # asked once
    assert three.iterate(1) == []  # and again
    assert three.iterate(1) == [1, 2, 3]
    assert list(three.slots[1].connections) == [1, 2, 3]
    assert three.iterate(0) == []
    assert not three.is_stalled(0)


def test_nothing_is_moved_while_all_are_silent(three: Three) -> None:
    for index in range(3):
        three.give(index, 2)
    for _ in range(20):
        three.later(STALL_TIME)
    assert [list(slot.waiting) for slot in three.slots] == [[1, 2], [3, 4], [5, 6]]
    assert three.iterate(1) == [3, 4]


def test_a_worker_that_answers_late_is_busy_and_gets_nothing(three: Three) -> None:
    three.give(0, 2)
    three.later(STALL_TIME)
    for _ in range(5):
        three.later(0.2)
        three.later(0.2)
        assert three.iterate(1) == []
        assert list(three.slots[0].waiting) == [1, 2]
    assert three.iterate(0) == [1, 2]


def test_what_was_moved_is_moved_again_only_after_a_longer_time(three: Three) -> None:
    """A worker that seemed idle may be busy a moment later."""
    three.give(0, 2)
    three.later(STALL_TIME)
    three.iterate(1)
    three.workers[1].receive()  # the second question
    assert three.workers[1].report(Report(0, [], None, None))
    assert three.dispatcher.on_report(three.slots[1])
    assert list(three.slots[1].waiting) == [1, 2]
    three.later(3 * STALL_TIME)
    assert not three.is_stalled(1)
    three.later(STALL_TIME)
    assert three.is_stalled(1)
    assert three.iterate(1) == [1, 2]
    assert three.slots[1].stall_time == STALL_TIME


def test_only_as_much_is_moved_as_there_is_room(three: Three) -> None:
    three.give(0, 5)
    three.slots[1].max_waiting = 3
    three.later(STALL_TIME)
    three.iterate(1)
    three.iterate(1)
    assert list(three.slots[1].waiting) == [1, 2, 3]
    assert list(three.slots[0].waiting) == [4, 5]
    assert three.iterate(0) == [4, 5]
