"""The acceptor, with real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.core.event_loop import EventLoop
from poolsrv.core.listening_sockets import ListeningSocket
from poolsrv.dispatcher.acceptor import Acceptor
from poolsrv.dispatcher.bound import Bound
from poolsrv.dispatcher.dispatcher import Dispatcher
from poolsrv.dispatcher.listener import Listener
from poolsrv.dispatcher.worker_slot import WorkerSlot
from poolsrv.ipc.worker_channel import SERVING, DispatcherEnd, Report, WorkerEnd
from poolsrv.net.accepting import MAX_SINGLE_ITERATIONS


class CountingSocket(socket.socket):
    """Counts how often it was asked for a connection, and how often there was none."""

    asked = in_vain = 0

    def _accept(self) -> tuple[int, object]:
        self.asked += 1
        try:
            return super()._accept()  # type: ignore[misc,no-any-return]
        except BlockingIOError:
            self.in_vain += 1
            raise


class Entrance:
    """A listener with its acceptor, and a worker that takes everything at once."""

    def __init__(self) -> None:
        self.listener = CountingSocket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(512)
        self.listener.setblocking(False)
        self.loop = EventLoop()
        self.accepted: list[int] = []
        self.slot = WorkerSlot(0, state=SERVING, max_waiting=10_000)
        self.slot.channel = DispatcherEnd()
        self.worker = WorkerEnd(self.slot.channel._worker_socket)
        bound = Bound("p", ListeningSocket("127.0.0.1:0", self.listener), True)
        listener = Listener(self.loop, 0, ListenerConfig("p", (), "p"), [bound], [self.slot])
        self.dispatcher = Dispatcher(self.loop, [listener], [self.slot])
        self.acceptor = Acceptor(self.loop, self.dispatcher, [listener], 1)
        self.acceptor.open()
        self.clients: list[socket.socket] = []

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.clients.append(socket.create_connection(self.listener.getsockname()))

    def turn(self) -> None:
        self.loop.turn(0)
        while (connections := self.worker.receive()) is not None:
            for connection in connections:
                os.close(connection.fd)
                self.accepted.append(connection.id)
            assert self.worker.report(Report(len(connections), [], None, None))
            assert self.dispatcher.on_report(self.slot)

    def close(self) -> None:
        self.acceptor.close()
        self.loop.close()
        self.listener.close()
        assert self.slot.channel is not None
        self.slot.channel.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def entrance() -> Iterator[Entrance]:
    entrance = Entrance()
    yield entrance
    entrance.close()


def test_for_single_connections_a_second_one_is_seldom_looked_for(entrance: Entrance) -> None:
    for count in range(1, 201):
        entrance.connect(1)
        entrance.turn()
        assert len(entrance.accepted) == count
    assert entrance.listener.in_vain <= 200 / MAX_SINGLE_ITERATIONS + 5


def test_connections_that_come_together_are_accepted_in_two_iterations(entrance: Entrance) -> None:
    for count in (100, 200):
        entrance.connect(100)
        entrance.turn()  # perhaps only the first: the guess was that it is alone
        entrance.turn()
        assert len(entrance.accepted) == count


def test_a_flood_after_single_connections_is_noticed_within_some_iterations(entrance: Entrance) -> None:
    for _ in range(200):
        entrance.connect(1)
        entrance.turn()
    entrance.connect(300)
    for _ in range(MAX_SINGLE_ITERATIONS + 1):
        entrance.turn()
    assert len(entrance.accepted) == 500
    assert entrance.accepted == list(range(1, 501))
